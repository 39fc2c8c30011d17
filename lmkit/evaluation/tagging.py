"""Scores of tagged words: of whole entities where tags have prefixes, else of each word."""

import re
from collections.abc import Iterable, Sequence
from typing import Literal

import numpy as np

from lmkit.data.tables.labels import as_iob2
from lmkit.evaluation.classification import ClassScore, class_scores, divide
from lmkit.evaluation.intervals import Estimate, resampled

Scheme = Literal["iob1", "iob2", "bioes", "bilou", "bmes", "words"]
Entity = tuple[str, int, int]  # type, first word, word after the last
PREFIXED = re.compile(r"[BIESLUM]-.")
PREFIXES: dict[Scheme, str] = {"iob1": "I", "iob2": "BI", "bioes": "BIES", "bilou": "BILU", "bmes": "BMES"}
AS_BIOES = {
    "bilou": {"L": "E", "U": "S"},
    "bmes": {"M": "I"},
}  # the letters of BIOES for other schemes' letters


def scheme(tags: Iterable[str]) -> Scheme:
    """Returns the scheme by which all these tags write entities.

    IOB2 is B-X I-X*; BIOES is S-X or B-X I-X* E-X; BILOU and BMES are the same as BIOES with other letters. It is IOB1
    where I- is the only prefix. It is `words` where a tag other than O has no such prefix, where the prefixes belong to
    no single scheme, and where all tags are O."""
    named = set(tags) - {"O"}
    if not named or not all(PREFIXED.match(tag) for tag in named):
        return "words"
    used = {tag[0] for tag in named}
    return next((name for name, prefixes in PREFIXES.items() if used <= set(prefixes)), "words")


def _uniform(tags: Sequence[str], written: Scheme) -> Sequence[str]:
    """Returns the tags in IOB2, or in BIOES for schemes that mark ends."""
    letters = AS_BIOES.get(written, {})
    renamed = [letters.get(tag[0], tag[0]) + tag[1:] if tag else tag for tag in tags] if letters else tags
    return as_iob2(renamed) if written == "iob1" else renamed


def entities(tags: Sequence[str], bioes: bool = False) -> set[Entity]:
    """Returns the entities of one sentence.

    Only well-formed entities count, as in seqeval's strict mode (Nakayama 2018): in IOB2 an I-X that does not follow an
    X is ignored, and in BIOES also a B-X without its E-X."""
    # `start` is the first word of the open entity, whose type is that of the tag before.
    complete, start = set[Entity](), None
    for i, tag in enumerate([*tags, "O"]):
        prefix, _, kind = tag.partition("-")
        goes_on = start is not None and prefix in ("IE" if bioes else "I") and kind == tags[start][2:]
        if start is not None and not goes_on:
            if not bioes:
                complete.add((tags[start][2:], start, i))
            start = None
        if bioes and (prefix == "S" or (goes_on and prefix == "E")):
            complete.add((kind, i if start is None else start, i + 1))
            start = None
        elif prefix == "B":
            start = i
    return complete


def entities_in(tags: Sequence[str], written: Scheme) -> set[Entity]:
    """Returns the entities of one sentence, in whatever scheme its tags are written."""
    return entities(_uniform(tags, written), written not in ("iob1", "iob2"))


def score_tags(
    gold: Sequence[Sequence[str]],
    predicted: Sequence[Sequence[str]],
    intervals: bool = True,
    tags: Iterable[str] | None = None,
) -> dict[str, Estimate]:
    """Returns f1, precision and recall of entities (0 where there are none) and the accuracy of words.

    Without prefixes it returns accuracy and macro_f1 of words, over the tags that occur as label or prediction.
    Intervals are over sentences. tags: all tags of the task, which show how entities are written; None: the tags that
    occur here. Raises ValueError where a sentence and its prediction differ in length."""
    pairs = list(zip(gold, predicted, strict=True))
    seen = sorted({tag for pair in pairs for row in pair for tag in row})
    written = scheme(seen if tags is None else tags)
    words = np.array([[sum(map(str.__eq__, g, p)), len(g)] for g, p in pairs], float)  # (N, 2)
    if any(len(g) != len(p) for g, p in pairs):
        raise ValueError("a sentence and its prediction differ in length")
    _, table = _counts(pairs, written)
    if written != "words":
        table = table.sum(2, keepdims=True)

    def statistic(weights: np.ndarray) -> dict[str, float]:
        right, total = weights @ words
        hits, actual, guessed = np.tensordot(weights, table, 1)
        f1 = divide(2 * hits, actual + guessed)
        accuracy = {"accuracy": right / total if total else float("nan")}
        if written == "words":
            occurring = actual + guessed > 0
            return accuracy | {"macro_f1": f1[occurring].mean() if occurring.any() else float("nan")}
        return {"f1": f1[0], "precision": divide(hits, guessed)[0], "recall": divide(hits, actual)[0]} | accuracy

    return resampled(statistic, len(pairs), intervals)


def score_types(
    gold: Sequence[Sequence[str]], predicted: Sequence[Sequence[str]], tags: Iterable[str]
) -> dict[str, ClassScore]:
    """Returns the scores of each type of entity, by its name; without prefixes of each tag. tags: all of the task."""
    names, table = _counts(list(zip(gold, predicted, strict=True)), scheme(tags))
    return dict(zip(names, class_scores(*table.sum(0)), strict=True))


def _counts(pairs: Sequence[tuple[Sequence[str], Sequence[str]]], written: Scheme) -> tuple[list[str], np.ndarray]:
    """Returns the types of entities, in `words` the tags, and of each sentence how many of each are right, there, and
    predicted: (N, 3, types)."""

    def units(row: Sequence[str]) -> set[Entity]:
        return {(tag, i, i + 1) for i, tag in enumerate(row)} if written == "words" else entities_in(row, written)

    both = [(units(gold), units(said)) for gold, said in pairs]
    place = {name: i for i, name in enumerate(sorted({kind for g, p in both for kind, _, _ in g | p}))}
    table = np.zeros((len(pairs), 3, len(place)))
    for n, (g, p) in enumerate(both):
        for row, found in enumerate((g & p, g, p)):
            for kind, _, _ in found:
                table[n, row, place[kind]] += 1
    return list(place), table
