"""Which fact a question asks for: names folded alike, words of the question against relations, and an honest score.

Nothing here touches the database: `lmkit.kb.knowledge_base` finds the options, this says how good each of them is."""

import math
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from hashlib import blake2b
from itertools import pairwise
from typing import Any

import numpy as np

# Words; single signs of scripts without spaces (so that names inside a sentence are found); signs that names are told
# apart by (C, C++, C#, C--); emoji. Other punctuation separates.
TOKEN = re.compile(
    r"[\u3040-\u30ff\u3400-\u9fff]|[^\W_\u3040-\u30ff\u3400-\u9fff]+|[+#&\u2600-\u27bf\U0001f000-\U0001faff]"
    r"|(?<=\w)--(?!\w)"
)
SIGNS = frozenset(("+", "#", "&", "♯", "♭", "--"))
JOINERS = re.compile(r"[-._\u2010-\u2013]")  # between words without spaces
CAMEL = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")
ENDINGS = (("ies", "y"), ("ing", ""), ("es", ""), ("ed", ""), ("s", ""))
STOP_WORDS = """
    a about all also am an and any are as at be been being but by can could did do does doing for from had has have he
    her him his how i if in into is it its itself me my name named no not of on or our over please s she should so some
    tell than that the their them then there these they this those to under up us was we were what when where which
    who whom whose why will with would you your
"""
STOP = frozenset(STOP_WORDS.split())
SLOT = "§"  # stands where the question names the subject


def tokens(text: str) -> list[str]:
    """The words of a text, without case and accents."""
    return TOKEN.findall(_plain(text).casefold())


def _plain(text: str) -> str:
    """Without accents."""
    if not text.isascii():
        text = "".join(c for c in unicodedata.normalize("NFKD", text) if unicodedata.category(c) != "Mn")
        text = unicodedata.normalize("NFC", text)
    return text


def compounds(text: str) -> list[tuple[int, int]]:
    """Which of its `tokens` are written as one: (first, behind the last) of `Guinea-Bissau`, `C#`, `Node.js`, `AT&T`.
    A name that is a part of one names something else."""
    plain, found, start = _plain(text), list[tuple[int, int]](), 0
    words = list(TOKEN.finditer(plain))
    for i in range(1, len(words) + 1):
        joined = False
        if i < len(words):
            last, word, between = words[i - 1][0], words[i][0], plain[words[i - 1].end() : words[i].start()]
            joined = JOINERS.fullmatch(between) is not None and last.isalnum() and word.isalnum()
            joined |= not between and (word in SIGNS or (last in SIGNS and i - start > 1))
        if not joined:
            if i - start > 1:
                found.append((start, i))
            start = i
    return found


def proper_names(text: str) -> list[tuple[int, int]]:
    """Which of its `tokens` are capitalised side by side: (first, behind the last) of `New Guinea`. None where a text
    begins every word so, and never the first word of the text, which is capitalised whatever it is."""
    plain, found = _plain(text), list[tuple[int, int]]()
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
                found += [(start, i)] if i - start > 1 else []
                start = i
    return found


def same_compounds(a: str, b: str) -> bool:
    """Whether what either text writes as one stands in the other, its words side by side."""
    pairs = ((a, f" {' '.join(tokens(b))} "), (b, f" {' '.join(tokens(a))} "))
    return all(f" {' '.join(tokens(text)[i:j])} " in other for text, other in pairs for i, j in compounds(text))


def fold(name: str) -> str:
    """What two spellings of a name have in common."""
    return " ".join(tokens(name)) or name.strip().casefold()


def key_of(folded: str) -> int:
    """64 bits that stand for a folded name in the index; whoever looks up compares the names as well."""
    digest = blake2b(folded.encode(errors="surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big", signed=True)


@lru_cache(maxsize=1 << 16)
def stem(word: str) -> str:
    """Without common English endings: enough for `currencies` to meet `currency`."""
    for ending, instead in ENDINGS:
        if word.endswith(ending) and len(word) - len(ending) >= 3:
            word = word.removesuffix(ending) + instead
            break
    return word.removesuffix("e") if len(word) > 3 else word  # `placed`, `places` and `place` alike


def content(words: Sequence[str]) -> frozenset[str]:
    """Stems of the words that say something; of all words where none does."""
    return frozenset(stem(w) for w in words if w not in STOP) or frozenset(map(stem, words))


def relation_words(name: str) -> frozenset[str]:
    """`placeOfBirth`, `place_of_birth` and `http://example.org/ns#placeOfBirth` alike."""
    return content(tokens(CAMEL.sub(" ", re.split(r"[/#:]", name.rstrip("/#:"))[-1])))


@dataclass(frozen=True)
class Option:
    """One way to answer: the objects of a relation of a subject that the question names, or the answer of a fact."""

    start: int  # the words that name the subject, from here
    end: int  # to before here
    subject: str
    relation: str
    objects: tuple[str, ...]
    source: str  # file and line of the first
    wordings: tuple[frozenset[str], ...]  # of the relation: its name, and phrases declared for it
    exact: bool  # the question writes the name as the knowledge base does, case and accents too
    shared: int  # how many subjects that name stands for
    likeness: float = 0.0  # of a fact's question to this one; 0 for triples


@dataclass(frozen=True)
class Lookup:
    answer: str  # several objects are joined by commas
    score: float  # in [0, 1]
    evidence: str
    source: str
    objects: tuple[str, ...]


def grams(words: Sequence[str], start: int, end: int) -> set[str]:
    """Stems and pairs of neighbours of what the question says about its subject."""
    rest = ["^", *map(stem, words[:start]), SLOT, *map(stem, words[end:]), "$"]
    return {w for w in rest if w not in ("^", SLOT, "$")} | {f"{a} {b}" for a, b in pairwise(rest)}


FEATURES = {  # name: weight before anything was fitted
    "bias": -5.0,
    "named": 4.0,  # share of the relation's words that the question has
    "naming": 2.0,  # share of the question's other words that the relation has
    "learnt": 2.0,  # log-odds of this relation by the question's words, out of the questions it was fitted on
    "ahead": 1.0,  # by how much these odds beat those of the subject's other relations
    "known": 0.0,  # share of the question's words that those questions had
    "rare": 0.0,  # how seldom those questions use the subject's words for other things
    "covered": 0.0,  # share of the question's words that name the subject
    "exact": 1.0,
    "alone": 1.0,  # one by the number of subjects with that name
    "fact": -2.0,  # it is a question with its answer, and no triple
    "likeness": 12.0,
}


@dataclass
class Matcher:
    """Scores options by logistic regression. What was counted in labelled questions comes with it."""

    weights: list[float] = field(default_factory=lambda: list(FEATURES.values()))
    questions: int = 0  # counted
    seen: dict[str, float] = field(default_factory=dict)  # in how many of them a gram was
    asked: dict[str, float] = field(default_factory=dict)  # how many of them asked for each relation
    said: dict[str, dict[str, float]] = field(default_factory=dict)  # relation -> gram -> in how many of these

    @classmethod
    def learn(cls, cases: Sequence[tuple[list[str], list[Option], Sequence[bool]]]) -> "Matcher":
        """Counts, with the weights as they were before. cases: the words of a question, its options, which are right.
        Questions with no right option count as asking for something else."""
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
        """(options, features)."""
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
        """Naive Bayes: how much likelier the words are where this relation is asked for than in any question. Words
        that were never seen say nothing."""
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
        """(options,) in [0, 1]."""
        return 1 / (1 + np.exp(-np.clip(self.features(words, options) @ np.array(self.weights), -50, 50)))

    def as_json(self) -> dict[str, Any]:
        return asdict(self)
