"""The rows of a decoder that are written at the same time, with caches of all that can be used again.

Shapes: n rows, T tokens of the longest, S tokens of the longest source, D hidden_size."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from lmkit.model.layers import Cache
from lmkit.model.transformer import Transformer
from lmkit.objectives.collating import kept, padded


class Slots:
    """Rows that come and go between any two tokens, each with as many tokens as it has.

    A token stands in the column of its position, in all caches. What stands behind the end of a row is never seen, and
    is written over when the row reaches it; so a row may also go back."""

    def __init__(self, model: Transformer):
        self.model, self.device = model, model.embedding.weight.device
        self.lengths = list[int]()  # tokens of each row that are in the caches
        self._caches = model.new_caches(0, 0)

    def __len__(self) -> int:
        return len(self.lengths)

    def add(self, rows: int, columns: int) -> None:
        """Adds empty rows at the end. columns: the largest number of tokens that any row will have."""
        self.lengths += [0] * rows
        # Padding goes to the last column, which no row reaches.
        self._caches = [_grown(cache, len(self), columns + 1) for cache in self._caches]

    def read(self, first: int, tokens: Sequence[list[int]]) -> Tensor:
        """Reads the next tokens of the rows from number `first` on, one or more of each. Returns their states
        (n, T, D), with padding on the right."""
        at = slice(first, first + len(tokens))
        starts, sizes = self.lengths[at], list(map(len, tokens))
        positions, columns, length = None, None, starts[0]
        if len(set(starts)) > 1 or len(set(sizes)) > 1:
            begin, size = (torch.tensor(x, device=self.device)[:, None] for x in (starts, sizes))
            steps = torch.arange(max(sizes), device=self.device)
            # Padding has the position of the last token, where it sees something: a row that sees nothing becomes NaN.
            positions = begin + steps.minimum(size - 1)  # (n, T)
            columns = torch.where(steps < size, positions, self._caches[0].keys.size(2) - 1)
            length = max(start + size for start, size in zip(starts, sizes, strict=True))
        caches = [Cache(cache.keys[at], cache.values[at], length, columns) for cache in self._caches]
        ids = padded([np.array(row) for row in tokens], 0).to(self.device)
        self.lengths[at] = [start + size for start, size in zip(starts, sizes, strict=True)]
        return self._states(ids, caches, positions, at)

    def _states(self, ids: Tensor, caches: list[Cache], positions: Tensor | None, at: slice) -> Tensor:
        return self.model(ids, positions=positions, caches=caches)

    def share(self, source: "Slots", source_row: int, row: int, length: int) -> None:
        """Gives row `row` the first `length` tokens of a row of `source`, which are the same in both, and no others."""
        for x, y in zip(_tensors(self._caches), _tensors(source._caches), strict=True):
            x[row, :, :length] = y[source_row, :, :length]
        self.lengths[row] = length

    def take(self, rows: Sequence[int], since: int = 0) -> None:
        """Makes row i the one that had the number rows[i]. A row that is named several times is copied, and others
        that are not named leave.

        since: the number of first tokens that are equal in rows[i] and row i, and are not copied."""
        self.lengths = [self.lengths[i] for i in rows]
        self._caches = [_grown(cache, len(rows), 0) for cache in self._caches]
        _move(self._caches, rows, since, max(self.lengths, default=0))


class AnswerSlots(Slots):
    """The rows of an encoder-decoder, each with what its decoder reads of the source."""

    def __init__(self, model: Transformer):
        super().__init__(model)
        self._sources = list[tuple[int, ...]]()
        self._memory = model.new_caches(0, 0, cross=True)

    def read_sources(self, sources: Sequence[list[int]]) -> None:
        """Reads the sources of the last rows that were added. The encoder reads each only once."""
        different = list(dict.fromkeys(map(tuple, sources)))
        arrays = [np.array(source) for source in different]
        keep = None if (mask := kept(arrays)) is None else mask.to(self.device)  # (n, S)
        states = self.model.encode(padded(arrays, 0).to(self.device), keep)
        index = torch.tensor([different.index(tuple(source)) for source in sources], device=self.device)
        at, width = slice(len(self) - len(sources), len(self)), states.size(1)
        self._sources += map(tuple, sources)
        self._memory = [_grown(block, len(self), width) for block in self._memory]
        for block, (keys, values) in zip(self._memory, self.model.read(states), strict=True):
            block.keys[at, :, :width], block.values[at, :, :width] = keys[index], values[index]

    def _states(self, ids: Tensor, caches: list[Cache], positions: Tensor | None, at: slice) -> Tensor:
        sizes = list(map(len, self._sources[at]))
        width = max(sizes)
        memory = [(block.keys[at, :, :width], block.values[at, :, :width]) for block in self._memory]
        keep = None
        if min(sizes) < width:
            keep = torch.arange(width, device=self.device) < torch.tensor(sizes, device=self.device)[:, None]
        return self.model.decode(ids, memory, keep, caches, positions)

    def take(self, rows: Sequence[int], since: int = 0) -> None:
        super().take(rows, since)
        sources = [self._sources[i] for i in rows]
        if sources != self._sources[: len(rows)]:
            self._memory = [_grown(block, len(rows), 0) for block in self._memory]
            _move(self._memory, rows, 0, max(map(len, sources)))
        self._sources = sources


def slots_of(model: Transformer) -> Slots:
    return AnswerSlots(model) if model.config.stacks == "encoder_decoder" else Slots(model)


def _tensors(caches: Sequence[Cache]) -> list[Tensor]:
    return [x for cache in caches for x in (cache.keys, cache.values)]


def _grown(cache: Cache, rows: int, columns: int) -> Cache:
    """Returns a cache with at least so many rows and columns, and all that is in `cache`.

    It grows by doubling, so that rows that come one by one are seldom copied. What is not filled is 0: attention gives
    it no weight, but 0 times NaN would be NaN."""
    old_rows, heads, old_columns, size = cache.keys.shape
    if rows <= old_rows and columns <= old_columns:
        return cache
    new_rows = old_rows if rows <= old_rows else max(rows, 2 * old_rows)
    shape = (new_rows, heads, max(columns, old_columns), size)
    keys, values = cache.keys.new_zeros(shape), cache.keys.new_zeros(shape)
    keys[:old_rows, :, :old_columns], values[:old_rows, :, :old_columns] = cache.keys, cache.values
    return Cache(keys, values)


def _move(caches: Sequence[Cache], rows: Sequence[int], since: int, until: int) -> None:
    """Copies the columns from `since` to `until` of row rows[i] to row i, for all i at once."""
    moved = [i for i, row in enumerate(rows) if i != row]
    if moved:
        to, source = torch.tensor(moved), torch.tensor([rows[i] for i in moved])
        for x in _tensors(caches):
            part = x[:, :, since:until]
            part[to] = part[source]
