"""Overlap of n-grams, against the janitor of lm-evaluation-harness."""

import random

import pytest
from scipy.stats import binomtest

from lmkit.checks.contamination import check_contamination
from lmkit.evaluation.intervals import proportion

WORDS = ["The", "cat,", "sat", "--on--", "MAT.", "don't", "naïve", "ÄRGER", "3.5", "(x)", "“quoted”", "dog\n", "a\tb"]


def test_overlap_is_that_of_lm_evaluation_harness():
    janitor = pytest.importorskip("lm_eval.decontamination.janitor")
    rng = random.Random(1)
    text = lambda n: " ".join(rng.choices(WORDS, k=n))
    corpus = [("corpus:1", text(400)), ("corpus:2", text(300))]
    copied = corpus[1][1].lower().replace(",", " ;").split()
    texts = [
        ("e:1", text(20)),
        ("e:2", f"Q: {' '.join(copied[50:80])}"),
        ("e:3", text(5)),
        ("e:4", corpus[0][1][-150:]),
    ]
    judge = janitor.Janitor()
    for _, document in corpus:
        judge.register_contaminant_python(document)
    expected = [set(janitor.word_ngrams(judge.normalize_string(t), 13)) & judge.dirt_ngrams for _, t in texts]
    total = sum(len(set(janitor.word_ngrams(judge.normalize_string(t), 13))) for _, t in texts)
    result = check_contamination(corpus, texts)
    assert [bool(grams) for grams in expected] == [False, True, False, True]
    assert result.counts == {"evaluation texts": 3, "with overlap": 2, "too short": 1, "corpus documents": 2}
    assert result.shares["n-grams that overlap"].value == pytest.approx(sum(map(len, expected)) / total)
    assert [line.partition(":")[0] + line[1:3] for line in result.examples] == ["e:2", "e:4"]
    assert "in corpus:2" in result.examples[0] and "in corpus:1" in result.examples[1]


def test_the_interval_of_a_share_is_wilsons():
    for successes, trials in ((0, 20), (1, 7), (50, 60), (9, 9)):
        judge = binomtest(successes, trials).proportion_ci(method="wilson")
        assert proportion(successes, trials) == pytest.approx((successes / trials, judge.low, judge.high), abs=1e-12)
