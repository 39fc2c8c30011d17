"""Says which examples make up global batch `step`, and cuts batches into groups of similar length.

The examples depend only on step and seed, so the place of a run in its data is one integer."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from typing import TypeVar

import numpy as np

T = TypeVar("T")
OVERHEAD = 64  # the fixed cost of a forward and backward pass on a CPU, in tokens; measured


def shuffled(index: int, n: int, seed: int, epoch: int) -> int:
    """Returns the value at `index` of a random permutation of range(n).

    It is a Feistel network over a power of two, applied again while the result is n or more. No array of n integers is
    needed, so n may be 10**10."""
    half = max(1, (max(n - 1, 1).bit_length() + 1) // 2)
    mask = (1 << half) - 1
    while True:
        left, right = index >> half, index & mask
        for r in range(4):
            left, right = right, left ^ (_mix(right, seed, epoch, r) & mask)
        index = (left << half) | right
        if index < n:
            return index


def _mix(x: int, seed: int, epoch: int, r: int) -> int:
    """Returns a random 64-bit number for x: the finaliser of splitmix64 (Steele et al. 2014), with a key."""
    x = (x + 0x9E3779B97F4A7C15 * (1 + r + 4 * epoch + 0x10001 * seed)) & 0xFFFFFFFFFFFFFFFF
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & 0xFFFFFFFFFFFFFFFF
    return x ^ (x >> 31)


@dataclass(frozen=True)
class Mixture:
    """Sources of examples, which stand one after the other, and how often each is read beside the others.

    Of any number of rows each source has its share, to less than a row for each source before it. It reads its own
    examples in shuffled epochs."""

    sizes: tuple[int, ...]  # examples of each source
    weights: tuple[float, ...]

    def drawn(self, rows: int) -> list[int]:
        """Returns how many of the first `rows` rows come from each source. A source takes its share, rounded down, of
        the rows that those before it leave, so no count ever falls."""
        counts = list[int]()
        for share in self._shares:
            counts.append(rows * share.numerator // share.denominator)
            rows -= counts[-1]
        return counts

    @cached_property
    def _shares(self) -> list[Fraction]:
        """The share of each source in what those before it leave."""
        weights = [Fraction(weight) for weight in self.weights]
        return [weight / sum(weights[i:]) for i, weight in enumerate(weights)]

    def row(self, index: int, seed: int) -> tuple[int, int]:
        """Returns (epoch of its source, example) of row `index`."""
        before, after = self.drawn(index), self.drawn(index + 1)
        source = next(i for i, count in enumerate(before) if after[i] > count)
        epoch, at = divmod(before[source], self.sizes[source])
        return epoch, sum(self.sizes[:source]) + shuffled(at, self.sizes[source], seed, epoch)


def batch_rows(step: int, size: int, n: int, seed: int, mixture: Mixture | None = None) -> list[tuple[int, int]]:
    """Returns (epoch, example) of each of the `size` rows of global batch `step`. mixture: of the `n` examples, where
    they are of several sources.

    A batch may reach into the next epoch, so there is no short last batch."""
    rows = range(step * size, (step + 1) * size)
    if mixture:
        return [mixture.row(i, seed) for i in rows]
    return [(i // n, shuffled(i % n, n, seed, i // n)) for i in rows]


def nth_left(n: int, passed_over: list[int]) -> int:
    """Returns the n-th (from 0) of the numbers 0, 1, 2, ... that are not passed over."""
    for number in sorted(passed_over):
        n += number <= n
    return n


def rng_for(seed: int, epoch: int, index: int) -> np.random.Generator:
    """Returns the generator for all random choices about one example (masks, spans, crops)."""
    return np.random.default_rng((seed, epoch, index))


def rounded_up(n: int, multiple: int) -> int:
    return -(-n // multiple) * multiple


def by_length(
    items: Iterable[T], length: Callable[[T], int], batch_tokens: int, overhead: int = OVERHEAD
) -> Iterator[list[T]]:
    """Yields groups of items of similar length, longest first.

    A group has at most `batch_tokens` tokens with padding, but at least one item. Items of one length keep their order.
    Groups are chosen so that padding, plus `overhead` tokens for every group, costs least: where lengths differ a lot,
    several small groups cost less than one that is mostly padding."""
    together: dict[int, list[T]] = {}
    for item in items:
        together.setdefault(length(item), []).append(item)
    lengths = sorted(together, reverse=True)
    sizes = [len(together[n]) for n in lengths]
    for first, last in _cheapest_cuts(lengths, sizes, batch_tokens, overhead):
        alike = [item for n in lengths[first:last] for item in together[n]]
        rows = max(1, batch_tokens // lengths[first])
        yield from (alike[at : at + rows] for at in range(0, len(alike), rows))


def _cheapest_cuts(lengths: list[int], sizes: list[int], batch_tokens: int, overhead: int) -> list[tuple[int, int]]:
    """Returns runs [first, last) of `lengths`, each to be padded to its first length, at the lowest total cost.

    lengths: in descending order; sizes: the number of items of each length."""
    best, before = [0.0], [0]  # for the first n lengths: the lowest cost, and where the last run begins
    for end in range(1, len(lengths) + 1):
        rows, least, start = 0, float("inf"), end - 1
        for first in range(end - 1, -1, -1):
            rows += sizes[first]
            groups = -(-rows // max(1, batch_tokens // lengths[first]))
            cost = best[first] + rows * lengths[first] + overhead * groups
            if cost < least:
                least, start = cost, first
            if rows * (lengths[first] - lengths[end - 1]) > 2 * overhead + rows * lengths[first] // 2:
                break  # padding costs more than any cut could
        best.append(least)
        before.append(start)
    runs, end = list[tuple[int, int]](), len(lengths)
    while end:
        runs.append((before[end], end))
        end = before[end]
    return runs[::-1]
