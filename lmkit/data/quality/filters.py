"""Published heuristics for the quality of web texts: pure functions of a text, with the thresholds of their papers.

`gopher_quality` and `gopher_repetition`: Rae et al. 2021, section A.1 and table A1. `c4`: Raffel et al. 2020, section
2.2, with the rules that only its code has. `fineweb`: Penedo et al. 2024, section 3.6. Words lie between spaces."""

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache, cached_property, partial
from typing import NamedTuple

STOP_WORDS = frozenset(("the", "be", "to", "of", "and", "that", "have", "with"))
ELLIPSES = ("...", "…")
BULLETS = ("•", "-")
SENTENCE_ENDS = tuple(".?!。？！．｡؟۔।॥։።፧។៕၊။")  # of line ends, in the scripts that are written most
SHORT_LINE = 30  # characters
C4_LINE_ENDS = (".", "?", "!", '"', "'")
C4_MOST_CHARS = 1000  # of a word
C4_SENTENCES = 5
C4_WORDS = 3  # of a line
C4_CITATION = re.compile(r"\[\d*]|\[edit]|\[citation needed]")
C4_POLICY = ("terms of use", "privacy policy", "cookie policy", "uses cookies", "use of cookies", "use cookies")
SENTENCE_END = re.compile(r"[.!?]+[\"'”’)\]]*(?=\s|$)")


@cache
def is_punctuation(character: str) -> bool:
    """Returns whether a character is punctuation, a control character, or one of a few signs of ASCII."""
    return unicodedata.category(character)[0] in "PC" or character in "^`|~=<>+$"


@dataclass(frozen=True)
class Parts:
    """A text that is not blank, and what rules look at in it."""

    text: str

    @cached_property
    def words(self) -> list[str]:
        return self.text.split()

    @cached_property
    def real_words(self) -> list[str]:
        """The words that are not punctuation alone."""
        return [word for word in self.words if not all(map(is_punctuation, word))]

    @cached_property
    def lines(self) -> list[str]:
        return self.text.splitlines()

    @cached_property
    def full_lines(self) -> list[str]:
        """The lines that are not blank."""
        return [line for line in self.text.split("\n") if line.strip()]


class Rule(NamedTuple):
    """What a text is measured by, and the bounds between which the measure lies in a text that stays."""

    name: str
    measure: Callable[[Parts], float]
    low: float = float("-inf")
    high: float = float("inf")


def share(values: Iterable[object]) -> float:
    """Returns the share of values that are true; 0 of none."""
    flags = [bool(value) for value in values]
    return sum(flags) / max(len(flags), 1)


def _repeats(pieces: list[str]) -> list[str]:
    """Returns the pieces that repeat an earlier one."""
    seen, repeats = set[str](), []
    for piece in pieces:
        if piece in seen:
            repeats.append(piece)
        seen.add(piece)
    return repeats


def _repeated(cut: str, characters: bool, parts: Parts) -> float:
    """Returns the share of lines, or paragraphs, that repeat an earlier one; or the share of characters in them."""
    pieces = re.split(cut, parts.text.strip() if cut == PARAGRAPHS else parts.text)
    repeats = _repeats(pieces)
    return sum(map(len, repeats)) / len(parts.text) if characters else len(repeats) / len(pieces)


def _ngrams(n: int, parts: Parts) -> list[tuple[str, ...]]:
    return list(zip(*(parts.words[i:] for i in range(n)), strict=False))


def _top_ngram(n: int, parts: Parts) -> float:
    """Returns the share of characters in the n-gram that is most frequent, blanks between its words included."""
    counts = Counter(_ngrams(n, parts)).most_common(1)
    return sum(len(" ".join(gram)) * count for gram, count in counts) / len(parts.text)


def _repeated_ngrams(n: int, parts: Parts) -> float:
    """Returns the share of characters in n-grams that repeat an earlier one; those counted do not overlap."""
    grams = _ngrams(n, parts)
    if len(set(grams)) == len(grams):
        return 0.0
    seen, characters, i = set[tuple[str, ...]](), 0, 0
    while i < len(grams):
        repeats = grams[i] in seen
        seen.add(grams[i])
        characters += sum(map(len, grams[i])) if repeats else 0
        i += n if repeats else 1
    return characters / len(parts.text)


LINES, PARAGRAPHS = "\n+", "\n{2,}"
GOPHER_QUALITY = (
    Rule("words", lambda p: len(p.real_words), 50, 100_000),
    Rule("mean length of words", lambda p: sum(map(len, p.real_words)) / max(len(p.real_words), 1), 3, 10),
    Rule("# a word", lambda p: p.text.count("#") / len(p.words), high=0.1),
    Rule("ellipses a word", lambda p: sum(map(p.text.count, ELLIPSES)) / len(p.words), high=0.1),
    Rule("lines with a bullet", lambda p: share(line.lstrip().startswith(BULLETS) for line in p.lines), high=0.9),
    Rule("lines that end in an ellipsis", lambda p: share(line.rstrip().endswith(ELLIPSES) for line in p.lines),
         high=0.3),
    Rule("words with a letter", lambda p: share(any(map(str.isalpha, word)) for word in p.words), 0.8),
    Rule("stop words", lambda p: len(STOP_WORDS.intersection(p.words)), 2),
)  # fmt: skip
GOPHER_REPETITION = (
    Rule("repeated paragraphs", partial(_repeated, PARAGRAPHS, False), high=0.3),
    Rule("characters in repeated paragraphs", partial(_repeated, PARAGRAPHS, True), high=0.2),
    Rule("repeated lines", partial(_repeated, LINES, False), high=0.3),
    Rule("characters in repeated lines", partial(_repeated, LINES, True), high=0.2),
    *(Rule(f"characters in the top {n}-gram", partial(_top_ngram, n), high=high)
      for n, high in ((2, 0.2), (3, 0.18), (4, 0.16))),
    *(Rule(f"characters in repeated {n}-grams", partial(_repeated_ngrams, n), high=high)
      for n, high in ((5, 0.15), (6, 0.14), (7, 0.13), (8, 0.12), (9, 0.11), (10, 0.1))),
)  # fmt: skip
FINEWEB = (
    Rule("lines that end in punctuation", lambda p: share(line.endswith(SENTENCE_ENDS) for line in p.full_lines), 0.12),
    Rule("short lines", lambda p: share(len(line) <= SHORT_LINE for line in p.full_lines), high=0.67),
    Rule("characters in repeated lines", lambda p: sum(map(len, _repeats(p.full_lines)))
         / len(p.text.replace("\n", "")), high=0.01),
    Rule("line ends a word", lambda p: p.text.count("\n") / len(p.words), high=0.3),
)  # fmt: skip


def by_rules(rules: tuple[Rule, ...], text: str) -> tuple[str, str]:
    """Returns the text, and the first rule that it breaks; "" where it keeps all."""
    parts = Parts(text)
    return text, next((rule.name for rule in rules if not rule.low <= rule.measure(parts) <= rule.high), "")


def c4(text: str) -> tuple[str, str]:
    """Returns the lines of a text that are prose, without citation marks, and the rule that the text breaks; "" where
    it keeps all. Sentences are counted by their ends."""
    lines, sentences = list[str](), 0
    for line in map(str.strip, text.splitlines()):
        words, line = line.split(), C4_CITATION.sub("", line)
        if len(words) < C4_WORDS or max(map(len, words)) > C4_MOST_CHARS:
            continue
        if not line.endswith(C4_LINE_ENDS) or line.endswith("..."):
            continue
        lower = line.lower()
        if "lorem ipsum" in lower:
            return text, "lorem ipsum"
        if "javascript" in lower:
            continue
        if "{" in line:
            return text, "curly bracket"
        if any(phrase in lower for phrase in C4_POLICY):
            continue
        lines.append(line)
        sentences += max(1, len(SENTENCE_END.findall(line)))
    return ("\n".join(lines).strip(), "") if sentences >= C4_SENTENCES else (text, "sentences")


FILTERS: dict[str, Callable[[str], tuple[str, str]]] = {
    "gopher_quality": partial(by_rules, GOPHER_QUALITY),
    "gopher_repetition": partial(by_rules, GOPHER_REPETITION),
    "c4": c4,
    "fineweb": partial(by_rules, FINEWEB),
}
