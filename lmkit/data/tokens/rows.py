"""Rows for encoders and encoder-decoders: a stream of tokens, chunks of sentences, pairs. `packing` is for decoders."""

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from lmkit.base.errors import DataError, UserError
from lmkit.data.tokens.store import Split

BLOCK = 2**20  # tokens looked at together while sentences are found


class StreamRows:
    """All documents one after the other, cut into rows: `first`, stream tokens, `last`, together `length` tokens.

    The ends of documents stay in the stream; a BOS before each is left out when `first` is given, as that begins the
    row. Tokens at the end of the stream that do not fill a row are in none. Raises UserError when `first` and `last`
    leave no room."""

    def __init__(self, split: Split, length: int, first: tuple[int, ...] = (), last: tuple[int, ...] = ()):
        self.split, self.length = split, length
        self.first, self.last = np.array(first, np.int64), np.array(last, np.int64)
        self._body = length - len(first) - len(last)
        if self._body < 1:
            raise UserError(f"rows of {length} tokens hold no text beside {len(first) + len(last)} control tokens")
        self._bos = 1 if first and split.bos_id is not None else 0  # tokens left out before each document
        self._ends = np.cumsum(split.lengths - self._bos)  # (documents,) in the stream
        total = int(self._ends[-1]) if len(self._ends) else 0
        self._rows, self.num_left_over = divmod(total, self._body)  # left over: stream tokens, less than a row
        self.num_tokens = self._rows * length  # in all rows, `first` and `last` included

    def __len__(self) -> int:
        return self._rows

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Returns tokens (length,) int64; segments (length,) int64, which document of the row each token is of, counted
        from 0; documents, their numbers. `first` is counted to the first of them, `last` to the last."""
        if not 0 <= index < len(self):
            raise IndexError(f"row {index} of {len(self)}")
        start, stop = index * self._body, (index + 1) * self._body
        low, high = np.searchsorted(self._ends, (start, stop - 1), side="right").tolist()
        held = np.diff(np.concatenate([[start], self._ends[low:high], [stop]]))  # stream tokens of each document
        documents = np.flatnonzero(held) + low
        held = held[held > 0]
        held[0] += len(self.first)
        held[-1] += len(self.last)
        return {
            "tokens": np.concatenate([self.first, self._stream(start, stop, low, high), self.last]),
            "segments": np.repeat(np.arange(len(held)), held),
            "documents": documents.tolist(),
        }

    def _stream(self, start: int, stop: int, low: int, high: int) -> np.ndarray:
        """Returns tokens of the stream, which lie in documents `low` to `high`."""
        if not self._bos:
            return self.split.stream(start, stop)
        start, stop = start + low + 1, stop + high + 1  # as many BOS come before them
        kept = np.ones(stop - start, bool)
        kept[self.split.starts[low + 1 : high + 1] - start] = False
        return self.split.stream(start, stop)[kept]


class SentenceChunks:
    """Documents cut between sentences into chunks of at most `length` tokens, as full as they go, for sentence pairs.

    `ends` (V,) bool says which ids end a sentence; of several in a row, as in `?!`, the last one does. A sentence above
    `length` is cut every `length` tokens. A chunk of at least two sentences is an example; the others are counted in
    `num_single`, their tokens in `num_left_out`. Control tokens around documents are in no chunk.

    All tokens are read once, to find the sentences; what is remembered is a few numbers a chunk."""

    def __init__(self, split: Split, length: int, ends: np.ndarray):
        self.split, self.ends = split, np.asarray(ends, bool)
        found = [_chunks(split, length, self.ends, low, high) for low, high in _blocks(split)]
        chunks = np.concatenate([np.empty((4, 0), np.int64), *found], axis=1)
        self._start, self._size, sentences, self._document = chunks
        self._examples = np.flatnonzero(sentences > 1)
        self.num_single = len(sentences) - len(self._examples)
        self.num_left_out = int(self._size[sentences == 1].sum())
        self.num_documents = len(np.unique(self._document))  # that have chunks
        self.mean_tokens = float(self._size[self._examples].mean()) if len(self._examples) else float(length)

    def __len__(self) -> int:
        return len(self._examples)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Returns tokens (n,) int64; starts (m,) int64, positions 0 < p < n where a sentence begins, at least one;
        documents, the number of its document."""
        if not 0 <= index < len(self):
            raise IndexError(f"example {index} of {len(self)}")
        chunk = int(self._examples[index])
        tokens = self._tokens(chunk)
        starts = np.flatnonzero(_closing(self.ends[tokens])[:-1]) + 1
        return {"tokens": tokens, "starts": starts, "documents": [int(self._document[chunk])]}

    def random_other(self, document: int, rng: np.random.Generator) -> np.ndarray:
        """Returns (n,) int64, the tokens of any chunk of another document, or of this one if no other has chunks."""
        first, end = np.searchsorted(self._document, (document, document + 1)).tolist()
        others = len(self._document) - (end - first)
        if not others:
            return self._tokens(int(rng.integers(len(self._document))))
        chunk = int(rng.integers(others))
        return self._tokens(chunk if chunk < first else chunk + end - first)

    def _tokens(self, chunk: int) -> np.ndarray:
        start = int(self._start[chunk])
        return self.split.stream(start, start + int(self._size[chunk])).astype(np.int64)


class ParallelRows:
    """The pairs of a store of parallel text: documents 2i and 2i + 1 are a source and its target.

    A pair with a side above `longest` tokens is left out and counted in `num_too_long`. Raises DataError for a split
    that cannot consist of pairs."""

    def __init__(self, split: Split, longest: int):
        if split.num_documents % 2:
            raise DataError(
                f"{split.folder}: {split.num_documents:,} documents are no pairs of source and target\n"
                "  → make the tokens from parallel text, with data.target"
            )
        self.split = split
        lengths = split.lengths.reshape(-1, 2)
        self._pairs = np.flatnonzero((lengths <= longest).all(axis=1))
        self.lengths = lengths[self._pairs]  # (n, 2) int64, tokens of source and target, frames included
        self.num_too_long = len(lengths) - len(self._pairs)
        self.num_scored = int(self.lengths[:, 1].sum())  # target tokens an epoch

    def __len__(self) -> int:
        return len(self._pairs)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Returns source (s,) and target (t,), int64, as stored with their frames; documents, the number of the
        pair."""
        if not 0 <= index < len(self):
            raise IndexError(f"pair {index} of {len(self)}")
        pair = int(self._pairs[index])
        source, target = (self.split.document(2 * pair + side).astype(np.int64) for side in (0, 1))
        return {"source": source, "target": target, "documents": [pair]}


class JoinedRows:
    """The rows of several sources, one after the other.

    documents: of each source; the documents that a row names are counted over all of them."""

    def __init__(self, parts: Sequence[Any], documents: Sequence[int]):
        self.parts = parts
        self._rows = np.cumsum([0, *map(len, parts)]).tolist()
        self._documents = np.cumsum([0, *documents]).tolist()

    def __len__(self) -> int:
        return self._rows[-1]

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Returns what the source's own rows give."""
        source = bisect_right(self._rows, index) - 1
        row = self.parts[source][index - self._rows[source]]
        return row | {"documents": [document + self._documents[source] for document in row["documents"]]}


def _blocks(split: Split) -> Iterator[tuple[int, int]]:
    """Yields (first, one past the last) document of stretches of about BLOCK tokens."""
    cuts = np.searchsorted(split.starts, np.arange(0, split.num_tokens, BLOCK))
    edges = np.unique([0, *cuts, split.num_documents]).tolist()
    yield from pairwise(edges)


def _closing(ends: np.ndarray) -> np.ndarray:
    """Returns (n,) bool: where a run of sentence ends is over."""
    return ends & ~np.append(ends[1:], False)


def _chunks(split: Split, length: int, ends: np.ndarray, low: int, high: int) -> np.ndarray:
    """Returns (4, chunks) int64: start in the split, tokens, sentences and document of the chunks of documents `low` to
    `high - 1`. In here positions count the text of these documents alone, without the frames."""
    before, after = split.frame
    sizes = split.lengths[low:high] - (before + after)
    text_ends = np.cumsum(sizes)
    shift = split.starts[low:high] + before - (text_ends - sizes)  # from a position here to one in the split
    where = np.arange(sizes.sum()) + np.repeat(shift - split.starts[low], sizes)
    tokens = split.stream(int(split.starts[low]), int(split.starts[high - 1] + split.lengths[high - 1]))[where]
    closes = _closing(ends[tokens])
    closes[text_ends[sizes > 0] - 1] = True

    ends_at = np.flatnonzero(closes) + 1
    sentence = np.diff(ends_at, prepend=0)
    parts = -(-sentence // length)  # more than one for an over-long sentence
    nth = np.arange(parts.sum()) - np.repeat(np.cumsum(parts) - parts, parts)
    start = np.repeat(ends_at - sentence, parts) + nth * length
    end = np.minimum(start + length, np.repeat(ends_at, parts))

    document = np.searchsorted(text_ends, start, side="right")
    fitting = np.searchsorted(end, start + length, side="right")  # one past the last part a chunk from here can hold
    following = np.minimum(fitting, np.searchsorted(document, document, side="right")).tolist()
    bounds = [0]
    while bounds[-1] < len(following):
        bounds.append(following[bounds[-1]])
    first, stop = np.array(bounds[:-1], np.int64), np.array(bounds[1:], np.int64)  # parts of each chunk
    begin, owner = start[first], document[first]
    return np.stack([begin + shift[owner], end[stop - 1] - begin, stop - first, owner + low])
