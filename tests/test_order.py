import pytest

from lmkit.order import batch_rows, rng_for, shuffled


@pytest.mark.parametrize("n", [1, 2, 7, 64, 1000])
def test_the_order_is_a_permutation_and_another_one_each_epoch(n):
    orders = [[shuffled(i, n, seed=5, epoch=e) for i in range(n)] for e in range(3)]
    assert all(sorted(order) == list(range(n)) for order in orders)
    assert n < 7 or len({tuple(order) for order in orders}) == 3


def test_every_epoch_sees_every_example_once_across_batch_bounds():
    rows = [row for step in range(23) for row in batch_rows(step, 6, 23, seed=0)]
    assert sorted(rows) == [(epoch, i) for epoch in range(6) for i in range(23)]


def test_one_point_of_a_huge_order_is_quick_and_in_range():
    assert 0 <= shuffled(10**10 - 1, 10**10, seed=1, epoch=2) < 10**10


def test_noise_is_a_function_of_seed_epoch_and_example():
    assert rng_for(1, 2, 3).random() == rng_for(1, 2, 3).random()
    assert len({rng_for(*key).random() for key in [(1, 2, 3), (2, 2, 3), (1, 3, 3), (1, 2, 4)]}) == 4
