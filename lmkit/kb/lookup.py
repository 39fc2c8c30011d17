"""Scores which fact a question asks for, by comparing its names with subjects and its other words with relations.

Nothing here uses the database: `lmkit.kb.knowledge_base` finds the options, and this module scores them."""

import math
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import lru_cache, partial
from hashlib import blake2b
from itertools import pairwise
from typing import Any

import numpy as np

# A token is a word; a single character of a script without spaces, so that names inside a sentence are found; a sign
# that distinguishes names (C, C++, C#, C--); or an emoji. Other punctuation separates tokens.
# Thai, Lao, Tibetan, Burmese, Khmer, kana, Chinese characters; and Hangul, whose particles have no space before them
UNSPACED = (
    "\u0e00-\u0fff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af\uf900-\ufaff\U00020000-\U0002fa1f"
)
TOKEN = re.compile(
    rf"[{UNSPACED}]|[^\W_{UNSPACED}]+|[+#&\u2600-\u27bf\U0001f000-\U0001faff]"
    r"|(?<=\w)--(?!\w)"
)
THOUSANDS = re.compile(r"(?<=\d)[,\u00a0\u202f'’](?=\d{3}(?!\d))")
MONTHS = {
    "january": 1, "february": 2, "march": 3, "april": 4, "may": 5, "june": 6, "july": 7, "august": 8, "september": 9,
    "october": 10, "november": 11, "december": 12,
}  # fmt: skip
_MONTH = f"({'|'.join([*MONTHS, *(month[:3] for month in MONTHS)])})\\.?"
DATES = (  # 4 July 1776, the 4th of July 1776; July 4, 1776; 4.7.1776
    (re.compile(rf"\b(\d{{1,2}})(?:st|nd|rd|th)?(?: of)? {_MONTH},? (\d{{4}})\b", re.IGNORECASE), (2, 1, 0)),
    (re.compile(rf"\b{_MONTH} (\d{{1,2}})(?:st|nd|rd|th)?,? (\d{{4}})\b", re.IGNORECASE), (2, 0, 1)),
    (re.compile(r"\b(\d{1,2})\. ?(\d{1,2})\. ?(\d{4})\b"), (2, 1, 0)),
)
UNSPACED_CHARACTER = re.compile(f"[{UNSPACED}]")
SIGNS = frozenset(("+", "#", "&", "♯", "♭", "--"))
JOINERS = re.compile(r"[-._\u2010-\u2013]")  # signs that join words without spaces
CAMEL = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")
ENDINGS = (("ies", "y"), ("ing", ""), ("es", ""), ("ed", ""), ("s", ""))
STOP_WORDS = """
    a about all also am an and any are as at be been being but by can could did do does doing for from had has have he
    her him his how i if in into is it its itself me my name named no not of on or our over please s she should so some
    tell than that the their them then there these they this those to under up us was we were what when where which
    who whom whose why will with would you your
"""
STOP = frozenset(STOP_WORDS.split())
SLOT = "§"  # takes the place of the subject's name in a question


def tokens(text: str) -> list[str]:
    """Returns the tokens of a text, without case and accents."""
    return TOKEN.findall(_plain(text).casefold())


def _plain(text: str) -> str:
    """Returns the text without accents, with dates as 1776-07-04 and numbers without signs between thousands."""
    text = THOUSANDS.sub("", text)
    for pattern, order in DATES:
        text = pattern.sub(partial(_iso_date, order), text)
    if not text.isascii():
        text = "".join(c for c in unicodedata.normalize("NFKD", text) if unicodedata.category(c) != "Mn")
        text = unicodedata.normalize("NFC", text)
    return text


def _iso_date(order: tuple[int, int, int], match: re.Match[str]) -> str:
    """Returns a date as ISO 8601 writes it. order: which group is the year, the month and the day."""
    year, month, day = (match[1 + i].casefold() for i in order)
    number = next((n for name, n in MONTHS.items() if name.startswith(month)), month)
    return f"{year}-{number:0>2}-{day:0>2}"


def spaced(text: str | None) -> str:
    """Returns the text with spaces around each character of scripts that write none, for a full-text index."""
    return UNSPACED_CHARACTER.sub(r" \g<0> ", text or "")


def compounds(text: str) -> list[tuple[int, int]]:
    """Returns which `tokens` of a text are written as one word, as (first, last + 1).

    Examples are `Guinea-Bissau`, `C#`, `Node.js` and `AT&T`. A name that is a part of such a word means something
    else."""
    plain, spans, start = _plain(text), list[tuple[int, int]](), 0
    words = list(TOKEN.finditer(plain))
    for i in range(1, len(words) + 1):
        joined = False
        if i < len(words):
            last, word, between = words[i - 1][0], words[i][0], plain[words[i - 1].end() : words[i].start()]
            joined = JOINERS.fullmatch(between) is not None and last.isalnum() and word.isalnum()
            joined |= not between and (word in SIGNS or (last in SIGNS and i - start > 1))
        if not joined:
            if i - start > 1:
                spans.append((start, i))
            start = i
    return spans


def proper_names(text: str) -> list[tuple[int, int]]:
    """Returns which neighbouring `tokens` of a text are capitalised, like `New Guinea`, as (first, last + 1).

    There are none where a text capitalises every word. The first word of the text never counts, since it is always
    capitalised."""
    plain, spans = _plain(text), list[tuple[int, int]]()
    words = list(TOKEN.finditer(plain))
    meaning = [word[0] for word in words if word[0].casefold() not in STOP]
    start = 0
    if any(word.islower() for word in meaning):
        for i in range(1, len(words) + 1):
            last = words[i - 1][0]
            named = i > 1 and last[0].isupper() and last.casefold() not in STOP
            blank = i < len(words) and plain[words[i - 1].end() : words[i].start()] == " "
            if not named:
                start = i
            elif not (blank and words[i][0][0].isupper() and words[i][0].casefold() not in STOP):
                spans += [(start, i)] if i - start > 1 else []
                start = i
    return spans


def same_compounds(a: str, b: str) -> bool:
    """Says whether the words that each text writes as one are neighbours in the other text too."""
    pairs = ((a, f" {' '.join(tokens(b))} "), (b, f" {' '.join(tokens(a))} "))
    return all(f" {' '.join(tokens(text)[i:j])} " in other for text, other in pairs for i, j in compounds(text))


def fold(name: str) -> str:
    """Returns a form of a name that is the same for its different spellings: without case, accents and punctuation."""
    return " ".join(tokens(name)) or name.strip().casefold()


def key_of(folded: str) -> int:
    """Returns a number of 64 bits for a folded name, for the index. Two names may share one, so callers must compare
    the names too."""
    digest = blake2b(folded.encode(errors="surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big", signed=True)


@lru_cache(maxsize=1 << 16)
def stem(word: str) -> str:
    """Returns a word without common English endings, so that `currencies` and `currency` are the same."""
    for ending, instead in ENDINGS:
        if word.endswith(ending) and len(word) - len(ending) >= 3:
            word = word.removesuffix(ending) + instead
            break
    return word.removesuffix("e") if len(word) > 3 else word  # makes `placed`, `places` and `place` the same


def content(words: Sequence[str]) -> frozenset[str]:
    """Returns the stems of the words that are no function words; of all words where there are no others."""
    return frozenset(stem(w) for w in words if w not in STOP) or frozenset(map(stem, words))


def relation_words(name: str) -> frozenset[str]:
    """Returns the words of a relation's name.

    They are the same for `placeOfBirth`, `place_of_birth` and `http://example.org/ns#placeOfBirth`."""
    return content(tokens(CAMEL.sub(" ", re.split(r"[/#:]", name.rstrip("/#:"))[-1])))


@dataclass(frozen=True)
class Option:
    """A possible answer: the objects of one relation of a subject that the question names, or the answer of a fact."""

    start: int  # the first word of the subject's name in the question
    end: int  # the word after its last
    subject: str
    relation: str
    objects: tuple[str, ...]
    source: str  # file and line of the first object
    wordings: tuple[frozenset[str], ...]  # words of the relation's name, and of each phrase for it
    exact: bool  # whether the question writes the name exactly as the knowledge base, with case and accents
    shared: int  # the number of subjects with that name
    likeness: float = 0.0  # how similar the question of a fact is to this one; 0 for triples


@dataclass(frozen=True)
class Lookup:
    answer: str  # several objects are joined by commas
    score: float  # in [0, 1]
    evidence: str
    source: str
    objects: tuple[str, ...]


def grams(words: Sequence[str], start: int, end: int) -> set[str]:
    """Returns the stems, and pairs of neighbouring stems, of a question without its subject's name."""
    rest = ["^", *map(stem, words[:start]), SLOT, *map(stem, words[end:]), "$"]
    return {w for w in rest if w not in ("^", SLOT, "$")} | {f"{a} {b}" for a, b in pairwise(rest)}


FEATURES = {  # the weight of each feature before anything is fitted
    "bias": -5.0,
    "named": 4.0,  # share of the relation's words that the question has
    "naming": 2.0,  # share of the question's words, without the subject's name, that the relation has
    "learnt": 2.0,  # log-odds of this relation given the question's words, counted in the training questions
    "ahead": 1.0,  # the difference to the best log-odds of the subject's other relations
    "known": 0.0,  # share of the question's words that occur in the training questions
    "rare": 0.0,  # how rarely the training questions use the words of the subject's name for other things
    "covered": 0.0,  # share of the question's words that name the subject
    "exact": 1.0,
    "alone": 1.0,  # 1 / number of subjects with that name
    "fact": -2.0,  # 1 for a question with its answer, 0 for a triple
    "likeness": 12.0,
}


@dataclass
class Matcher:
    """Scores options by logistic regression. It also holds counts of the questions that it was trained on."""

    weights: list[float] = field(default_factory=lambda: list(FEATURES.values()))
    questions: int = 0  # the number of training questions
    seen: dict[str, float] = field(default_factory=dict)  # gram -> in how many questions it occurs
    asked: dict[str, float] = field(default_factory=dict)  # relation -> how many questions asked for it
    said: dict[str, dict[str, float]] = field(default_factory=dict)  # relation -> gram -> in how many of its questions

    @classmethod
    def learn(cls, cases: Sequence[tuple[list[str], list[Option], Sequence[bool]]]) -> "Matcher":
        """Returns a matcher with the counts of these questions and the weights of `FEATURES`.

        cases: for each question its words, its options, and which of these are right. A question without a right option
        counts as one that asks for something else."""
        seen, asked, said = Counter[str](), Counter[str](), dict[str, Counter[str]]()
        for words, options, right in cases:
            hits = [o for o, ok in zip(options, right, strict=True) if ok and not o.likeness]
            meant = hits or sorted(options, key=lambda o: o.start - o.end)[:1]
            about = {g for o in meant for g in grams(words, o.start, o.end)} or grams(words, 0, 0)
            seen.update(about)
            for o in hits:  # several right relations share one question
                asked[o.relation] += 1 / len(hits)  # type: ignore[assignment]
                bag = said.setdefault(o.relation, Counter())
                for gram in grams(words, o.start, o.end):
                    bag[gram] += 1 / len(hits)  # type: ignore[assignment]
        return cls(questions=len(cases), seen=dict(seen), asked=dict(asked), said={r: dict(c) for r, c in said.items()})

    def features(self, words: list[str], options: Sequence[Option]) -> np.ndarray:
        """Returns the features of each option, (options, features)."""
        return np.array(list(self._features(words, options))).reshape(-1, len(FEATURES))

    def _features(self, words: list[str], options: Sequence[Option]) -> Iterator[list[float]]:
        odds = [self._odds(words, o) for o in options]
        everything = content(words)
        for i, o in enumerate(options):
            if o.likeness:
                yield [1.0, *[0.0] * 9, 1.0, o.likeness]
                continue
            rest = frozenset(stem(w) for w in (*words[: o.start], *words[o.end :]) if w not in STOP)
            others = [
                odds[j] for j, other in enumerate(options)
                if (other.start, other.end) == (o.start, o.end) and other.relation != o.relation and not other.likeness
            ]  # fmt: skip
            named = max(len(w & rest) / len(w) for w in o.wordings)
            naming = max(len(w & rest) for w in o.wordings) / len(rest) if rest else 0.0
            known = sum(w in self.seen for w in rest) / len(rest) if rest and self.questions else 0.0
            covered = len(content(words[o.start : o.end])) / max(len(everything), 1)
            ahead = odds[i] - max(others, default=0.0)
            yield [
                1.0, named, naming, math.tanh(odds[i] / 4), math.tanh(ahead / 4), known, self._rare(words, o),
                min(covered, 1.0), float(o.exact), 1 / o.shared, 0.0, 0.0,
            ]  # fmt: skip

    def _odds(self, words: list[str], o: Option) -> float:
        """Returns the log of how much likelier the words are in questions for this relation than in any question.

        This is naive Bayes. Words that were never seen do not count."""
        if o.likeness or o.relation not in self.asked:
            return 0.0
        total, n, bag = 0.0, self.asked[o.relation], self.said[o.relation]
        for gram in grams(words, o.start, o.end):
            if count := self.seen.get(gram, 0.0):
                usual = count / self.questions
                total += math.log((bag.get(gram, 0.0) + usual) / (n + 1) / usual)
        return total

    def _rare(self, words: list[str], o: Option) -> float:
        if not self.questions:
            return 1.0
        count = min((self.seen.get(stem(w), 0.0) for w in words[o.start : o.end]), default=0.0)
        return -math.log((count + 1) / (self.questions + 1)) / math.log(self.questions + 1)

    def scores(self, words: list[str], options: Sequence[Option]) -> np.ndarray:
        """Returns the score of each option, (options,), from 0 to 1."""
        return 1 / (1 + np.exp(-np.clip(self.features(words, options) @ np.array(self.weights), -50, 50)))

    def as_json(self) -> dict[str, Any]:
        return asdict(self)
