"""Which tokens masked language modelling predicts, and what stands in their place."""

from itertools import groupby, pairwise

import numpy as np
import pytest

from lmkit.base.order import rng_for
from lmkit.objectives.noise.masking import choose_masked, corrupt_tokens, num_masked

MASK = 4
ORDINARY = np.arange(200, 1200)


def row(seed: int, n: int = 512) -> tuple[np.ndarray, np.ndarray]:
    """(maskable, starts): words of one to five tokens, with control tokens at both ends and inside."""
    rng = np.random.default_rng(seed)
    maskable = rng.random(n) > 0.02
    maskable[[0, -1]] = False
    return maskable, np.repeat(np.tile([True, False], n), rng.integers(1, 5, 2 * n))[:n] | (rng.random(n) < 0.3)


def words_of(maskable: np.ndarray, starts: np.ndarray) -> list[set[int]]:
    """The words of a row, written independently of the code: a walk from left to right."""
    words: list[set[int]] = []
    for i in np.flatnonzero(maskable).tolist():
        if words and i - 1 in words[-1] and not starts[i]:
            words[-1].add(i)
        else:
            words.append({i})
    return words


def within(hits: int, n: int, p: float) -> bool:
    """Four and a half standard deviations of a binomial: wrong once in 150,000 tests that are right."""
    return abs(hits - n * p) <= 4.5 * (n * p * (1 - p)) ** 0.5


@pytest.mark.parametrize(
    ("length", "rate", "most", "expected"),
    [
        (128, 0.15, 20, 19),  # BERT at 128 tokens and at 512
        (512, 0.15, 77, 77),
        (512, 0.30, None, 154),
        (512, 0.30, 20, 20),
        (3, 0.15, None, 1),
        (1, 0.9, None, 1),
        (0, 0.15, None, 0),
        (10, 0.25, None, 2),  # half to even, like Python's and BERT's round
    ],
)
def test_the_number_of_predictions_is_berts(length: int, rate: float, most: int | None, expected: int) -> None:
    assert num_masked(length, rate, most) == expected


def test_single_tokens_are_exactly_as_many_as_asked_and_never_unmaskable() -> None:
    for seed in range(100):
        maskable, _ = row(seed)
        positions = choose_masked(maskable, 77, np.random.default_rng(seed))
        assert len(positions) == 77 and maskable[positions].all()
        assert (np.diff(positions) > 0).all() and positions.dtype == np.int64


def test_every_maskable_token_is_as_likely_as_any_other() -> None:
    maskable = np.arange(40) % 4 != 0
    rng = np.random.default_rng(0)
    times = sum(np.bincount(choose_masked(maskable, 6, rng), minlength=40) for _ in range(5000))
    assert all(within(t, 5000, 6 / 30) if m else t == 0 for t, m in zip(times, maskable, strict=True))


def test_where_fewer_tokens_are_maskable_all_of_them_are_chosen() -> None:
    maskable = np.array([False, True, True, False, True])
    none = np.zeros(5, bool)
    for kwargs in [{}, {"starts": np.ones(5, bool)}, {"max_ngram": 3}]:
        assert len(choose_masked(none, 3, np.random.default_rng(0), **kwargs)) == 0
        assert len(choose_masked(maskable, 0, np.random.default_rng(0), **kwargs)) == 0
    assert choose_masked(maskable, 9, np.random.default_rng(0)).tolist() == [1, 2, 4]
    assert choose_masked(maskable, 9, np.random.default_rng(0), np.ones(5, bool)).tolist() == [1, 2, 4]


@pytest.mark.parametrize("max_ngram", [1, 3])
@pytest.mark.parametrize("rate", [0.05, 0.15, 0.5])
def test_words_are_masked_whole_or_not_at_all(rate: float, max_ngram: int) -> None:
    for seed in range(60):
        maskable, starts = row(seed)
        count = num_masked(512, rate)
        positions = set(choose_masked(maskable, count, np.random.default_rng(seed), starts, max_ngram).tolist())
        words = words_of(maskable, starts)
        assert max(map(len, words)) > 2
        assert positions == set().union(*(w for w in words if w <= positions))
        assert count - 1 <= len(positions) <= count  # one-token words always fill the last places at these rates


def test_a_word_longer_than_the_count_is_left_out_and_shorter_ones_are_still_found() -> None:
    starts = np.array([True, False, False, False, True, True, False])
    chosen = {tuple(choose_masked(np.ones(7, bool), 3, np.random.default_rng(s), starts).tolist()) for s in range(30)}
    assert chosen == {(4, 5, 6)}  # never the word of four
    chosen = {tuple(choose_masked(np.ones(7, bool), 2, np.random.default_rng(s), starts).tolist()) for s in range(30)}
    assert chosen == {(4,), (5, 6)}


def test_a_word_that_the_row_cuts_or_a_control_token_breaks_is_a_word_of_its_own() -> None:
    starts = np.zeros(6, bool)
    maskable = np.array([True, True, False, True, True, True])
    chosen = {tuple(choose_masked(maskable, 3, np.random.default_rng(s), starts).tolist()) for s in range(30)}
    assert chosen == {(0, 1), (3, 4, 5)}


@pytest.mark.parametrize("max_ngram", [2, 3, 5])
def test_ngrams_are_one_over_n(max_ngram: int) -> None:
    """In a text so long that two n-grams almost never touch, runs of predictions are n-grams."""
    weight = 1 / np.arange(1, max_ngram + 1)
    rng, sizes = np.random.default_rng(1), []
    for _ in range(40):
        positions = choose_masked(np.ones(50_000, bool), 100, rng, max_ngram=max_ngram).tolist()
        assert len(positions) == 100
        breaks = [0, *(i for i, (a, b) in enumerate(pairwise(positions), 1) if b - a > 1), len(positions)]
        sizes += [b - a for a, b in pairwise(breaks)]
    for n in range(1, max_ngram + 1):
        # the one n-gram in fifty that the count shortens, and those that touch, move a share by under 0.01
        expected = weight[n - 1] / weight.sum()
        assert abs(np.mean(np.array(sizes) == n) - expected) < 0.01 + 4 * (expected / len(sizes)) ** 0.5


def test_ngrams_near_the_end_of_a_run_are_drawn_from_the_sizes_that_fit() -> None:
    """Two tokens between control tokens: from the first, one or two with p ∝ 1/n; from the second, itself."""
    maskable = np.arange(3 * 2000) % 3 != 2
    runs = choose_masked(maskable, 300, np.random.default_rng(0), max_ngram=3) // 3
    firsts = np.unique(runs, return_counts=True)[1]
    # half of the draws begin at the second token; of the others a third are pairs: one run in six
    assert within(int((firsts == 2).sum()), len(firsts), 1 / 6)


def test_ngrams_never_reach_over_an_unmaskable_token_or_split_a_word() -> None:
    starts = np.ones(3000, bool)
    maskable = np.arange(3000) % 5 != 4
    for seed in range(20):
        chosen = np.isin(np.arange(3000), choose_masked(maskable, 400, np.random.default_rng(seed), starts, 9))
        assert not (chosen & ~maskable).any()
        assert max(len(list(run)) for hit, run in groupby(chosen) if hit) <= 4


def test_corruption_is_80_10_10_and_nothing_but_the_chosen_changes() -> None:
    tokens = np.random.default_rng(0).integers(2000, 3000, 20_000)  # no ordinary id among them
    positions = choose_masked(np.ones(20_000, bool), 9000, np.random.default_rng(1))
    before = tokens.copy()
    after = corrupt_tokens(tokens, positions, np.random.default_rng(2), MASK, ORDINARY)
    assert (tokens == before).all()
    rest = np.setdiff1d(np.arange(20_000), positions)
    assert (after[rest] == tokens[rest]).all()
    masked, kept = after[positions] == MASK, after[positions] == tokens[positions]
    replaced = np.isin(after[positions], ORDINARY)
    assert (masked ^ kept ^ replaced).all()
    assert within(masked.sum(), 9000, 0.8) and within(kept.sum(), 9000, 0.1) and within(replaced.sum(), 9000, 0.1)
    # each position for itself: what one becomes says nothing about the next
    assert within((masked[1:] & masked[:-1]).sum(), 8999, 0.64)


def test_random_tokens_are_ordinary_and_each_as_likely_as_any_other() -> None:
    tokens, ordinary = np.zeros(10_000, np.int64), np.array([3, 5, 8, 900])  # ids with gaps
    after = corrupt_tokens(tokens, np.arange(10_000), np.random.default_rng(0), MASK, ordinary, (0.0, 1.0, 0.0))
    ids, times = np.unique(after, return_counts=True)
    assert ids.tolist() == ordinary.tolist() and all(within(t, 10_000, 0.25) for t in times)


@pytest.mark.parametrize(("split", "expected"), [((1.0, 0.0, 0.0), MASK), ((0.0, 0.0, 1.0), 7)])
def test_a_split_can_be_all_of_one_kind(split: tuple[float, float, float], expected: int) -> None:
    after = corrupt_tokens(np.full(100, 7), np.arange(100), np.random.default_rng(0), MASK, ORDINARY, split)
    assert (after == expected).all()


def test_a_split_that_does_not_add_up_is_refused() -> None:
    with pytest.raises(ValueError, match=r"1\.1"):
        corrupt_tokens(np.zeros(3, np.int64), np.arange(1), np.random.default_rng(0), MASK, ORDINARY, (0.8, 0.2, 0.1))


@pytest.mark.parametrize("kwargs", [{}, {"max_ngram": 3}, {"starts": row(0)[1]}, {"starts": row(0)[1], "max_ngram": 3}])
def test_the_same_generator_gives_the_same_noise_and_another_example_other_noise(kwargs: dict) -> None:
    def noise(epoch: int) -> list[int]:
        rng = rng_for(1, epoch, 2)
        positions = choose_masked(row(0)[0], 77, rng, **kwargs)
        return corrupt_tokens(np.arange(2000, 2512), positions, rng, MASK, ORDINARY).tolist()

    np.random.seed(0)  # the global generator plays no part
    first = noise(0)
    np.random.seed(1)
    assert noise(0) == first != noise(1)
