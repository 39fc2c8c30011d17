"""How far a score would move on other documents of the same kind."""

from collections.abc import Sequence

import numpy as np


def bootstrap_ratio(
    numerators: Sequence[float], denominators: Sequence[float], resamples: int = 1000, seed: int = 0
) -> tuple[float, float] | None:
    """95% interval of sum(numerators) / sum(denominators), one pair a document: percentiles over resampled documents
    (Efron 1979). None for fewer than two documents, where nothing is known about their spread.

    Documents are the unit, since the tokens of one depend on each other: intervals over tokens are far too narrow."""
    top, bottom = np.asarray(numerators, float), np.asarray(denominators, float)
    if len(top) < 2:
        return None
    rng, ratios = np.random.default_rng(seed), np.empty(resamples)
    for i in range(resamples):
        drawn = rng.integers(len(top), size=len(top))
        ratios[i] = top[drawn].sum() / bottom[drawn].sum()
    low, high = np.percentile(ratios, (2.5, 97.5))
    return float(low), float(high)
