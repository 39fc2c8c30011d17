"""Two systems on the same rows: p-values are those of the exact tests, and are right where there is no difference."""

import re
from itertools import product

import numpy as np
import pytest
import sacrebleu
from scipy import stats

from lmkit.evaluation.paired import mcnemar, paired, paired_bleu, verdict
from tests.evaluation.test_writing import HYPOTHESES, REFERENCES

RNG = np.random.default_rng(0)


def test_randomisation_is_near_the_exact_test():
    """All 2^12 ways to swap, counted."""
    for shift in (0.0, 0.4, 0.8):
        a = RNG.normal(size=12) + shift
        b = np.where(np.arange(12) < 2, a, RNG.normal(size=12))  # two rows alike
        sums = np.array(list(product((-1, 1), repeat=12))) @ (a - b)
        exact = (np.abs(sums) >= abs((a - b).sum()) - 1e-9).mean()
        found = paired(a, b)
        assert found.p == pytest.approx(exact, abs=0.02) and found.test == "approximate randomisation"
        assert found.difference.value == pytest.approx(a.mean() - b.mean())


def test_zero_and_one_are_tested_exactly():
    a, b = np.array([1] * 9 + [0] * 2 + [1] * 50), np.array([0] * 9 + [1] * 2 + [1] * 50)
    found = paired(a, b)
    assert found.p == mcnemar(a, b) == pytest.approx(2 * stats.binom.cdf(2, 11, 0.5))
    assert found.test == "McNemar's exact test" and found.difference.value == pytest.approx(7 / 61)
    assert mcnemar(b, a) == found.p and mcnemar(a, a) == 1 and paired(a, a).p == 1


def test_pairing_finds_what_two_intervals_miss():
    hard = RNG.normal(size=200) * 10
    found = paired(hard + 0.5 + RNG.normal(size=200), hard + RNG.normal(size=200), flips=1000)
    assert found.p < 0.01 and 0 < found.difference.low < 0.5 < found.difference.high < 1
    assert paired(hard, hard, flips=1000).p == 1


def test_p_is_evenly_spread_where_there_is_no_difference():
    p = [paired(RNG.normal(size=20), RNG.normal(size=20), flips=200).p for _ in range(40)]
    assert stats.kstest(p, "uniform").pvalue > 0.01


def test_bleu_is_tested_as_sacrebleu_does():
    worse = [h.replace("man", "dog") for h in HYPOTHESES]
    found = paired_bleu(HYPOTHESES, worse, REFERENCES, flips=200)
    gap = sacrebleu.corpus_bleu(HYPOTHESES, [REFERENCES]).score - sacrebleu.corpus_bleu(worse, [REFERENCES]).score
    assert found.difference.value == pytest.approx(gap) and 0 < found.difference.low < gap < found.difference.high
    assert found.p == pytest.approx(1 / 201)
    assert paired_bleu(worse, worse, REFERENCES, flips=50).difference == (0, 0, 0)


def test_verdicts():
    a, b = np.array([1] * 30 + [0] * 10), np.array([0] * 20 + [1] * 12 + [0] * 8)
    same = paired(a, a)
    assert verdict(same) == (
        "the first and the second score the same (95% interval 0.0000 to 0.0000; p = 1, McNemar's exact test, 40 rows)."
    )
    better = verdict(paired(b, a), "BERT", "ours", digits=2)
    interval = r"95% interval 0\.2\d to 0\.6\d"
    assert re.match(
        rf"ours is better than BERT by 0.45 \({interval}; p = 0\.00012, McNemar's exact test, 40 rows", better
    )
    unclear = verdict(paired([1, 1, 0, 1], [1, 0, 0, 1]), "x", "y")
    assert unclear.startswith("x is ahead of y by 0.2500, which is no evidence that it is better (95% interval 0.0")
    assert "interval" not in verdict(paired([1], [0]))
