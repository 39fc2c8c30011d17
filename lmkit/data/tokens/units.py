"""A unit of the work of tokenizing: some inputs, whose documents are encoded in order into shards of its own."""

import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lmkit.base.display import Meter
from lmkit.data.inputs import Document, Input, Problems
from lmkit.data.tokens.encode import Encoded, EncoderPool
from lmkit.data.tokens.store import SPLITS, ShardWriter, TextBatch
from lmkit.text.tokenizer import Tokenizer
from lmkit.text.training import check_kept

UNIT_BYTES = 64_000_000  # of input; what a kill can cost. A larger file is a unit of its own
BATCH_BYTES = 1_000_000  # of text sent to an encoder at once


def units_of(items: list[Input]) -> Iterator[list[Input]]:
    """Yields the inputs in groups of about UNIT_BYTES, each of one source."""
    unit: list[Input] = []
    for item in items:
        if unit and unit[0].source != item.source:
            yield unit
            unit = []
        unit.append(item)
        if size_of(unit) >= UNIT_BYTES:
            yield unit
            unit = []
    if unit:
        yield unit


def files_of(items: list[Input]) -> list[Input]:
    """Returns all files of the inputs, those of targets included."""
    return [file for item in items for file in item.files]


def size_of(items: list[Input]) -> int:
    """Returns the bytes of all files of the inputs."""
    return sum(file.size for file in files_of(items))


def bytes_read(item: Input) -> int:
    """Returns how many bytes of the files of an input were read so far."""
    return sum(file.done for file in item.files)


def stored_texts(document: Document) -> list[bytes]:
    """Returns the texts that are stored of a document: its own, or of a pair the source and the target."""
    return [side.encode() for side in (document.text, document.target) if side is not None]


class Progress:
    """The line that says how far and how fast."""

    def __init__(self, meter: Meter, done: int):
        self.meter, self.done, self.first, self.start = meter, done, done, time.monotonic()

    def show(self, within: int) -> None:
        now = self.done + within
        rate = (now - self.first) / 1e6 / max(time.monotonic() - self.start, 1e-6)
        self.meter.update(now, f"{now / 1e6:,.0f} of {self.meter.total / 1e6:,.0f} MB · {rate:.1f} MB/s")


class Unit:
    """Has the documents of some inputs encoded in order, and writes a shard for each split that gets any."""

    def __init__(self, out: Path, number: int, tokenizer: Tokenizer, kind: str, pool: EncoderPool):
        """kind: of a tokenizer that was trained here, which must be able to write its texts again; "" of others."""
        self.out, self.number, self.tokenizer, self.kind, self.pool = out, number, tokenizer, kind, pool
        self.shards: dict[str, ShardWriter] = {}
        self.batches = {split: TextBatch() for split in SPLITS}
        self.pending: deque[tuple[str, TextBatch, Future[Encoded]]] = deque()
        self.checked = self.differs = 0

    def encode(
        self,
        items: list[Input],
        documents: Callable[[Input, Problems], Iterator[tuple[str, Document]]],
        progress: Progress,
    ) -> dict[str, Any]:
        """Returns what the manifest says of the unit. documents: yields those of an input, each with its split."""
        sys.audit("lmkit.tokenize")
        problems = Problems()
        for item in items:
            for split, document in documents(item, problems):
                if self._add(split, document):
                    progress.show(bytes_read(item))
            progress.done += size_of([item])
        for split in SPLITS:
            self._send(split)
        self._receive(leave=0)
        return {
            "shards": [self.shards[split].close() for split in SPLITS if split in self.shards],
            "inputs": [{"name": i.name, "size": i.size, "sha256": i.sha256} for i in files_of(items)],
            "problems": asdict(problems),
            "checked": self.checked,
            "differs": self.differs,
        }

    def _add(self, split: str, document: Document) -> bool:
        """Adds a document to its batch, and returns whether the batch was full and is sent."""
        texts, batch = stored_texts(document), self.batches[split]
        batch.texts += texts
        batch.chars += len(document.text) + len(document.target or "")
        batch.size += sum(map(len, texts))
        if full := batch.size >= BATCH_BYTES:
            self._send(split)
        return full

    def _send(self, split: str) -> None:
        batch, self.batches[split] = self.batches[split], TextBatch()
        if batch.texts:
            self.pending.append((split, batch, self.pool.submit(batch.texts)))
        self._receive(leave=2 * self.pool.width)

    def _receive(self, leave: int) -> None:
        """Writes results, in order, until only `leave` batches are under way."""
        while len(self.pending) > leave:
            split, batch, future = self.pending.popleft()
            encoded = future.result()
            if split not in self.shards:
                self.shards[split] = ShardWriter(self.out, split, self.number, self.tokenizer)
            self.shards[split].add(batch, encoded)
            self.checked += 1
            self.differs += encoded.differs
            if encoded.differs:
                check_kept(self.tokenizer, self.kind, batch.texts[0].decode())
