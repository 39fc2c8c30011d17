"""Answers are scored as SQuAD's evaluate-v2.0.py scores them, and thresholds are the best there are."""

import numpy as np
import pytest

from lmkit.evaluation.answers import (
    best_of,
    best_threshold,
    coverage_curve,
    normalise,
    recall_at_k,
    score_answers,
    threshold_for_precision,
)  # fmt: skip

RNG = np.random.default_rng(0)


def test_what_is_compared():
    assert normalise(" The  U.S.,\tan Army-base's a! ") == "us armybases"
    assert normalise("Anthem of a theatre") == "anthem of theatre"  # whole words only
    assert normalise("über «quoted»") == "über «quoted»"  # ASCII punctuation only
    assert normalise("the") == ""


@pytest.mark.parametrize(
    "golds, predicted, want",
    [
        (["Denver Broncos"], "the Denver Broncos.", (1, 1)),
        (["Denver Broncos"], "Broncos", (0, 2 / 3)),
        (["Broncos", "Denver Broncos"], "Denver Broncos", (1, 1)),  # the gold that suits best
        (["x y", "z"], "y y z", (0, 0.5)),  # F1 of 2·1/5 and 2·1/4
        (["a b b"], "b b b", (0, 0.8)),  # an article is no word, and each word is counted once a place
        (["France"], "", (0, 0)),
        ([], "", (1, 1)),
        ([""], "the", (1, 1)),  # nothing is left of it
        (["."], "France", (0, 0)),  # nor of this gold
    ],
)
def test_exact_match_and_f1(golds, predicted, want):
    assert best_of(golds, predicted) == pytest.approx(want)


def test_questions_without_answers_are_told_apart():
    found = score_answers([["x"], [], ["y z"], [""]], ["x", "", "y", "w"])
    assert {k: e.value for k, e in found.items()} == pytest.approx(
        {
            "exact_match": 0.5, "f1": (1 + 1 + 2 / 3) / 4, "no_answer_accuracy": 0.5, "has_answer_exact_match": 0.5,
            "has_answer_f1": (1 + 2 / 3) / 2,
        }
    )  # fmt: skip
    assert all(0 <= e.low <= e.value <= e.high <= 1 for e in found.values())
    assert set(score_answers([["x"], ["y"]], ["x", ""])) == {"exact_match", "f1"}


def test_best_threshold_beats_all_others():
    for n in (1, 2, 30):
        values, silent = RNG.normal(size=n).round(1), RNG.integers(0, 2, n).astype(float)
        answering = RNG.random(n) * (1 - silent)
        threshold, mean = best_threshold(values, answering, silent)
        under = lambda t, v=values, a=answering, s=silent: np.where(v <= t, a, s).mean()
        others = [under(t) for t in [-9, *values]]
        assert under(threshold) == pytest.approx(mean) == pytest.approx(max(others))
        assert all(under(t) < mean - 1e-9 for t in [-9, *values] if t < threshold and (values <= t).any())
    assert best_threshold([1.0, 2.0], [0.0, 0.0], [1.0, 1.0])[0] < 1.0  # silence is best


def test_selective_accuracy_by_counting():
    scores, right = RNG.random(50).round(1), RNG.random(50) < 0.6
    thresholds, coverage, accuracy = coverage_curve(scores, right)
    assert thresholds.tolist() == sorted(set(scores), reverse=True)
    for t, share, hits in zip(thresholds, coverage, accuracy, strict=True):
        assert share == pytest.approx((scores >= t).mean()) and hits == pytest.approx(right[scores >= t].mean())
    for precision in (0.55, 0.6, 0.7, 0.9):
        good = [t for t in thresholds if right[scores >= t].mean() >= precision]
        assert threshold_for_precision(scores, right, precision) == (min(good) if good else None)
    assert threshold_for_precision([0.5, 0.4], [False, False], 0.1) is None
    assert threshold_for_precision([0.5, 0.4, 0.4], [True, True, False], 0.6) == 0.4


def test_recall_at_k():
    found = recall_at_k([1, 3, None, 7], ks=(1, 5))
    assert {k: e.value for k, e in found.items()} == {"recall@1": 0.25, "recall@5": 0.5}


def test_chinese_and_japanese_are_compared_by_characters():
    """As the script of CMRC 2018 cuts them (`mixed_segmentation`, punctuation removed), by hand."""
    assert best_of(["《红楼梦》"], "红楼梦。") == (1, 1)
    assert best_of(["1998年5月"], "1998年") == (0, 2 * 2 / (2 + 4))  # 1998, 年 of 1998, 年, 5, 月
    assert best_of(["東京タワー"], "東京") == (0, 2 * 2 / (2 + 5))
    assert best_of(["NBA 联盟"], "nba联盟") == (1, 1)
    assert best_of(["Ms. Kim"], "kim ms")[0] == 0
