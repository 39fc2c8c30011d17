"""Scores are scikit-learn's and scipy's; their intervals are those of the theory."""

import math

import numpy as np
import pytest
from scipy import stats
from scipy.special import softmax
from sklearn import metrics
from sklearn.calibration import _TemperatureScaling, calibration_curve

from lmkit.evaluation.calibration import best_temperature
from lmkit.evaluation.classification import best_threshold, confusion, multi, per_class, regression, single
from lmkit.evaluation.intervals import means, resampled

RNG = np.random.default_rng(0)


def rows(n, classes, skill=1.0):
    """Labels, and probabilities with ties that know something of them."""
    labels = RNG.integers(classes, size=n)
    logits = RNG.normal(size=(n, classes)).round(1) + skill * np.eye(classes)[labels]
    return labels, np.exp(logits) / np.exp(logits).sum(1, keepdims=True)


def values(scores):
    return {k: e.value for k, e in scores.items()}


@pytest.mark.parametrize("classes", [2, 5])
def test_single_equals_sklearn(classes):
    labels, probabilities = rows(300, classes)
    predicted = probabilities.argmax(1)
    found = values(single(labels, probabilities, intervals=False))
    ranked = probabilities[:, 1] if classes == 2 else probabilities
    assert found.pop("ece") == pytest.approx(by_bins(labels, probabilities))
    assert found == pytest.approx(
        {
            "accuracy": metrics.accuracy_score(labels, predicted),
            "macro_f1": metrics.f1_score(labels, predicted, average="macro"),
            "mcc": metrics.matthews_corrcoef(labels, predicted),
            "auroc": metrics.roc_auc_score(labels, ranked, multi_class="ovr"),
        }
    )
    np.testing.assert_array_equal(confusion(labels, predicted, classes), metrics.confusion_matrix(labels, predicted))
    table = np.array(per_class(labels, predicted, classes)).T
    np.testing.assert_allclose(table, metrics.precision_recall_fscore_support(labels, predicted))


@pytest.mark.parametrize("threshold", [0.2, 0.8])
def test_a_threshold_of_two_classes_is_one_of_the_second(threshold):
    labels, probabilities = rows(300, 2)
    found, predicted = single(labels, probabilities, False, threshold), probabilities[:, 1] >= threshold
    assert found["accuracy"].value == metrics.accuracy_score(labels, predicted)
    assert found["macro_f1"].value == pytest.approx(metrics.f1_score(labels, predicted, average="macro"))
    assert found["mcc"].value == pytest.approx(metrics.matthews_corrcoef(labels, predicted))
    assert [found[name] for name in ("ece", "auroc")] == [
        single(labels, probabilities, False)[name] for name in ("ece", "auroc")
    ]


@pytest.mark.parametrize("skill", [1.0, 0.0, -1.0])
@pytest.mark.parametrize("macro", [True, False])
def test_the_best_threshold_is_the_best_of_all_by_sklearn(macro, skill):
    for _ in range(4):
        labels, probabilities = rows(30, 2, skill)
        p = probabilities[:, 1].astype(np.float32)  # as of a model
        f1 = lambda t: metrics.f1_score(labels, p >= t, average="macro" if macro else "binary", zero_division=0)  # noqa: B023
        found = best_threshold(labels > 0, p, macro)
        assert 0 < found < 1 and f1(found) == pytest.approx(max(map(f1, [*p, 1.0])))


def test_a_temperature_is_that_of_sklearn():
    labels, probabilities = rows(300, 5)
    for sharper in (0.3, 1.0, 4.0):
        logits = np.log(probabilities) * sharper
        wanted = 1 / _TemperatureScaling().fit(logits, labels).beta_
        assert best_temperature(labels, softmax(logits, axis=1)) == pytest.approx(wanted, rel=1e-4)
    assert best_temperature(np.array([0, 1]), np.eye(2) * 0.2 + 0.4) is None


def by_bins(labels, probabilities):
    """Guo et al. 2017, equation 3."""
    top, right, total = probabilities.max(1), probabilities.argmax(1) == labels, 0.0
    for m in range(15):
        inside = (top > m / 15) & (top <= (m + 1) / 15)
        total += abs(right[inside].sum() - top[inside].sum())
    return total / len(labels)


def test_calibrated_probabilities_have_no_calibration_error():
    certain = np.array([[1.0, 0.0]] * 4)
    assert single([0] * 4, certain)["ece"].value == 0 and single([1] * 4, certain)["ece"].value == 1
    half = single([0, 1], np.array([[0.5, 0.5]] * 2))
    assert half["ece"].value == 0 and half["auroc"].value == 0.5


def test_classes_that_are_missing():
    """In the rows: no auroc of one class alone. In rows and predictions: no part in macro F1, as in scikit-learn."""
    labels, probabilities = np.array([2, 2, 0, 0]), np.eye(4)[[2, 0, 0, 0]] * 0.6 + 0.1
    found = values(single(labels, probabilities))
    assert found["macro_f1"] == metrics.f1_score(labels, probabilities.argmax(1), average="macro")
    assert found["auroc"] == np.mean([metrics.roc_auc_score(labels == c, probabilities[:, c]) for c in (0, 2)])
    alone = single([1, 1], np.array([[0.2, 0.8], [0.9, 0.1]]))
    assert "auroc" not in alone and alone["mcc"].value == 0
    assert per_class([1, 1], [0, 0], 3) == [(0, 0, 0, 0), (0, 0, 0, 2), (0, 0, 0, 0)]


def test_multi_equals_sklearn():
    labels, probabilities = RNG.random((200, 4)) < [0.5, 0.3, 0.1, 0.0], RNG.random((200, 4)).round(2)
    probabilities[:, 3] /= 3  # never there nor predicted
    predicted = probabilities >= 0.5
    true, mean = calibration_curve(labels.ravel(), probabilities.ravel(), n_bins=15)
    sizes = np.unique(np.searchsorted(np.linspace(0, 1, 16)[1:-1], probabilities.ravel()), return_counts=True)[1]
    assert values(multi(labels, probabilities, intervals=False)) == pytest.approx(
        {
            "micro_f1": metrics.f1_score(labels, predicted, average="micro"),
            "macro_f1": metrics.f1_score(labels, predicted, average="macro", zero_division=0),
            "exact_match": metrics.accuracy_score(labels, predicted),
            "ece": (sizes * abs(true - mean)).sum() / 800,
            "auroc": metrics.roc_auc_score(labels[:, :3], probabilities[:, :3]),
        }
    )
    silent = values(multi(np.zeros((3, 2), bool), np.zeros((3, 2))))
    assert silent == {"micro_f1": 0, "macro_f1": 0, "exact_match": 1, "ece": 0}


def test_regression_equals_scipy():
    x = RNG.normal(size=300).round(1)
    y = (x + RNG.normal(size=300)).round(1)
    assert values(regression(x, y, intervals=False)) == pytest.approx(
        {
            "pearson": stats.pearsonr(x, y).statistic,
            "spearman": stats.spearmanr(x, y).statistic,
            "mae": metrics.mean_absolute_error(x, y),
            "rmse": metrics.root_mean_squared_error(x, y),
        }
    )
    alike = values(regression(x, np.full(300, 0.1)))
    assert alike["pearson"] == alike["spearman"] == 0 and set(regression([1, 1], [2, 3])) == {"mae", "rmse"}


def test_intervals_cover_what_theory_says():
    """Normal theory for accuracy; Fisher's z for Pearson; Hanley and McNeil 1982 for the area."""
    labels, probabilities = rows(2000, 2)
    scores = single(labels, probabilities)
    value, low, high = scores["accuracy"]
    assert (high - low) / 2 == pytest.approx(1.96 * (value * (1 - value) / 2000) ** 0.5, rel=0.1)
    a, low, high = scores["auroc"]
    yes = labels.sum()
    spread = a * (1 - a) + (yes - 1) * (a / (2 - a) - a * a) + (1999 - yes) * (2 * a * a / (1 + a) - a * a)
    assert (high - low) / 2 == pytest.approx(1.96 * (spread / (yes * (2000 - yes))) ** 0.5, rel=0.15)
    x = RNG.normal(size=1000)
    r, low, high = regression(x, x + RNG.normal(size=1000))["pearson"]
    z = math.atanh(r) + np.array([-1.96, 1.96]) / 997**0.5
    assert (low, high) == pytest.approx(np.tanh(z), abs=0.01)


def test_order_of_rows_changes_no_score_and_all_stay_in_bounds():
    labels, probabilities = rows(60, 3)
    mixed = RNG.permutation(60)
    scores = single(labels, probabilities)
    assert values(scores) == pytest.approx(values(single(labels[mixed], probabilities[mixed])))
    for name, (value, low, high) in scores.items():
        assert (low is None) == (name == "ece") and 0 <= value <= 1
        assert low is None or -1 <= low <= value <= high <= 1
    assert all(e.low is e.high is None for e in single(labels[:1], probabilities[:1]).values())
    assert single(labels, probabilities) == scores  # the same resamples each time


def test_undefined_resamples_are_not_counted():
    found = resampled(lambda w: {"a": w[0] if w[0] else math.nan, "b": math.nan}, 5)
    assert set(found) == {"a"} and found["a"].low == 1
    assert means({"x": [1.0, 1.0, 4.0]})["x"].value == 2


@pytest.mark.parametrize("wrong", [0, 1, 7, 20])
def test_a_share_of_rows_has_wilsons_interval_also_where_all_are_right_or_none(wrong):
    labels, hot = np.arange(20) % 2, np.eye(2)
    predicted = np.where(np.arange(20) < wrong, 1 - labels, labels)
    interval = stats.binomtest(20 - wrong, 20).proportion_ci(method="wilson")
    shares = [
        single(labels, hot[predicted])["accuracy"],
        multi(hot[labels] > 0, hot[predicted])["exact_match"],
        means({"a": labels == predicted, "b": np.linspace(0, 1, 20)})["a"],
    ]
    for value, low, high in shares:
        assert value == 1 - wrong / 20 and (low, high) == pytest.approx((interval.low, interval.high))
