"""Rules, one by one and together, against those of datatrove, which made FineWeb."""

import random
import re
import sys
from collections import Counter

import pytest

from lmkit.data.quality.filters import FILTERS, GOPHER_REPETITION, SENTENCE_ENDS, is_punctuation

pytest.importorskip("datatrove")
from datatrove.data import Document
from datatrove.pipeline.filters import (
    C4QualityFilter,
    FineWebQualityFilter,
    GopherQualityFilter,
    GopherRepetitionFilter,
)
from datatrove.utils.text import PUNCTUATION_SET, TERMINAL_PUNCTUATION
from datatrove.utils.word_tokenizers import WordTokenizer


class Spaces(WordTokenizer):
    """Words between spaces, and sentences that end as lmkit counts them."""

    def word_tokenize(self, text):
        return text.split()

    def sent_tokenize(self, text):
        return re.findall(r".+?[.!?]+[\"'”’)\]]*(?=\s|$)", text) or [text]

    def span_tokenize(self, text):
        return [(0, 0)] * len(self.sent_tokenize(text))


REFERENCES = {
    "gopher_quality": GopherQualityFilter(language=Spaces()),
    "gopher_repetition": GopherRepetitionFilter(language=Spaces()),
    "c4": C4QualityFilter(language=Spaces()),
    "fineweb": FineWebQualityFilter(language=Spaces()),
}
REASONS = {  # of datatrove, by the rules here
    "words": {"gopher_short_doc", "gopher_long_doc"},
    "mean length of words": {"gopher_below_avg_threshold", "gopher_above_avg_threshold"},
    "# a word": {"gopher_too_many_hashes"},
    "ellipses a word": {"gopher_too_many_ellipsis"},
    "lines with a bullet": {"gopher_too_many_bullets"},
    "lines that end in an ellipsis": {"gopher_too_many_end_ellipsis"},
    "words with a letter": {"gopher_below_alpha_threshold"},
    "stop words": {"gopher_enough_stop_words"},
    "repeated paragraphs": {"dup_para_frac"},
    "characters in repeated paragraphs": {"dup_para_char_frac"},
    "repeated lines": {"dup_line_frac"},
    "characters in repeated lines": {"dup_line_char_frac", "char_dup_ratio"},
    **{f"characters in the top {n}-gram": {f"top_{n}_gram"} for n in (2, 3, 4)},
    **{f"characters in repeated {n}-grams": {f"duplicated_{n}_n_grams"} for n in range(5, 11)},
    "lorem ipsum": {"lorem_ipsum"},
    "curly bracket": {"curly_bracket"},
    "sentences": {"too_few_sentences"},
    "lines that end in punctuation": {"line_punct_ratio"},
    "short lines": {"short_line_ratio"},
    "line ends a word": {"list_ratio"},
}
WORDS = "the of and that have with to be cat house naïve river über wandered 3.14 1999 -- #tag wait... … don't"
LONG = [
    "antidisestablishmentarianism",
    "x" * 1001,
    "javascript",
    "{",
    "lorem ipsum",
    "privacy policy",
    "[12]",
    "[edit]",
]
ENDS = [".", "!", "?", "...", "…", "", '"', "।", "。", " -", ";"]


def text_of(rng: random.Random) -> str:
    """A text of lines, some of which come again; how often of what differs from text to text."""
    words = rng.sample(WORDS.split(), rng.randint(3, len(WORDS.split()))) + [
        f"w{i}" * rng.randint(1, 4) for i in range(rng.randint(0, 400))
    ]
    rare, again, empty, bullets = (rng.choice((0, 0, 0.02, 0.2, 0.9)) for _ in range(4))
    longest, ends = rng.choice((2, 6, 12, 30)), rng.sample(ENDS, rng.randint(1, 4))
    phrase = " ".join(rng.choices(words, k=rng.randint(2, 11)))
    lines = list[str]()
    for _ in range(rng.choice((1, 5, 12, 30, 80))):
        line = " ".join(rng.choices(words, k=rng.randint(1, longest))) + rng.choice(ends)
        if rng.random() < rare / 2:
            line = f"{rng.choice(LONG)} {line}"
        if rng.random() < again:
            line = rng.choice([phrase, f"{phrase} {line}", rng.choice(lines or [line])])
        lines.append(rng.choice(("• ", "- ")) * (rng.random() < bullets) + line + "\n" * (rng.random() < empty))
    return "\n".join(lines)


@pytest.mark.parametrize("name", REFERENCES)
def test_each_rule_agrees_with_datatrove_on_random_texts(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """datatrove lists punctuation, without • and others; lmkit takes it from Unicode."""
    letterless = frozenset(filter(is_punctuation, map(chr, range(sys.maxunicode))))
    monkeypatch.setattr("datatrove.pipeline.filters.gopher_quality_filter.PUNCTUATION_SET", letterless)
    assert set(SENTENCE_ENDS) <= TERMINAL_PUNCTUATION and len(PUNCTUATION_SET - letterless) < 10
    rng, reference, verdicts = random.Random(1), REFERENCES[name], Counter[str]()
    for _ in range(1500):
        text = text_of(rng)
        document = Document(text=text, id="")
        expected = reference.filter(document)
        got, rule = FILTERS[name](text)
        reason = expected[1] if isinstance(expected, tuple) else ""
        assert (reason in REASONS[rule]) if rule else reason == "", (text, rule, reason)
        assert rule or got == document.text
        verdicts[rule] += 1
    assert verdicts[""] > 50 and not [rule for rule in rules_of(name) if not verdicts[rule]], verdicts


def rules_of(name: str) -> list[str]:
    if name == "c4":
        return ["lorem ipsum", "curly bracket", "sentences"]
    rules = FILTERS[name].args[0]  # type: ignore[attr-defined]
    return [rule.name for rule in rules]


def test_texts_at_a_bound_stay_and_beyond_it_they_go() -> None:
    """What random texts seldom meet."""
    cases = {
        "have that with " * 16 + "have": "gopher_short_doc",
        "have that with " * 16 + "have that": "",
        "have that with " * 33_333 + "have": "",
        "have that with " * 33_333 + "have that": "gopher_long_doc",
        "the off " * 40: "gopher_enough_stop_words",
        "the and " * 40: "",
        "the and " * 40 + "to": "gopher_below_avg_threshold",
        "the and internationali " * 40: "",
        "the and internationali " * 40 + "internationali": "",
        "the " + "internationalisations and " * 40: "gopher_above_avg_threshold",
    }
    for text, reason in cases.items():
        rule = FILTERS["gopher_quality"](text)[1]
        expected = REFERENCES["gopher_quality"].filter(Document(text=text, id=""))
        assert (expected[1] if isinstance(expected, tuple) else "") == reason, text[:50]
        assert reason in REASONS[rule] if rule else not reason


def test_the_numbers_of_gopher() -> None:
    """Rae et al. 2021, table A1."""
    bounds = {rule.name: rule.high for rule in GOPHER_REPETITION}
    assert list(bounds.values()) == [0.3, 0.2, 0.3, 0.2, 0.2, 0.18, 0.16, 0.15, 0.14, 0.13, 0.12, 0.11, 0.1]
