"""The documents of a token store that share the most with a text, token by token."""

import heapq
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from lmkit.base.display import Meter
from lmkit.data.tokens.ngrams import BLOCK, ngram_hashes
from lmkit.data.tokens.store import Split

NGRAM = 4  # tokens that a document must share in a row to be listed


class Neighbour(NamedTuple):
    """What a document shares with a text. Documents order by it: a longer sequence is nearer, then more n-grams."""

    length: int  # tokens of the longest sequence that stands in both
    ngrams: int  # places of the document at which an n-gram of the text stands
    document: int
    start: int  # where the sequence begins in the document
    start_in_text: int


def nearest_documents(split: Split, text: list[int], most: int) -> list[Neighbour]:
    """Returns the nearest documents, at most `most`, the nearest first; of equal ones the later in the store.

    N-grams have NGRAM tokens, or those of the text if it has fewer. The store is read once, a block of documents at a
    time, and only the best are kept."""
    query, n = np.array(text, np.int64), min(NGRAM, len(text))
    if n == 0:
        return []
    wanted, best = np.unique(ngram_hashes(query, n)), list[Neighbour]()
    ends = split.starts + split.lengths
    with Meter("searching", split.num_tokens) as meter:
        for first, last in _blocks(ends):
            begin = int(split.starts[first])
            ids = split.stream(begin, int(ends[last - 1]))
            if len(ids) >= n:
                places = begin + np.flatnonzero(np.isin(ngram_hashes(ids, n), wanted))
                documents = np.searchsorted(ends, places, side="right")
                whole = places + n <= ends[documents]
                _keep_best(best, split, query, n, most, places[whole], documents[whole])
            meter.update(int(ends[last - 1]), f"{last:,} of {len(ends):,} documents")
    return sorted(best, reverse=True)


def _blocks(ends: np.ndarray) -> Iterator[tuple[int, int]]:
    """Yields the first document and the one behind the last of each block of whole documents, of about BLOCK tokens."""
    first = 0
    while first < len(ends):
        begin = int(ends[first - 1]) if first else 0
        last = max(first + 1, int(np.searchsorted(ends, begin + BLOCK, side="right")))
        yield first, last
        first = last


def _keep_best(
    best: list[Neighbour], split: Split, query: np.ndarray, n: int, most: int, places: np.ndarray, documents: np.ndarray
) -> None:
    """Puts those of the documents into the heap `best` that are nearer than what it holds.

    places, documents: each place in the store at which an n-gram of the text stands, in order, and its document. What
    is shared is no longer than the longest run of neighbouring places, so only documents that can be near are read."""
    if not len(places):
        return
    breaks = (np.diff(places) != 1) | (np.diff(documents) != 0)
    starts = np.concatenate(([0], np.flatnonzero(breaks) + 1))
    runs = np.diff(np.append(starts, len(places)))
    owners, first_runs = np.unique(documents[starts], return_index=True)
    longest = np.maximum.reduceat(runs, first_runs) + n - 1
    counts = np.add.reduceat(runs, first_runs)
    for length, count, document in zip(longest.tolist(), counts.tolist(), owners.tolist(), strict=True):
        if len(best) == most and (length, count, document) < best[0][:3]:
            continue
        length, start, start_in_text = _longest_shared(split.document(document), query)
        shared = Neighbour(length, count, document, start, start_in_text)
        heapq.heappush(best, shared) if len(best) < most else heapq.heappushpop(best, shared)


def _longest_shared(document: np.ndarray, query: np.ndarray) -> tuple[int, int, int]:
    """Returns the length of the longest sequence that stands in both, and where it begins in each."""
    ending, longest = np.zeros(len(document) + 1, np.int64), (0, 0, 0)  # the length of what ends before each place
    for i, token in enumerate(query.tolist(), 1):
        ending[1:] = np.where(document == token, ending[:-1] + 1, 0)
        end = int(ending.argmax())
        longest = max(longest, (int(ending[end]), end - int(ending[end]), i - int(ending[end])), key=lambda f: f[0])
    return longest
