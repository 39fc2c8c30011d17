"""The baseline learns what can be learnt from words, the same each time, and never looks at the test labels."""

import math

import numpy as np
import pytest

from lmkit.evaluation.baseline import majority, tfidf, unigram
from lmkit.evaluation.classification import multi, regression, single

RNG = np.random.default_rng(0)
WORDS = {
    0: ["dull", "awful", "tedious", "weak"],
    1: ["great", "moving", "lovely", "strong"],
    2: ["green", "blue", "red", "grey"],
}
FILLER = ["the", "film", "is", "one", "that", "a", "man", "of", "the", "town", "made", "in", "May"]


def texts(labels):
    return [" ".join(RNG.permutation([*RNG.choice(WORDS[k], 2), *RNG.choice(FILLER, 5)])) for k in labels]


@pytest.fixture(scope="module")
def data():
    train, test = RNG.integers(3, size=300), RNG.integers(3, size=60)
    return texts(train), train, texts(test), test


def test_single(data):
    train, labels, test, want = data
    found = tfidf("single", train, labels, test, 4)  # a class that is never seen has no probability
    assert found.shape == (60, 4) and found.sum(1) == pytest.approx(1) and not found[:, 3].any()
    assert single(want, found, intervals=False)["accuracy"].value > 0.95
    np.testing.assert_array_equal(found, tfidf("single", train, labels, test, 4))
    few = tfidf("single", train[:20], labels[:20], test, 3)
    assert single(want, few, intervals=False)["accuracy"].value > 0.5


def test_multi_and_regression(data):
    train, labels, test, want = data
    many = np.stack([labels == 1, labels != 1, labels < 0], axis=1)
    found = tfidf("multi", train, many, test, 3)
    wanted = np.stack([want == 1, want != 1, want < 0], axis=1)
    assert multi(wanted, found, intervals=False)["micro_f1"].value > 0.9 and not found[:, 2].any()
    numbers = tfidf("regression", train, labels * 0.5, test, 1)
    assert numbers.shape == (60,) and regression(want * 0.5, numbers, intervals=False)["pearson"].value > 0.9


def test_the_texts_of_a_pair_are_told_apart(data):
    first, second = RNG.integers(2, size=300), RNG.integers(2, size=300)
    pairs = texts(first), texts(second)
    cut = lambda column: (column[:200], column[200:])
    (a, a_test), (b, b_test) = map(cut, pairs)
    found = tfidf("single", a, second[:200], a_test, 2, b, b_test)
    assert single(second[200:], found, intervals=False)["accuracy"].value > 0.95
    mixed = tfidf("single", [f"{x} {y}" for x, y in zip(a, b, strict=True)], second[:200], a_test, 2)
    assert single(second[200:], mixed, intervals=False)["accuracy"].value < 0.8


def test_languages_without_spaces():
    train, labels = ["この映画は最高だ", "この映画は最悪だ"] * 10, np.array([1, 0] * 10)
    assert tfidf("single", train, labels, ["最高です", "最悪です"], 2).argmax(1).tolist() == [1, 0]


def test_guesses_where_nothing_can_be_learnt():
    labels = np.array([1, 1, 0, 1])
    assert majority("single", labels, 2, 3).tolist() == [[0.25, 0.75, 0]] * 2
    assert majority("multi", np.array([[True, False], [True, True]]), 1, 2).tolist() == [[1, 0.5]]
    assert majority("regression", np.array([1.0, 4.0]), 2, 1).tolist() == [2.5, 2.5]
    assert tfidf("single", ["!", "", "?", "."], labels, ["a", "b"], 3).tolist() == [[0.25, 0.75, 0]] * 2
    assert tfidf("single", ["a", "b"], np.array([1, 1]), ["c"], 2).tolist() == [[0, 1]]


def test_frequencies_of_tokens_predict_held_out_ones_by_laplaces_rule():
    nats = unigram(np.array([0, 0, 1], np.uint16), np.array([0, 1, 2], np.uint16), 4)
    assert nats == pytest.approx(-(math.log(3 / 7) + math.log(2 / 7) + math.log(1 / 7)) / 3)
