"""Packs documents into rows of equal length, nearly without padding and with as few cuts as that allows."""

from collections.abc import Sequence
from math import ceil
from typing import Any

import numpy as np

from lmkit.data.tokens.store import Split

UNSCORED = -100


class PackedRows:
    """Rows of `length` inputs and labels for causal language modelling.

    A document of n tokens [bos, t1, ..., eos] has n - 1 inputs, each labelled with the token after it. Where the end is
    marked by the next BOS (eos == bos, or no eos) it has n inputs and the last is labelled BOS. Inputs are cut into
    pieces, at most `length` each; a piece knows the token after its last input, so a cut loses no label: every token
    but the first of a document is scored exactly once per epoch, wherever its row lies.

    Whole multiples of `length` fill rows; tails are packed best-fit decreasing; if more than `waste` of all inputs
    would be padding, the emptiest rows are dissolved and their pieces cut to fill the gaps of the others. Only data
    too small to fill its last row can stay above `waste`."""

    def __init__(self, split: Split, length: int, pad_id: int | None, waste: float = 0.05):
        self.split, self.length, self.pad_id = split, length, 0 if pad_id is None else pad_id
        begins = split.bos_id is not None
        self.end_label = split.bos_id if begins and split.eos_id in (None, split.bos_id) else None
        inputs = split.lengths if self.end_label is not None else np.maximum(split.lengths - 1, 0)
        total = int(inputs.sum())

        document, start, size = _cut(inputs, length)
        row, used = _best_fit(size, length)
        most_rows = max(int(total / (length * (1 - waste))), ceil(total / length))
        cut = np.empty(0, np.int64)
        if len(used) > most_rows:
            document, start, size, row, cut = _dissolve(document, start, size, row, used, length, most_rows)
        order = np.lexsort((start, document, row))
        self._document, self._start, self._size = document[order], start[order], size[order]
        rows = int(row.max()) + 1 if len(row) else 0
        self._first = np.searchsorted(row[order], np.arange(rows + 1))  # (rows + 1,) first piece of every row
        self.num_scored = total  # labels per epoch
        self.waste = 1 - total / (rows * length) if rows else 0.0  # share of inputs that are padding
        self.num_cut = len(np.unique(cut))  # documents cut though they were not longer than a row

    def __len__(self) -> int:
        return len(self._first) - 1

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Returns tokens, labels (-100 on padding) and segments (piece of the row, -1 on padding), each (length,)
        int64, and documents, the document of every segment."""
        if not 0 <= index < len(self):
            raise IndexError(f"row {index} of {len(self)}")
        tokens = np.full(self.length, self.pad_id, np.int64)
        labels = np.full(self.length, UNSCORED, np.int64)
        segments = np.full(self.length, -1, np.int64)
        pieces = range(self._first[index], self._first[index + 1])
        at = 0
        for segment, piece in enumerate(pieces):
            size, start = int(self._size[piece]), int(self._start[piece])
            read = self.split.tokens(int(self._document[piece]), start, start + size + 1)
            tokens[at : at + size] = read[:size]
            labels[at : at + len(read) - 1] = read[1:]
            if len(read) == size:  # the document ends here and its end is the next BOS
                assert self.end_label is not None, (index, piece, size)
                labels[at + size - 1] = self.end_label
            segments[at : at + size] = segment
            at += size
        return {
            "tokens": tokens,
            "labels": labels,
            "segments": segments,
            "documents": self._document[list(pieces)].tolist(),
        }


def pack_rows(pieces: Sequence[tuple[np.ndarray, np.ndarray]], length: int, pad_id: int) -> list[dict[str, Any]]:
    """Returns rows of whole pieces, tokens and labels (n,) with n <= length, as few as best-fit decreasing finds.

    Rows are like those of `PackedRows`; `documents` are the numbers of the pieces."""
    sizes = np.array([len(tokens) for tokens, _ in pieces], np.int64)
    row, used = _best_fit(sizes, length)
    together: list[list[int]] = [[] for _ in used]
    for piece, place in enumerate(row.tolist()):
        together[place].append(piece)
    rows = []
    for documents in together:
        out: dict[str, Any] = {
            "tokens": np.full(length, pad_id, np.int64),
            "labels": np.full(length, UNSCORED, np.int64),
            "segments": np.full(length, -1, np.int64),
            "documents": documents,
        }
        at = 0
        for segment, piece in enumerate(documents):
            place = slice(at, at + int(sizes[piece]))
            out["tokens"][place], out["labels"][place] = pieces[piece]
            out["segments"][place] = segment
            at = place.stop
        rows.append(out)
    return rows


def _cut(inputs: np.ndarray, length: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns (document, start, size) of the pieces, each (pieces,) int64, in document order; empty documents have
    none."""
    pieces = -(-inputs // length)
    document = np.repeat(np.arange(len(inputs)), pieces)
    nth = np.arange(len(document)) - np.repeat(np.cumsum(pieces) - pieces, pieces)
    start = nth * length
    return document, start, np.minimum(inputs[document] - start, length)


def _best_fit(size: np.ndarray, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the row of every piece, and the inputs used in every row. The largest piece comes first, and each goes
    into the fullest row that takes it.

    Pieces of one size go into rows of one remaining space together, so the loop runs over sizes, not over pieces."""
    row = np.empty(len(size), np.int64)
    order = np.argsort(-size, kind="stable")
    open_rows: dict[int, np.ndarray] = {}  # remaining space -> rows
    spaces = 0  # bit s is set while rows with s left are open
    num_rows = at = 0
    counts = np.bincount(size, minlength=length + 1)
    for piece in range(length, 0, -1):
        left = int(counts[piece])
        while left:
            fitting = spaces >> piece
            if not fitting:  # none takes it: open as many rows as are needed
                new = ceil(left / (length // piece))
                space, rows = length, np.arange(num_rows, num_rows + new)
                num_rows += new
            else:
                space = piece + (fitting & -fitting).bit_length() - 1
                rows = open_rows.pop(space)
                spaces ^= 1 << space
            each = min(space // piece, left)
            taken = rows[: left // each]
            row[order[at : at + len(taken) * each]] = np.repeat(taken, each)
            at, left = at + len(taken) * each, left - len(taken) * each
            for remaining, those in ((space - each * piece, taken), (space, rows[len(taken) :])):
                if remaining and len(those):
                    open_rows[remaining] = np.concatenate([open_rows.get(remaining, those[:0]), those])
                    spaces |= 1 << remaining
    return row, np.bincount(row, weights=size, minlength=num_rows).astype(np.int64)


def _dissolve(
    document: np.ndarray, start: np.ndarray, size: np.ndarray, row: np.ndarray, used: np.ndarray, length: int, keep: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Takes the emptiest rows apart until `keep` are left; their inputs, as one stream, fill the largest gaps first.

    The stream is cut where a piece ends and where a gap is full. Also returns the documents of the pieces cut."""
    fullest = np.argsort(-used, kind="stable")
    new_name = np.empty(len(used), np.int64)
    new_name[fullest] = np.arange(len(used))
    row = new_name[row]
    loose = np.flatnonzero(row >= keep)
    stays = np.flatnonzero(row < keep)

    gap_rows = np.arange(keep)[::-1]
    gap_ends = np.cumsum(length - used[fullest][gap_rows])
    ends = np.cumsum(size[loose])
    bounds = np.unique(np.concatenate([[0], ends, gap_ends[gap_ends < ends[-1]]]))
    low, high = bounds[:-1], bounds[1:]
    source = np.searchsorted(ends, low, side="right")  # which loose piece a stretch of the stream comes from
    target = gap_rows[np.searchsorted(gap_ends, low, side="right")]
    offset = low - (ends - size[loose])[source]
    parts = np.bincount(source)
    return (
        np.concatenate([document[stays], document[loose][source]]),
        np.concatenate([start[stays], start[loose][source] + offset]),
        np.concatenate([size[stays], high - low]),
        np.concatenate([row[stays], target]),
        document[loose][parts > 1],
    )
