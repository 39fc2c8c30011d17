"""Writing the files of a token store; `lmkit.data.tokens.store` reads them."""

import hashlib
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from lmkit.data.tokens.encode import Encoded
from lmkit.text.tokenizer import Tokenizer
from lmkit.text.words import id_type


@dataclass
class TextBatch:
    """Documents on their way to one shard."""

    texts: list[bytes] = field(default_factory=list)  # UTF-8
    chars: int = 0
    size: int = 0  # bytes


class File:
    """A file that appears under its name when it is complete and on disk, with its size and checksum."""

    def __init__(self, path: Path):
        self.path, self.part = path, path.with_name(f".{path.name}.part")
        self.file, self.hash, self.size = self.part.open("wb"), hashlib.sha256(), 0

    def write(self, block: bytes) -> None:
        self.file.write(block)
        self.hash.update(block)
        self.size += len(block)

    def close(self) -> dict[str, Any]:
        self.file.flush()
        os.fsync(self.file.fileno())
        self.file.close()
        self.part.replace(self.path)
        return {"size": self.size, "sha256": self.hash.hexdigest()}


class ShardWriter:
    """The tokens and the index of one shard, and its entry in the manifest."""

    def __init__(self, folder: Path, split: str, number: int, tokenizer: Tokenizer):
        self.name, self.tokenizer = f"{split}-{number:05d}", tokenizer
        self.tokens, self.index = File(folder / f"{self.name}.tokens"), File(folder / f"{self.name}.index")
        self.entry: dict[str, Any] = {"name": self.name, "split": split}
        self.entry |= dict.fromkeys(("documents", "chars", "bytes", "tokens", "unknown", "unspelt"), 0)

    def add(self, batch: TextBatch, encoded: Encoded) -> None:
        ids = np.frombuffer(encoded.ids, id_type(self.tokenizer.vocab_size))
        if self.tokenizer.bos_id is not None:
            starts = int(np.count_nonzero(ids == self.tokenizer.bos_id))
            assert starts == len(batch.texts), f"{starts} BOS tokens in {len(batch.texts)} documents of {self.name}"
        sizes = np.array([len(t) for t in batch.texts], np.int64)
        self.tokens.write(encoded.ids)
        self.index.write(np.stack([encoded.lengths, sizes], axis=1).astype("<i8").tobytes())
        unknown = self.tokenizer.count_unknown(ids)
        more = {
            "documents": len(sizes),
            "chars": batch.chars,
            "bytes": int(sizes.sum()),
            "tokens": len(ids),
            "unknown": unknown,
            "unspelt": self.tokenizer.count_unspelt(text.decode() for text in batch.texts),
        }
        for key, value in more.items():
            self.entry[key] += value

    def close(self) -> dict[str, Any]:
        return self.entry | {"tokens_file": self.tokens.close(), "index_file": self.index.close()}
