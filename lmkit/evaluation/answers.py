"""Scores of answers to questions, and thresholds that decide when to give no answer. Shapes: N questions."""

import re
import string
import unicodedata
from collections import Counter
from collections.abc import Sequence

import numpy as np

from lmkit.evaluation.intervals import Estimate, means
from lmkit.evaluation.writing import CJK

ARTICLES = re.compile(r"\b(a|an|the)\b")
PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalise(answer: str) -> str:
    """Returns the answer as it is compared: in lower case, without ASCII punctuation, articles and runs of spaces.

    SQuAD's evaluate-v2.0.py (Rajpurkar et al. 2018), which is made for English, does the same. Where there is Chinese
    or Japanese, its characters are words, and all punctuation is left out, as the script of CMRC 2018 has it."""
    if re.search(f"[{CJK}]", answer):
        answer = "".join(c for c in answer if unicodedata.category(c)[0] != "P")
        answer = re.sub(f"([{CJK}])", r" \1 ", answer)
    return " ".join(ARTICLES.sub(" ", answer.lower().translate(PUNCTUATION)).split())


def exact_match(gold: str, predicted: str) -> float:
    return float(normalise(gold) == normalise(predicted))


def f1(gold: str, predicted: str) -> float:
    """Returns the harmonic mean of the shares of common words.

    Where one side is no answer, it is 1 if both are, else 0."""
    theirs, ours = normalise(gold).split(), normalise(predicted).split()
    if not theirs or not ours:
        return float(theirs == ours)
    return 2 * (Counter(theirs) & Counter(ours)).total() / (len(theirs) + len(ours))


def accepted(golds: Sequence[str]) -> list[str]:
    """Returns the answers that count as right; only "" where a question has none."""
    return [gold for gold in golds if normalise(gold)] or [""]


def best_of(golds: Sequence[str], predicted: str) -> tuple[float, float]:
    """Returns (exact match, F1) of a prediction, each with the gold answer that gives the highest score.

    A prediction of "" means no answer."""
    golds = accepted(golds)
    return max(exact_match(gold, predicted) for gold in golds), max(f1(gold, predicted) for gold in golds)


def score_answers(
    golds: Sequence[Sequence[str]], predicted: Sequence[str], intervals: bool = True
) -> dict[str, Estimate]:
    """Returns exact_match and f1 of SQuAD 2.0, from 0 to 1.

    golds: (N,) lists of accepted answers, [] or [""] where there is none; predicted: (N,), "" for no answer. Where some
    questions have no answer, it also returns has_answer_exact_match, has_answer_f1 and no_answer_accuracy, over the
    questions of that kind."""
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
    """Returns the best threshold and the mean score with it.

    Questions whose `null_minus_best` is at most the threshold are answered. null_minus_best: (N,) how much likelier no
    answer is than the best one; answering: (N,) the score of the best answer; silent: (N,) the score of giving none.

    It does the same as `find_best_thresh` of SQuAD's evaluate-v2.0.py, where questions with equal values are answered
    together. Of equally good thresholds it returns the smallest; where no answers are best, one just below all
    values."""
    order, ends = _order(-np.asarray(null_minus_best, float))
    values = np.asarray(null_minus_best, float)[order]
    silent = np.asarray(silent, float)
    gains = (np.asarray(answering, float) - silent)[order].cumsum()[ends]
    best = int(np.argmax(gains >= gains.max() - 1e-9))  # the first of those that differ only by rounding
    if gains[best] <= 1e-9:
        return float(np.nextafter(values[0], -np.inf)), float(silent.mean())
    return float(values[ends[best]]), float(silent.mean() + gains[best] / len(values))


def coverage_curve(
    scores: Sequence[float] | np.ndarray, right: Sequence[bool] | np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns thresholds, coverage and accuracy, highest threshold first, with one entry for each different score.

    coverage: the share of questions whose score is at least the threshold; accuracy: the share of these that are
    right. scores, right: (N,) of the answer to each question."""
    order, ends = _order(scores)
    hits = np.asarray(right, float)[order].cumsum()[ends]
    return np.asarray(scores, float)[order][ends], (ends + 1) / len(order), hits / (ends + 1)


def threshold_for_precision(
    scores: Sequence[float] | np.ndarray, right: Sequence[bool] | np.ndarray, precision: float
) -> float | None:
    """Returns the smallest threshold for which a share of at least `precision` of the answers is right, or None.

    The answers are those whose score is at least the threshold. On other questions the precision may be lower, so the
    threshold should be chosen on held-out ones."""
    thresholds, _, accuracy = coverage_curve(scores, right)
    good = np.flatnonzero(accuracy >= precision - 1e-12)
    return float(thresholds[good[-1]]) if len(good) else None


def recall_at_k(
    ranks: Sequence[int | None], ks: Sequence[int] = (1, 5, 20), intervals: bool = True
) -> dict[str, Estimate]:
    """Returns `recall@k` for each k: the share of questions with a right passage among the first k.

    ranks: (N,) the place of the first right passage, from 1; None where there is none."""
    return means({f"recall@{k}": [float(r is not None and r <= k) for r in ranks] for k in ks}, intervals)


def _order(scores: Sequence[float] | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns indices (N,) from the highest score to the lowest, and the last place of each run of equal scores."""
    descending = -np.asarray(scores, float)
    order = np.argsort(descending, kind="stable")
    ordered = descending[order]
    return order, np.flatnonzero(np.append(ordered[1:] != ordered[:-1], len(ordered) > 0))
