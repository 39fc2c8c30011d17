"""Scores of answers to questions, and the thresholds that decide when there is none. Shapes: N questions."""

import re
import string
from collections import Counter
from collections.abc import Sequence

import numpy as np

from lmkit.evaluation.intervals import Estimate, means

ARTICLES = re.compile(r"\b(a|an|the)\b")
PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalise(answer: str) -> str:
    """What is compared: lower case, without ASCII punctuation, articles and runs of spaces. As SQuAD's evaluate-v2.0.py
    (Rajpurkar et al. 2018), which is made for English."""
    return " ".join(ARTICLES.sub(" ", answer.lower().translate(PUNCTUATION)).split())


def exact_match(gold: str, predicted: str) -> float:
    return float(normalise(gold) == normalise(predicted))


def f1(gold: str, predicted: str) -> float:
    """Harmonic mean of the shares of words in common; with no answer on either side 1 if on both, else 0."""
    theirs, ours = normalise(gold).split(), normalise(predicted).split()
    if not theirs or not ours:
        return float(theirs == ours)
    return 2 * (Counter(theirs) & Counter(ours)).total() / (len(theirs) + len(ours))


def accepted(golds: Sequence[str]) -> list[str]:
    """Answers that count; "" alone where a question has none."""
    return [gold for gold in golds if normalise(gold)] or [""]


def best_of(golds: Sequence[str], predicted: str) -> tuple[float, float]:
    """(exact match, F1) of a prediction, each with the gold answer that suits it best; predicted "": no answer."""
    golds = accepted(golds)
    return max(exact_match(gold, predicted) for gold in golds), max(f1(gold, predicted) for gold in golds)


def score(golds: Sequence[Sequence[str]], predicted: Sequence[str], intervals: bool = True) -> dict[str, Estimate]:
    """exact_match and f1 of SQuAD 2.0, as shares of 1. golds: (N,) lists of accepted answers, [] or [""] where there is
    none; predicted: (N,), "" for no answer. Where some questions have no answer also has_answer_exact_match,
    has_answer_f1 and no_answer_accuracy, over the questions of that kind."""
    both = np.array([best_of(g, p) for g, p in zip(golds, predicted, strict=True)]).reshape(-1, 2)
    has = np.array([accepted(g) != [""] for g in golds], bool)
    scores = means({"exact_match": both[:, 0], "f1": both[:, 1]}, intervals)
    if not has.all():
        scores |= means({"no_answer_accuracy": both[~has, 0]}, intervals)
        if has.any():
            scores |= means({"has_answer_exact_match": both[has, 0], "has_answer_f1": both[has, 1]}, intervals)
    return scores


def best_threshold(
    null_minus_best: Sequence[float] | np.ndarray,
    answering: Sequence[float] | np.ndarray,
    silent: Sequence[float] | np.ndarray,
) -> tuple[float, float]:
    """(threshold, mean score under it): the questions whose `null_minus_best` is at most the threshold are answered.
    All (N,): how much likelier no answer is; the score of the best answer; the score of giving none.

    As `find_best_thresh` of SQuAD's evaluate-v2.0.py, where equal values are answered together. The smallest of equally
    good thresholds; just below all values where silence is best."""
    order, ends = _order(-np.asarray(null_minus_best, float))
    values = np.asarray(null_minus_best, float)[order]
    silent = np.asarray(silent, float)
    gains = (np.asarray(answering, float) - silent)[order].cumsum()[ends]
    best = int(np.argmax(gains >= gains.max() - 1e-9))  # the first of those that differ by rounding
    if gains[best] <= 1e-9:
        return float(np.nextafter(values[0], -np.inf)), float(silent.mean())
    return float(values[ends[best]]), float(silent.mean() + gains[best] / len(values))


def coverage_curve(
    scores: Sequence[float] | np.ndarray, right: Sequence[bool] | np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Selective accuracy: (thresholds, coverage, accuracy), highest threshold first, one entry a different score.

    coverage: the share of questions whose score is at least the threshold; accuracy: the share of these that are
    right. scores, right: (N,) of the answer to each question."""
    order, ends = _order(scores)
    hits = np.asarray(right, float)[order].cumsum()[ends]
    return np.asarray(scores, float)[order][ends], (ends + 1) / len(order), hits / (ends + 1)


def threshold_for_precision(
    scores: Sequence[float] | np.ndarray, right: Sequence[bool] | np.ndarray, precision: float
) -> float | None:
    """The smallest threshold whose answers, those with at least this score, are right in at least a share of
    `precision`; None if there is none. Chosen on these answers, it promises less for others: hold some out."""
    thresholds, _, accuracy = coverage_curve(scores, right)
    good = np.flatnonzero(accuracy >= precision - 1e-12)
    return float(thresholds[good[-1]]) if len(good) else None


def recall_at_k(
    ranks: Sequence[int | None], ks: Sequence[int] = (1, 5, 20), intervals: bool = True
) -> dict[str, Estimate]:
    """`recall@k`: the share of questions with a right passage among the first k. ranks: (N,) place of the first right
    passage, from 1; None: not found."""
    return means({f"recall@{k}": [float(r is not None and r <= k) for r in ranks] for k in ks}, intervals)


def _order(scores: Sequence[float] | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Indices (N,) from the highest score down, and the last place of each run of equal ones."""
    descending = -np.asarray(scores, float)
    order = np.argsort(descending, kind="stable")
    ordered = descending[order]
    return order, np.flatnonzero(np.append(ordered[1:] != ordered[:-1], len(ordered) > 0))
