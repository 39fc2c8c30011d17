"""Scores of labels and numbers. They are scikit-learn's and scipy's under row weights, written so that a thousand
resamples of 25,000 rows take about a second. Shapes: N rows, C classes."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from lmkit.evaluation.intervals import Estimate, resampled

MOST_CELLS = 20_000_000  # rows times classes for which areas under curves are looked for
RESAMPLED = 2_000_000  # and for which their intervals are
BINS = 15  # of the expected calibration error, as in Guo et al. 2017


class ClassScore(NamedTuple):
    """One class against all others; 0 where nothing was predicted, or nothing is there."""

    precision: float
    recall: float
    f1: float
    n: int  # rows that have this label


def confusion(labels: Sequence[int] | np.ndarray, predicted: Sequence[int] | np.ndarray, classes: int) -> np.ndarray:
    """Rows (C, C) by label (first) and prediction (second)."""
    cells = np.asarray(labels, int) * classes + np.asarray(predicted, int)
    return np.bincount(cells, minlength=classes * classes).reshape(classes, classes)


def per_class(
    labels: Sequence[int] | np.ndarray, predicted: Sequence[int] | np.ndarray, classes: int
) -> list[ClassScore]:
    """A score a class, in their order."""
    table = confusion(labels, predicted, classes)
    hits, there, said = table.diagonal(), table.sum(1), table.sum(0)
    columns = (divide(hits, said), divide(hits, there), divide(2 * hits, there + said))
    return [ClassScore(float(p), float(r), float(f), int(n)) for p, r, f, n in zip(*columns, there, strict=True)]


def single(
    labels: Sequence[int] | np.ndarray, probabilities: np.ndarray, intervals: bool = True
) -> dict[str, Estimate]:
    """One label a row. labels: (N,); probabilities: (N, C).

    accuracy; macro_f1, over the classes that are there or predicted; mcc (Gorodkin 2004); ece, the expected
    calibration error: |share right - mean probability| in 15 equal bins of the largest probability, weighted by their
    rows (Guo et al. 2017); auroc: of class 1 where there are two, else the mean of each class against the rest, left
    out where only one class is there, and where rows and classes are too many. No interval for ece: resampling adds
    noise, which only makes it larger."""
    labels, probabilities = np.asarray(labels, int), np.asarray(probabilities, float)
    rows, classes = probabilities.shape
    top, predicted = probabilities.max(1), probabilities.argmax(1)
    right = predicted == labels
    gaps = np.bincount(np.clip(np.ceil(top * BINS).astype(int) - 1, 0, BINS - 1), right - top, BINS)
    columns = range(1, 2) if classes == 2 else range(classes)
    areas = [_area(labels == c, probabilities[:, c]) for c in columns if rows * classes <= MOST_CELLS]

    def counted(weights: np.ndarray) -> dict[str, float]:
        hits, there, said = (
            np.bincount(x, w, classes) for x, w in ((labels, weights * right), (labels, weights), (predicted, weights))
        )
        seen = there + said > 0
        f1 = divide(2 * hits, there + said)[seen].mean()
        return {"accuracy": hits.sum() / weights.sum(), "macro_f1": f1, "mcc": _mcc(hits, there, said)}

    scores = resampled(counted, rows, intervals)
    scores["ece"] = Estimate(float(np.abs(gaps).sum() / rows), None, None)
    return scores | _auroc(areas, rows, intervals)


def holds(probabilities: np.ndarray) -> np.ndarray:
    """Which of several labels a row has, in scores and predictions: those of one half or more, a logit of 0 or more."""
    return probabilities >= 0.5


def multi(labels: np.ndarray, probabilities: np.ndarray, intervals: bool = True) -> dict[str, Estimate]:
    """Any number of labels a row, those that `holds` says. labels: (N, C) bool; probabilities: (N, C).

    micro_f1, over all pairs of row and class; macro_f1, the mean over classes, 0 for one never there nor predicted;
    exact_match: rows with all labels right; auroc: mean over the classes that some rows have and some do not."""
    labels, probabilities = np.asarray(labels, bool), np.asarray(probabilities, float)
    rows, classes = labels.shape
    predicted = holds(probabilities)
    table = np.concatenate((2.0 * (labels & predicted), labels * 1.0 + predicted), axis=1)  # (N, 2 C)
    exact = (labels == predicted).all(1)

    def statistic(weights: np.ndarray) -> dict[str, float]:
        hits, seen = np.split(weights @ table, 2)
        return {
            "micro_f1": float(divide(hits.sum(), seen.sum())),
            "macro_f1": divide(hits, seen).mean(),
            "exact_match": weights @ exact / weights.sum(),
        }

    areas = [_area(labels[:, c], probabilities[:, c]) for c in range(classes) if rows * classes <= MOST_CELLS]
    return resampled(statistic, rows, intervals) | _auroc(areas, rows, intervals)


def regression(
    targets: Sequence[float] | np.ndarray, predictions: Sequence[float] | np.ndarray, intervals: bool = True
) -> dict[str, Estimate]:
    """Numbers, (N,) each. pearson and spearman (ties share their mean rank): 0 for predictions that are all alike, left
    out where the targets are; mae, rmse: mean absolute and root mean squared error, in the targets' unit."""
    x, y = np.asarray(targets, float), np.asarray(predictions, float)
    ties = [np.unique(v, return_inverse=True)[1] for v in (x, y)]

    def statistic(weights: np.ndarray) -> dict[str, float]:
        ranks = [_ranks(t, weights) for t in ties]
        error = np.abs(x - y)
        return {
            "pearson": _correlation(x, y, weights),
            "spearman": _correlation(ranks[0], ranks[1], weights),
            "mae": weights @ error / weights.sum(),
            "rmse": (weights @ error**2 / weights.sum()) ** 0.5,
        }

    return resampled(statistic, len(x), intervals)


def divide(a: np.ndarray | float, b: np.ndarray | float) -> np.ndarray:
    """a / b, 0 where b is 0."""
    return np.divide(a, b, out=np.zeros(np.shape(b)), where=np.asarray(b) != 0)


def _mcc(hits: np.ndarray, there: np.ndarray, said: np.ndarray) -> float:
    """Matthews' correlation out of rows a class; 0 where all rows have one label, or one prediction."""
    n = there.sum()
    spread = (n * n - said @ said) * (n * n - there @ there)
    return float((hits.sum() * n - said @ there) / spread**0.5) if spread > 0 else 0.0


class _area:
    """Area under the ROC curve under weights: the share of (positive, negative) pairs in the right order, ties half."""

    def __init__(self, positive: np.ndarray, scores: np.ndarray):
        self.positive = positive
        self.place = np.unique(scores, return_inverse=True)[1]  # (N,), equal scores share one

    def __call__(self, weights: np.ndarray) -> float:
        yes = np.bincount(self.place, weights * self.positive)
        no = np.bincount(self.place, weights) - yes
        pairs = yes.sum() * no.sum()
        return float(yes @ (no.cumsum() - no / 2) / pairs) if pairs else float("nan")


def _auroc(areas: list[_area], rows: int, intervals: bool) -> dict[str, Estimate]:
    def statistic(weights: np.ndarray) -> dict[str, float]:
        found = [a for a in (area(weights) for area in areas) if a == a]  # nan is not itself
        return {"auroc": float(np.mean(found)) if found else float("nan")}

    intervals = intervals and rows * len(areas) <= RESAMPLED
    return resampled(statistic, rows, intervals, resamples=1000 if len(areas) == 1 else 200)


def _ranks(ties: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Mean rank of each row among those drawn; ties: (N,) place of its value among the different ones."""
    size = np.bincount(ties, weights)
    return (size.cumsum() - (size - 1) / 2)[ties]


def _correlation(x: np.ndarray, y: np.ndarray, weights: np.ndarray) -> float:
    drawn = weights > 0
    if np.ptp(x[drawn]) == 0:
        return float("nan")
    if np.ptp(y[drawn]) == 0:
        return 0.0
    dx, dy = x - weights @ x / weights.sum(), y - weights @ y / weights.sum()
    return float(weights @ (dx * dy) / (weights @ dx**2 * (weights @ dy**2)) ** 0.5)
