"""Scores of tagged words: entities as wholes where tags have prefixes, else every word."""

import re
from collections.abc import Iterable, Sequence
from typing import Literal

import numpy as np

from lmkit.data.tables.labels import as_iob2
from lmkit.evaluation.classification import divide
from lmkit.evaluation.intervals import Estimate, resampled

Scheme = Literal["iob1", "iob2", "bioes", "bilou", "bmes", "words"]
Entity = tuple[str, int, int]  # type, first word, word after the last
PREFIXED = re.compile(r"[BIESLUM]-.")
PREFIXES: dict[Scheme, str] = {"iob1": "I", "iob2": "BI", "bioes": "BIES", "bilou": "BILU", "bmes": "BMES"}
AS_BIOES = {
    "bilou": {"L": "E", "U": "S"},
    "bmes": {"M": "I"},
}  # what begins, ends and stands alone, under other letters


def scheme(tags: Iterable[str]) -> Scheme:
    """How entities are written, out of all tags there are: IOB2 is B-X I-X*, BIOES is S-X or B-X I-X* E-X, BILOU and
    BMES the same in other letters; IOB1 where I- is the only prefix. `words` where any tag but O has no such prefix,
    where prefixes are of no one scheme, or where O is all there is."""
    named = set(tags) - {"O"}
    if not named or not all(PREFIXED.match(tag) for tag in named):
        return "words"
    used = {tag[0] for tag in named}
    return next((name for name, prefixes in PREFIXES.items() if used <= set(prefixes)), "words")


def _uniform(tags: Sequence[str], written: Scheme) -> Sequence[str]:
    """In IOB2, or in BIOES."""
    letters = AS_BIOES.get(written, {})
    renamed = [letters.get(tag[0], tag[0]) + tag[1:] if tag else tag for tag in tags] if letters else tags
    return as_iob2(renamed) if written == "iob1" else renamed


def entities(tags: Sequence[str], bioes: bool = False) -> set[Entity]:
    """Entities of one sentence. Only well-formed ones count, as in seqeval's strict mode (Nakayama 2018): in IOB2 an
    I-X that follows no X is nothing; in BIOES neither is a B-X without its E-X."""
    found, start = set[Entity](), None  # start: of the entity that is open, whose type the tag before has
    for i, tag in enumerate([*tags, "O"]):
        prefix, _, kind = tag.partition("-")
        goes_on = start is not None and prefix in ("IE" if bioes else "I") and kind == tags[start][2:]
        if start is not None and not goes_on:
            if not bioes:
                found.add((tags[start][2:], start, i))
            start = None
        if bioes and (prefix == "S" or (goes_on and prefix == "E")):
            found.add((kind, i if start is None else start, i + 1))
            start = None
        elif prefix == "B":
            start = i
    return found


def score(
    gold: Sequence[Sequence[str]],
    predicted: Sequence[Sequence[str]],
    intervals: bool = True,
    tags: Iterable[str] | None = None,
) -> dict[str, Estimate]:
    """f1, precision and recall of entities (0 where there are none) and accuracy of words; without prefixes accuracy
    and macro_f1 of words, over the tags that are there or predicted. Intervals are over sentences.

    tags: all there are, which say how entities are written; None: those seen here."""
    pairs = list(zip(gold, predicted, strict=True))
    seen = sorted({tag for pair in pairs for row in pair for tag in row})
    written = scheme(seen if tags is None else tags)
    words = np.array([[sum(map(str.__eq__, g, p)), len(g)] for g, p in pairs], float)  # (N, 2)
    if any(len(g) != len(p) for g, p in pairs):
        raise ValueError("a sentence and its prediction differ in length")
    if written == "words":
        place = {tag: i for i, tag in enumerate(seen)}
        counts = [_tag_counts(g, p, place) for g, p in pairs]
    else:
        bioes = written not in ("iob1", "iob2")
        found = [[entities(_uniform(row, written), bioes) for row in pair] for pair in pairs]
        counts = [np.array([[len(g & p)], [len(g)], [len(p)]]) for g, p in found]
    table = np.array(counts, float)  # (N, 3, classes): hits, there, predicted

    def statistic(weights: np.ndarray) -> dict[str, float]:
        right, total = weights @ words
        hits, there, said = np.tensordot(weights, table, 1)
        f1 = divide(2 * hits, there + said)
        accuracy = {"accuracy": right / total if total else float("nan")}
        if written == "words":
            some = there + said > 0
            return accuracy | {"macro_f1": f1[some].mean() if some.any() else float("nan")}
        return {"f1": f1[0], "precision": divide(hits, said)[0], "recall": divide(hits, there)[0]} | accuracy

    return resampled(statistic, len(pairs), intervals)


def _tag_counts(gold: Sequence[str], predicted: Sequence[str], place: dict[str, int]) -> np.ndarray:
    """(3, tags): words right, words that have a tag, words predicted to."""
    counts = np.zeros((3, len(place)))
    for g, p in zip(gold, predicted, strict=True):
        counts[0, place[g]] += g == p
        counts[1, place[g]] += 1
        counts[2, place[p]] += 1
    return counts
