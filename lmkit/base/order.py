"""Which examples make up global batch `step`: a pure function, so a run's place in its data is one integer. And how a
batch is cut."""

from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

import numpy as np

T = TypeVar("T")
OVERHEAD = 64  # tokens a forward and backward pass costs whatever is in it, on a CPU: measured


def shuffled(index: int, n: int, seed: int, epoch: int) -> int:
    """A permutation of range(n) evaluated at one point: a Feistel network that walks on while it lands outside.

    No array of n integers exists, so n may be 10**10 windows."""
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
    """The finaliser of splitmix64 (Steele et al. 2014) as a keyed round function."""
    x = (x + 0x9E3779B97F4A7C15 * (1 + r + 4 * epoch + 0x10001 * seed)) & 0xFFFFFFFFFFFFFFFF
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & 0xFFFFFFFFFFFFFFFF
    return x ^ (x >> 31)


def batch_rows(step: int, size: int, n: int, seed: int) -> list[tuple[int, int]]:
    """(epoch, example) of each of the `size` rows of global batch `step`. Epochs run on without a short last batch."""
    rows = range(step * size, (step + 1) * size)
    return [(i // n, shuffled(i % n, n, seed, i // n)) for i in rows]


def nth_left(n: int, passed_over: list[int]) -> int:
    """The n-th of the numbers 0, 1, 2, ... that are not passed over."""
    for number in sorted(passed_over):
        n += number <= n
    return n


def rng_for(seed: int, epoch: int, index: int) -> np.random.Generator:
    """Every random choice made about one example (masks, spans, crops) comes from here."""
    return np.random.default_rng((seed, epoch, index))


def rounded_up(n: int, multiple: int) -> int:
    return -(-n // multiple) * multiple


def by_length(
    items: Iterable[T], length: Callable[[T], int], batch_tokens: int, overhead: int = OVERHEAD
) -> Iterator[list[T]]:
    """Items of like length together, longest first, at most `batch_tokens` with padding (but one at least). Those of
    one length keep their order. Groups are chosen so that padding, and `overhead` tokens for every group, cost least:
    where lengths differ a lot, several small groups beat one that is mostly padding."""
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
    """Runs [first, last) of falling lengths, each of which `sizes` items have, to be padded to the first of the run."""
    best, before = [0.0], [0]  # cost of the first n lengths, and where their last run begins
    for end in range(1, len(lengths) + 1):
        rows, least, start = 0, float("inf"), end - 1
        for first in range(end - 1, -1, -1):
            rows += sizes[first]
            groups = -(-rows // max(1, batch_tokens // lengths[first]))
            cost = best[first] + rows * lengths[first] + overhead * groups
            if cost < least:
                least, start = cost, first
            if rows * (lengths[first] - lengths[end - 1]) > 2 * overhead + rows * lengths[first] // 2:
                break  # padding has outgrown anything that a cut could cost
        best.append(least)
        before.append(start)
    runs, end = list[tuple[int, int]](), len(lengths)
    while end:
        runs.append((before[end], end))
        end = before[end]
    return runs[::-1]
