"""Tests whether two systems that were scored on the same rows differ by more than chance. Shapes: N rows."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from lmkit.evaluation.intervals import Estimate, resampled
from lmkit.evaluation.writing import References, bleu, corpus_score, statistics, streams

CHUNK = 1 << 22  # random signs that are drawn at a time
EVIDENCE = 0.05  # p-values below this count as evidence


class Comparison(NamedTuple):
    """The result of a test. difference: first system minus second; p: the probability that chance alone gives so large
    a difference, in either direction."""

    difference: Estimate
    p: float
    rows: int
    test: str


def paired(
    scores_a: Sequence[float] | np.ndarray, scores_b: Sequence[float] | np.ndarray, flips: int = 10_000, seed: int = 0
) -> Comparison:
    """Compares the means of two systems' scores, (N,) each, where higher is better.

    The interval is that of a paired bootstrap (Koehn 2004). p comes from McNemar's exact test for scores of 0 and 1,
    and else from approximate randomisation (Noreen 1989), where the two scores of each row are swapped or not, at
    random."""
    a, b = np.asarray(scores_a, float), np.asarray(scores_b, float)
    if a.shape != b.shape:
        raise ValueError(f"{len(a)} rows against {len(b)}")
    gaps = a - b
    difference = resampled(lambda weights: {"d": weights @ gaps / weights.sum()}, len(gaps))["d"]
    if np.isin(np.concatenate((a, b)), (0, 1)).all():
        return Comparison(difference, mcnemar(a, b), len(gaps), "McNemar's exact test")
    return Comparison(difference, _randomised(gaps[gaps != 0], flips, seed), len(gaps), "approximate randomisation")


def mcnemar(right_a: Sequence[float] | np.ndarray, right_b: Sequence[float] | np.ndarray) -> float:
    """Returns the two-sided p of the exact test (McNemar 1947). right_a, right_b: (N,) each, 0 or 1.

    It tests whether each system has half of the rows that only one of the two has right."""
    from scipy.stats import binomtest

    gaps = np.asarray(right_a, float) - np.asarray(right_b, float)
    only_a, only_b = int((gaps > 0).sum()), int((gaps < 0).sum())
    return float(binomtest(only_a, only_a + only_b).pvalue) if only_a + only_b else 1.0


def _randomised(gaps: np.ndarray, flips: int, seed: int) -> float:
    rng, observed = np.random.default_rng(seed), abs(gaps.sum())
    size, as_large = max(1, CHUNK // max(len(gaps), 1)), 0
    for begin in range(0, flips, size):
        signs = rng.integers(0, 2, (min(size, flips - begin), len(gaps)), dtype=np.int8) * 2.0 - 1
        # Equal sums count as large, even if rounding makes them a little smaller.
        as_large += int((np.abs(signs @ gaps) >= observed - 1e-9 * np.abs(gaps).sum()).sum())
    return (as_large + 1) / (flips + 1)


def paired_bleu(
    hypotheses_a: Sequence[str],
    hypotheses_b: Sequence[str],
    references: References,
    tokenize: str = "13a",
    flips: int = 10_000,
) -> Comparison:
    """Compares the corpus BLEU, from 0 to 100, of two systems' texts (N,).

    p comes from sacrebleu's paired approximate randomisation (Riezler & Maxwell 2005), the interval from a paired
    bootstrap. Raises UserError as `writing.score` does."""
    from sacrebleu.significance import PairedTest

    metric = bleu(tokenize)
    stats = [statistics(metric, h, references) for h in (hypotheses_a, hypotheses_b)]

    def statistic(weights: np.ndarray) -> dict[str, float]:
        a, b = (corpus_score(metric, s, weights) for s in stats)
        return {"d": a - b}

    systems = [("a", hypotheses_a), ("b", hypotheses_b)]
    _, results = PairedTest(systems, {"BLEU": bleu(tokenize)}, streams(references), "ar", flips)()
    p = float(results["BLEU"][1].p_value)  # type: ignore[union-attr, arg-type]
    difference = resampled(statistic, len(references))["d"]
    return Comparison(difference, p, len(references), "sacrebleu's paired approximate randomisation")


def verdict(c: Comparison, a: str = "the first", b: str = "the second", digits: int = 4) -> str:
    """Returns a sentence for people: which system is better, by how much, and whether that is evidence."""
    value, low, high = c.difference
    better, worse = (a, b) if value >= 0 else (b, a)
    size = f"{abs(value):.{digits}f}"
    between = ""
    if low is not None and high is not None:
        low, high = (low, high) if value >= 0 else (-high, -low)
        between = f"95% interval {low:.{digits}f} to {high:.{digits}f}; "
    details = f"{between}p = {c.p:.2g}, {c.test}, {c.rows:,} rows"
    if c.p < EVIDENCE:
        return f"{better} is better than {worse} by {size} ({details})."
    if value == 0:
        return f"{a} and {b} score the same ({details})."
    return f"{better} is ahead of {worse} by {size}, which is no evidence that it is better ({details})."
