"""The token store: memory-mapped shards of ids with an index of documents.

DIR/manifest.json              written last: a store is whole if and only if it exists
    tokenizer/                 tokenizer.json and what AutoTokenizer wants beside it
    train-00000.tokens         ids, uint16 or uint32 little-endian, documents one after the other
    train-00000.index          int64 (documents, 2): tokens, UTF-8 bytes of the text
    validation-00000.tokens    ...

In a store of parallel text, documents 2i and 2i + 1 are a source and its target.
"""

import fcntl
import hashlib
import json
import os
from bisect import bisect_right
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache, cached_property, partial
from pathlib import Path
from typing import IO, Any, Self

import numpy as np

from lmkit.base.errors import DataError, RunInUse
from lmkit.base.files import lock_now, sha256
from lmkit.base.manifest import checksum
from lmkit.base.units import show_bytes, show_count
from lmkit.data.tokens.encode import Encoded
from lmkit.text.tokenizer import Tokenizer
from lmkit.text.tokenizer_files import load_tokenizer
from lmkit.text.words import id_type

FORMAT = 1
MANIFEST = "manifest.json"
PLAN = "plan.json"  # what a store is being made from, from the first moment on
SPLITS = ("train", "validation")


class Split:
    """The documents of one side, in the order of the inputs. Nothing is read until it is asked for."""

    def __init__(
        self, folder: Path, shards: list[dict[str, Any]], dtype: str, ids: dict[str, Any],
        read_tokenizer: Callable[[], Tokenizer],
    ):  # fmt: skip
        self.folder, self.shards, self.dtype = folder, shards, np.dtype(dtype).newbyteorder("<")
        self.bos_id: int | None = ids["bos_id"]
        self.eos_id: int | None = ids["eos_id"]
        self.pad_id: int | None = ids["pad_id"]
        self._read_tokenizer = read_tokenizer
        self.num_documents = sum(s["documents"] for s in shards)
        self.num_tokens = sum(s["tokens"] for s in shards)
        self.num_bytes = sum(s["bytes"] for s in shards)  # UTF-8 bytes of the texts
        self.num_unspelt = sum(s.get("unspelt", 0) for s in shards)  # of these, what the tokenizer has no token for

    @cached_property
    def _index(self) -> np.ndarray:
        parts = [np.fromfile(self.folder / f"{s['name']}.index", dtype="<i8").reshape(-1, 2) for s in self.shards]
        return np.concatenate([np.empty((0, 2), np.int64), *parts]).astype(np.int64, copy=False)

    @cached_property
    def starts(self) -> np.ndarray:
        """The first token of every document, (n,) int64, counted over all shards."""
        return np.cumsum(self.lengths) - self.lengths

    @cached_property
    def frame(self) -> tuple[int, int]:
        """The numbers of control tokens before and after the text of every document."""
        before, after = self._read_tokenizer().document_frame
        return len(before), len(after)

    @cached_property
    def _shard_starts(self) -> list[int]:
        """The first token of every shard, and the end of the last."""
        return np.cumsum([0, *(s["tokens"] for s in self.shards)]).tolist()

    @cached_property
    def _maps(self) -> dict[int, np.ndarray]:
        return {}

    @property
    def lengths(self) -> np.ndarray:
        """The number of tokens of every document, (n,) int64, BOS and EOS included."""
        return self._index[:, 0]

    def document(self, document: int) -> np.ndarray:
        """Returns all ids of a document, as a read-only view of the file."""
        return self.tokens(document, 0, int(self.lengths[document]))

    def tokens(self, document: int, start: int, stop: int) -> np.ndarray:
        """Returns ids `start` to `stop` of one document, cut at its end, as a read-only view of the file."""
        if not 0 <= document < self.num_documents:
            raise IndexError(f"document {document} of {self.num_documents}")
        first = int(self.starts[document])
        return self.stream(first + start, first + min(stop, int(self.lengths[document])))

    def stream(self, start: int, stop: int) -> np.ndarray:
        """Returns ids `start` to `stop` of all documents one after the other, read-only where they lie in one file."""
        if stop <= start:
            return np.empty(0, self.dtype)
        parts = []
        shard = bisect_right(self._shard_starts, start) - 1
        while shard < len(self.shards) and self._shard_starts[shard] < stop:
            first, end = self._shard_starts[shard : shard + 2]
            if first < end:  # an empty file cannot be mapped
                parts.append(self._map(shard)[max(start - first, 0) : stop - first])
            shard += 1
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def _map(self, shard: int) -> np.ndarray:
        if shard not in self._maps:
            file = self.folder / f"{self.shards[shard]['name']}.tokens"
            self._maps[shard] = np.asarray(np.memmap(file, self.dtype, mode="r"))
        return self._maps[shard]


class TokenStore:
    """Raises DataError when `path` is no store, is unfinished, or a file is missing or has another size."""

    def __init__(self, path: Path | str):
        self.path = Path(path)
        # A split refers to this and not to the store, which is free for others as soon as nobody refers to it.
        self._read_tokenizer = cache(partial(load_tokenizer, self.tokenizer_path))
        file = self.path / MANIFEST
        if not file.is_file():
            hint = "unfinished: run the same `lmkit tokenize` again" if is_unfinished(self.path) else "not a store"
            raise DataError(f"{self.path} is no token store ({MANIFEST} is missing; {hint})")
        try:
            self.manifest: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
            written = self.manifest.pop("sha256", None)  # of stores by older versions there is none
            version, self.fingerprint = self.manifest["format"], str(self.manifest["fingerprint"])
        except (ValueError, KeyError, TypeError) as error:
            raise self._damaged(f"{MANIFEST} cannot be read: {error!r}") from error
        if version != FORMAT:
            raise DataError(
                f"{file}: format {version}; this lmkit reads format {FORMAT}\n  → run `lmkit tokenize` again"
            )
        if written not in (None, checksum(self.manifest)):
            raise self._damaged(f"{MANIFEST} is not what was written (its checksum differs)")
        for name, entry in self._tokenizer_files():  # they go into every checkpoint
            if (self.path / name).is_file() and sha256(self.path / name) != entry["sha256"]:
                raise self._damaged(f"{name} is not what was written (its checksum differs)")
        for name, entry in self._files():
            found = (self.path / name).stat().st_size if (self.path / name).is_file() else None
            if found != entry["size"]:
                raise self._damaged(
                    f"{name} has {found} bytes, {entry['size']} were written" if found else f"no {name}"
                )

    def held(self) -> Self:
        """Returns the store, which no `lmkit tokenize` makes anew as long as this process has it. Raises RunInUse where
        one is doing so."""
        busy = f"{self.path}: another process is making it anew\n  → wait for it, then run this again"
        try:
            self._lock: IO[bytes] = lock(self.path, fcntl.LOCK_SH, busy)
            same = os.path.samestat(os.fstat(self._lock.fileno()), (self.path / MANIFEST).stat())
        except FileNotFoundError:
            same = False
        if not same:
            raise RunInUse(busy)
        return self

    def _damaged(self, what: str) -> DataError:
        return DataError(
            f"token store {self.path} is damaged: {what}\n  → delete the folder and run `lmkit tokenize` again"
        )

    def _tokenizer_files(self) -> Iterator[tuple[str, dict[str, Any]]]:
        facts = self.manifest["tokenizer"]
        for name, entry in (facts.get("files") or {"tokenizer.json": facts["file"]}).items():
            yield f"tokenizer/{name}", entry

    def _files(self) -> Iterator[tuple[str, dict[str, Any]]]:
        yield from self._tokenizer_files()
        for split in SPLITS:
            for shard in self.manifest["shards"][split]:
                yield f"{shard['name']}.tokens", shard["tokens_file"]
                yield f"{shard['name']}.index", shard["index_file"]

    @property
    def tokenizer_path(self) -> Path:
        """The folder that `load_tokenizer` and AutoTokenizer read."""
        return self.path / "tokenizer"

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer, which is read when it is first asked for."""
        return self._read_tokenizer()

    @property
    def pairs(self) -> bool:
        """Whether it is parallel text: every two documents are a source and its target."""
        return bool(self.manifest.get("pairs", False))

    def split(self, name: str, source: int | None = None) -> Split:
        """Returns the split `train` or `validation`, or what is in it of one of the sources that have weights."""
        ids, shards = self.manifest["tokenizer"], self.manifest["shards"][name]
        if source is not None:
            shards = [shard for shard in shards if shard["source"] == source]
        return Split(self.path, shards, self.manifest["dtype"], ids, self._read_tokenizer)

    def verify(self) -> None:
        """Reads every file and compares its checksum. Raises DataError, which names the first that differs."""
        for name, entry in self._files():
            if sha256(self.path / name) != entry["sha256"]:
                raise self._damaged(f"{name} is not what was written (its checksum differs)")


def lock(path: Path, how: int, busy: str) -> IO[bytes]:
    """Returns the manifest of a store, locked until it is closed. Raises RunInUse, with the text `busy`."""
    file = (path / MANIFEST).open("rb")
    try:
        lock_now(file.fileno(), how)
    except BlockingIOError:
        file.close()
        raise RunInUse(busy) from None
    return file


def unmake(path: Path, busy: str) -> None:
    """Takes away the manifest, so that a kill from here on leaves no store that seems whole. Raises RunInUse, with the
    text `busy`, where a process has it `held`."""
    with lock(path, fcntl.LOCK_EX, busy):
        (path / MANIFEST).unlink()


def is_unfinished(path: Path | str) -> bool:
    """Returns whether `lmkit tokenize` began here and has not come to its end."""
    return (Path(path) / PLAN).is_file() and not (Path(path) / MANIFEST).is_file()


def is_store(path: Path | str) -> bool:
    return (Path(path) / MANIFEST).is_file() and (Path(path) / "tokenizer").is_dir()


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


def card_lines(store: TokenStore) -> list[str]:
    """Returns what a store holds, for a terminal: a line a fact, then each kind of problem with its count and its first
    places."""
    m = store.manifest
    tokenizer, checks = m["tokenizer"], m["checks"]
    lines = [f"data card of token store {store.fingerprint[:12]}"]
    shards = [shard for split in SPLITS for shard in m["shards"][split]]
    total = {key: sum(s.get(key, 0) for s in shards) for key in ("tokens", "bytes", "unknown", "unspelt")}
    lines.append(f"  inputs      {len(m['inputs']):,} files, {show_bytes(sum(i['size'] for i in m['inputs']))}")
    for name in SPLITS:
        shards = m["shards"][name]
        documents, chars, size, tokens = (sum(s[k] for s in shards) for k in ("documents", "chars", "bytes", "tokens"))
        counted = f"{documents // 2:,} pairs" if store.pairs else f"{documents:,} documents"
        text = f"{counted} · {show_count(chars)} characters · {show_bytes(size)}"
        lines.append(f"  {name:<11} {f'{text} · {show_count(tokens)} tokens' if documents else 'none'}")
    lines.append(
        f"  tokenizer   {tokenizer['type']} · {tokenizer['vocab_size']:,} ids · {tokenizer['fingerprint'][:12]}"
    )
    lines.append(f"  fit         {total['bytes'] / max(total['tokens'], 1):.2f} bytes per token")
    if total["unknown"]:
        lines[-1] += f" · {total['unknown']:,} unknown tokens ({total['unknown'] / total['tokens']:.2%})"
    if total["unspelt"]:
        share = total["unspelt"] / total["bytes"]
        lines.append(
            f"  dropped     {show_bytes(total['unspelt'])} of text ({share:.2%}): the tokenizer has no token for it"
        )
    same = checks["checked"] - checks["differs"]
    lines.append(f"  round trip  {same:,} of {checks['checked']:,} sampled documents decode to the same text")
    for kind, count in m["problems"]["counts"].items():
        lines.append(f"  {count:,} {kind}")
        places = m["problems"]["examples"][kind]
        lines += [f"      {place}" for place in places]
        lines += ["      ..."] if count > len(places) else []
    if not m["problems"]["counts"] and not total["unspelt"]:
        lines.append("  nothing was left out")
    return lines
