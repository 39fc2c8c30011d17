"""Confidence intervals: how much a score would change on other documents of the same kind."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np


class Estimate(NamedTuple):
    """A score and its 95% interval. The bounds are None where there is only one document, or no interval was wanted."""

    value: float
    low: float | None
    high: float | None


def ratio(numerators: Sequence[float], denominators: Sequence[float]) -> Estimate:
    """Returns sum(numerators) / sum(denominators) with its interval.

    There is one numerator and denominator per document; documents where both are 0 are left out."""
    pairs = [(a, b) for a, b in zip(numerators, denominators, strict=True) if a or b]
    top, bottom = [a for a, _ in pairs], [b for _, b in pairs]
    return Estimate(math.fsum(top) / sum(bottom), *(bootstrap_ratio(top, bottom) or (None, None)))


def proportion(successes: float, trials: int) -> Estimate:
    """Returns successes / trials with its 95% interval (Wilson 1927), which has a width even where none of the trials
    succeeded; a bootstrap has none there. Trials must not depend on each other. Without trials the share is nan."""
    if not trials:
        return Estimate(math.nan, None, None)
    part, z = successes / trials, 1.959963984540054  # the 97.5% quantile of the normal distribution
    centre, shrink = part + z * z / (2 * trials), 1 + z * z / trials
    half = z * math.sqrt(part * (1 - part) / trials + z * z / (4 * trials * trials))
    return Estimate(part, min(part, (centre - half) / shrink), max(part, (centre + half) / shrink))


def share(hits: np.ndarray, intervals: bool = True) -> Estimate:
    """Returns the share of rows, (N,) of 0 or 1, that are hits, with the interval of `proportion`."""
    if not intervals or len(hits) < 2:
        return Estimate(float(np.mean(hits)), None, None)
    return proportion(float(np.sum(hits)), len(hits))


def exponential(e: Estimate) -> Estimate:
    """Returns the perplexity of an estimate in nats; values above e^700 become e^700."""
    return Estimate(*(None if x is None else math.exp(min(x, 700.0)) for x in e))  # type: ignore[arg-type]


def bootstrap_ratio(
    numerators: Sequence[float], denominators: Sequence[float], resamples: int = 1000, seed: int = 0
) -> tuple[float, float] | None:
    """Returns the 95% interval of sum(numerators) / sum(denominators), with one of each per document.

    It is made of percentiles over resampled documents (Efron 1979), and None for fewer than two documents, whose spread
    is unknown. Documents are resampled because the tokens of a document depend on each other; intervals over tokens
    are far too narrow."""
    top, bottom = np.asarray(numerators, float), np.asarray(denominators, float)
    if len(top) < 2:
        return None
    rng, ratios = np.random.default_rng(seed), np.empty(resamples)
    for i in range(resamples):
        drawn = rng.integers(len(top), size=len(top))
        ratios[i] = top[drawn].sum() / bottom[drawn].sum()
    low, high = np.percentile(ratios, (2.5, 97.5))
    return float(low), float(high)


def resampled(
    statistic: Callable[[np.ndarray], Mapping[str, float]],
    rows: int,
    intervals: bool = True,
    resamples: int = 1000,
    seed: int = 0,
) -> dict[str, Estimate]:
    """Returns scores of any kind, with their 95% intervals (percentile bootstrap, Efron 1979).

    statistic: returns scores by name for weights (rows,) float, which are all 1 for the scores themselves, and then say
    how often each row was drawn. It returns nan where a score is undefined: then the score is left out, or the resample
    is not counted."""
    values = {k: float(v) for k, v in statistic(np.ones(rows)).items() if not math.isnan(v)}
    if not intervals or rows < 2:
        return {k: Estimate(v, None, None) for k, v in values.items()}
    rng, drawn = np.random.default_rng(seed), []
    for _ in range(resamples):
        scores = statistic(np.bincount(rng.integers(rows, size=rows), minlength=rows).astype(float))
        drawn.append([scores[k] for k in values])
    table = np.array(drawn, float).reshape(resamples, -1)  # (resamples, scores)
    bounds = [np.percentile(column[~np.isnan(column)], (2.5, 97.5)).tolist() for column in table.T]
    return {k: Estimate(v, low, high) for (k, v), (low, high) in zip(values.items(), bounds, strict=True)}


def means(columns: Mapping[str, Sequence[float] | np.ndarray], intervals: bool = True) -> dict[str, Estimate]:
    """Returns the mean of each column of scores, (N,) with one score per row, with its 95% interval: that of a share
    where all scores are 0 or 1, else by bootstrap."""
    names, table = list(columns), np.array(list(columns.values()), float).T  # (N, columns)

    def statistic(weights: np.ndarray) -> dict[str, float]:
        return dict(zip(names, weights @ table / weights.sum(), strict=True))

    scores = resampled(statistic, len(table), intervals)
    counted = np.flatnonzero(np.isin(table, (0, 1)).all(0))
    return scores | {names[i]: share(table[:, i], intervals) for i in counted if names[i] in scores}
