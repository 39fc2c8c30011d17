import random

import pytest

from lmkit.base.order import Mixture, batch_rows, by_length, rng_for, shuffled


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


@pytest.mark.parametrize("seed", range(40))
def test_groups_hold_every_item_once_within_the_limit_and_cost_no_more_than_a_group_for_each_length(seed):
    rng = random.Random(seed)
    most, overhead = rng.randint(1, 200), rng.randint(0, 80)
    items = [(i, rng.randint(1, rng.choice((5, 60)))) for i in range(rng.randint(1, 40))]
    groups = list(by_length(items, lambda item: item[1], most, overhead))
    assert sorted(item for group in groups for item in group) == items
    assert all(len(g) == 1 or len(g) * max(n for _, n in g) <= most for g in groups)
    alone = list(by_length(items, lambda item: item[1], most, 0))
    padded = lambda gs: sum(len(g) * max(n for _, n in g) for g in gs)
    assert padded(alone) == sum(n for _, n in items)
    assert padded(groups) + overhead * len(groups) <= padded(alone) + overhead * len(alone)


@pytest.mark.parametrize("weights", [(3, 1), (1, 1, 1), (0.7, 0.2, 0.1), (5,), (1e-3, 1, 1000, 2)])
def test_a_mixture_gives_each_source_its_share_in_epochs_of_its_own(weights):
    sizes = (7, 40, 3, 11)[: len(weights)]
    mixture, n = Mixture(sizes, weights), 2000
    rows = [row for step in range(n // 20) for row in batch_rows(step, 20, sum(sizes), 4, mixture)]
    first = 0
    for size, weight, drawn in zip(sizes, weights, mixture.drawn(n), strict=True):
        own = [(epoch, i - first) for epoch, i in rows if first <= i < first + size]
        assert len(own) == drawn and abs(drawn - n * weight / sum(weights)) < len(sizes)
        assert own == [(at // size, shuffled(at % size, size, 4, at // size)) for at in range(drawn)]
        first += size
    counts = [mixture.drawn(k) for k in range(200)]  # at every point, not only at the end
    assert all(abs(c - k * w / sum(weights)) < len(sizes)
               for k, row in enumerate(counts) for c, w in zip(row, weights, strict=True))  # fmt: skip
