"""Scores of labels and numbers. They equal those of scikit-learn and scipy with row weights, but are faster: a thousand
resamples of 25,000 rows take about a second. Shapes: N rows, C classes."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from lmkit.evaluation.intervals import Estimate, resampled, share

MOST_CELLS = 20_000_000  # the largest number of rows times classes for which areas under curves are computed
RESAMPLED = 2_000_000  # the same for the intervals of these areas
HALF = 0.5  # threshold of several labels where none is chosen: a logit of 0
BINS = 15  # bins of the expected calibration error, as in Guo et al. 2017


class ClassScore(NamedTuple):
    """Scores of one class against all others. A score is 0 where its denominator is 0."""

    precision: float
    recall: float
    f1: float
    rows: int  # that have this label


class Bin(NamedTuple):
    """The rows of which the model is about equally sure."""

    low: float  # exclusive; `high` belongs to the bin
    high: float
    rows: int
    confidence: float  # mean probability of what was predicted
    accuracy: float  # share of rows that are right


def reliability(right: np.ndarray, confidence: np.ndarray, bins: int = BINS) -> list[Bin]:
    """Returns the equal bins of the probability of what was predicted that hold rows. right: (N,) bool; confidence:
    (N,). A calibrated model has the same confidence and accuracy in each (Guo et al. 2017)."""
    place = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    rows, hits, sure = (np.bincount(place, weights, bins) for weights in (None, right, confidence))
    return [Bin(i / bins, (i + 1) / bins, int(rows[i]), float(sure[i] / rows[i]), float(hits[i] / rows[i]))
            for i in np.flatnonzero(rows)]  # fmt: skip


def _ece(right: np.ndarray, confidence: np.ndarray) -> Estimate:
    gaps = [abs(b.accuracy - b.confidence) * b.rows for b in reliability(right, confidence)]
    return Estimate(sum(gaps) / len(right), None, None)


def confusion(labels: Sequence[int] | np.ndarray, predicted: Sequence[int] | np.ndarray, classes: int) -> np.ndarray:
    """Returns the number of rows with each label (first index) and prediction (second index), (C, C)."""
    cells = np.asarray(labels, int) * classes + np.asarray(predicted, int)
    return np.bincount(cells, minlength=classes * classes).reshape(classes, classes)


def class_scores(hits: np.ndarray, actual: np.ndarray, guessed: np.ndarray) -> list[ClassScore]:
    """Returns the scores of each class, out of the number of rows, (C,) each, that are right, that have the label, and
    that are predicted to have it."""
    columns = (divide(hits, guessed), divide(hits, actual), divide(2 * hits, actual + guessed))
    return [ClassScore(float(p), float(r), float(f), int(n)) for p, r, f, n in zip(*columns, actual, strict=True)]


def per_class(
    labels: Sequence[int] | np.ndarray, predicted: Sequence[int] | np.ndarray, classes: int
) -> list[ClassScore]:
    """Returns the scores of each class, in the order of the classes."""
    gold, guess = np.asarray(labels, int), np.asarray(predicted, int)
    return class_scores(*(np.bincount(x, minlength=classes) for x in (gold[gold == guess], gold, guess)))


def chosen(probabilities: np.ndarray, threshold: float = HALF) -> np.ndarray:
    """Returns the class of each row, (N,): the likeliest; with a threshold, which only two classes may have, the second
    where its probability is at least that. probabilities: (N, C)."""
    return probabilities.argmax(1) if threshold == HALF else holds(probabilities[:, 1], threshold).astype(int)


def single(
    labels: Sequence[int] | np.ndarray, probabilities: np.ndarray, intervals: bool = True, threshold: float = HALF
) -> dict[str, Estimate]:
    """Returns the scores of a task with one label per row, which `chosen` predicts. labels: (N,); probabilities:
    (N, C).

    They are: accuracy; macro_f1, over the classes that occur as label or prediction; mcc (Gorodkin 2004); ece, the
    expected calibration error, which is |share of right rows - mean probability| in 15 equal bins of the largest
    probability, weighted by their rows (Guo et al. 2017); auroc, that of class 1 where there are two classes, else the
    mean of each class against the rest. auroc is left out where only one class occurs, and where there are too many
    rows and classes. ece has no interval, because resampling adds noise, which always makes it larger."""
    labels, probabilities = np.asarray(labels, int), np.asarray(probabilities, float)
    rows, classes = probabilities.shape
    top, predicted = probabilities.max(1), chosen(probabilities, threshold)
    right = predicted == labels
    columns = range(1, 2) if classes == 2 else range(classes)
    areas = [_area(labels == c, probabilities[:, c]) for c in columns if rows * classes <= MOST_CELLS]

    def counted(weights: np.ndarray) -> dict[str, float]:
        hits, actual, guessed = (
            np.bincount(x, w, classes) for x, w in ((labels, weights * right), (labels, weights), (predicted, weights))
        )
        seen = actual + guessed > 0
        f1 = divide(2 * hits, actual + guessed)[seen].mean()
        return {"macro_f1": f1, "mcc": _mcc(hits, actual, guessed)}

    scores = {"accuracy": share(right, intervals)} | resampled(counted, rows, intervals)
    scores["ece"] = _ece(probabilities.argmax(1) == labels, top)
    return scores | _auroc(areas, rows, intervals)


def holds(probabilities: np.ndarray, threshold: float = HALF) -> np.ndarray:
    """Says which of several labels each row has: those with at least this probability."""
    return probabilities >= threshold


def best_threshold(labels: np.ndarray, probabilities: np.ndarray, macro: bool = False) -> float:
    """Returns the threshold of `holds` with the best F1, half way to the next lower probability.

    labels: (N, C) bool; probabilities: (N, C). The F1 is that of all that holds; with `macro` its mean with the F1 of
    all that does not."""
    order = np.argsort(-probabilities, axis=None, kind="stable")
    values, right = probabilities.ravel()[order].astype(float), np.asarray(labels, bool).ravel()[order]
    n, actual = len(right), right.sum()
    hits, guessed = np.append(0, right.cumsum()), np.arange(n + 1)
    f1 = divide(2 * hits, guessed + actual)
    if macro:
        f1 = f1 + divide(2 * (n - actual - guessed + hits), 2 * n - guessed - actual)
    above, below = np.append(1.0, values), np.append(values, 0.0)
    best = int(np.where(above > below, f1, -1.0).argmax())  # equal probabilities are on one side
    return float(above[best] + below[best]) / 2


def multi(
    labels: np.ndarray, probabilities: np.ndarray, intervals: bool = True, threshold: float = HALF
) -> dict[str, Estimate]:
    """Returns the scores of a task with any number of labels per row. labels: (N, C) bool; probabilities: (N, C).

    `holds` decides which labels are predicted. The scores are: micro_f1, over all pairs of row and class; macro_f1, the
    mean over classes, with 0 for a class that is neither label nor prediction anywhere; exact_match, the share of rows
    with all labels right; ece, as of `single`, over all pairs of row and class by the probability that the row has it;
    auroc, the mean over the classes that some rows have and some do not."""
    labels, probabilities = np.asarray(labels, bool), np.asarray(probabilities, float)
    rows, classes = labels.shape
    predicted = holds(probabilities, threshold)
    table = np.concatenate((2.0 * (labels & predicted), labels * 1.0 + predicted), axis=1)  # (N, 2 C)
    exact = (labels == predicted).all(1)

    def statistic(weights: np.ndarray) -> dict[str, float]:
        hits, seen = np.split(weights @ table, 2)
        return {
            "micro_f1": float(divide(hits.sum(), seen.sum())),
            "macro_f1": divide(hits, seen).mean(),
        }

    areas = [_area(labels[:, c], probabilities[:, c]) for c in range(classes) if rows * classes <= MOST_CELLS]
    scores = resampled(statistic, rows, intervals) | {"exact_match": share(exact, intervals)}
    scores["ece"] = _ece(labels.ravel(), probabilities.ravel())
    return scores | _auroc(areas, rows, intervals)


def regression(
    targets: Sequence[float] | np.ndarray, predictions: Sequence[float] | np.ndarray, intervals: bool = True
) -> dict[str, Estimate]:
    """Returns the scores of predicted numbers; targets and predictions: (N,) each.

    pearson and spearman (ties share their mean rank) are 0 where all predictions are equal, and left out where all
    targets are equal. mae and rmse are mean absolute and root mean squared error, in the unit of the targets."""
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
    """Returns a / b, and 0 where b is 0."""
    return np.divide(a, b, out=np.zeros(np.shape(b)), where=np.asarray(b) != 0)


def _mcc(hits: np.ndarray, actual: np.ndarray, guessed: np.ndarray) -> float:
    """Returns Matthews' correlation, out of the rows of each class; 0 where all rows have one label or one prediction.

    hits: rows that are right; actual: rows by label; guessed: rows by prediction."""
    n = actual.sum()
    spread = (n * n - guessed @ guessed) * (n * n - actual @ actual)
    return float((hits.sum() * n - guessed @ actual) / spread**0.5) if spread > 0 else 0.0


class _area:
    """The area under the ROC curve with row weights: the share of (positive, negative) pairs in the right order, where
    equal scores count half."""

    def __init__(self, positive: np.ndarray, scores: np.ndarray):
        self.positive = positive
        self.place = np.unique(scores, return_inverse=True)[1]  # (N,) rank of the score; equal scores share one

    def __call__(self, weights: np.ndarray) -> float:
        yes = np.bincount(self.place, weights * self.positive)
        no = np.bincount(self.place, weights) - yes
        pairs = yes.sum() * no.sum()
        return float(yes @ (no.cumsum() - no / 2) / pairs) if pairs else float("nan")


def _auroc(areas: list[_area], rows: int, intervals: bool) -> dict[str, Estimate]:
    def statistic(weights: np.ndarray) -> dict[str, float]:
        values = [a for a in (area(weights) for area in areas) if a == a]  # leaves out nan, which does not equal itself
        return {"auroc": float(np.mean(values)) if values else float("nan")}

    intervals = intervals and rows * len(areas) <= RESAMPLED
    return resampled(statistic, rows, intervals, resamples=1000 if len(areas) == 1 else 200)


def _ranks(ties: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Returns the mean rank of each row among the rows drawn.

    ties: (N,) the place of the row's value among all different values; weights: (N,) how often each row was drawn."""
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
