"""Which files a list of paths, folders, globs and hub: names stands for, and what is counted while they are read."""

import glob
import os
import stat
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from lmkit.display import note
from lmkit.errors import DataError, nearest

KINDS = {".txt": "txt", ".jsonl": "jsonl", ".ndjson": "jsonl", ".csv": "csv", ".tsv": "csv", ".parquet": "parquet"}
PACKED = (".gz", ".zst")
READABLE = ".txt, .jsonl, .csv, .tsv, .parquet, and .gz or .zst of these"
EXAMPLES = 5  # places remembered for each kind of problem


@dataclass
class Problems:
    """How often each thing went wrong, and where it did first."""

    counts: dict[str, int] = field(default_factory=dict)
    examples: dict[str, list[str]] = field(default_factory=dict)

    def add(self, kind: str, where: str) -> None:
        self.counts[kind] = self.counts.get(kind, 0) + 1
        if len(places := self.examples.setdefault(kind, [])) < EXAMPLES:
            places.append(where)

    def merge(self, other: "Problems") -> None:
        for kind, places in other.examples.items():
            self.counts[kind] = self.counts.get(kind, 0) + other.counts[kind]
            mine = self.examples.setdefault(kind, [])
            mine += places[: EXAMPLES - len(mine)]


@dataclass
class Input:
    """One file, or one dataset of the hub (`name` then begins with hub:). Reading fills in `sha256` and `done`."""

    name: str
    size: int = 0  # bytes on disk; 0 for a hub dataset
    mtime: int = 0  # nanoseconds
    sha256: str = ""  # of the file's bytes; of the texts for a hub dataset; "" when it could not be read
    done: int = 0  # bytes of the file read so far
    tail: float = 0.0  # share of a plain .txt file, at its end, that is held out for validation

    @property
    def kind(self) -> str:
        return (
            "hub" if self.name.startswith("hub:") else KINDS.get(Path(self.name.removesuffix(self.packing)).suffix, "")
        )

    @property
    def packing(self) -> str:
        suffix = Path(self.name).suffix
        return suffix if suffix in PACKED else ""


@dataclass(frozen=True)
class Document:
    text: str
    line: int  # where it begins in its file, counted from 1; the row for Parquet and hub datasets
    part: int = 0  # an over-long document comes in several parts: 0, 1, ...
    held_out: bool = False  # in the tail of a file that goes to validation


def list_inputs(patterns: list[str]) -> list[Input]:
    """The files that paths, folders, globs and hub: names stand for, sorted, each file once.

    Raises DataError for a path, glob or folder that gives nothing, a kind of file that cannot be read, and for pipes
    and devices. A file that exists but cannot be opened is left to `read_documents`, which counts it."""
    found: dict[str, Input] = {}  # real path -> input
    for pattern in patterns:
        if pattern.startswith("hub:"):
            found[pattern] = Input(pattern)
        for name in [] if pattern.startswith("hub:") else _matches(pattern):
            item = Input(name)
            if not item.kind:
                raise DataError(
                    f"{name}: `{Path(name).suffix or 'no suffix'}` is not a kind of text file\n  allowed: {READABLE}"
                )
            try:
                info = os.stat(name)
            except OSError:  # a broken or circular link, or no permission: counted when it is read
                info = None
            if info and not stat.S_ISREG(info.st_mode):
                raise DataError(f"{name} is not a regular file (a pipe, device or socket cannot be read twice)")
            if info:
                item.size, item.mtime = info.st_size, info.st_mtime_ns
            found.setdefault(os.path.realpath(name), item)
    return sorted(found.values(), key=lambda item: item.name)


def _matches(pattern: str) -> list[str]:
    if os.path.isdir(pattern):
        return _folder(pattern)
    if os.path.lexists(pattern):
        return [pattern]
    names = glob.glob(pattern, recursive=True)
    if not names:
        parent = Path(pattern)
        while not parent.is_dir():
            parent = parent.parent
        held = sorted(p.name for p in parent.iterdir())
        shown = ", ".join(held[:12]) + (f" and {len(held) - 12} more" if len(held) > 12 else "")
        what = "no file matches" if glob.has_magic(pattern) else "no such file:"
        near = nearest(Path(pattern).name, held)
        hint = f"\n  → did you mean `{near}`?" if near else ""
        raise DataError(f"{what} {pattern}\n  {parent.resolve()} holds: {shown or 'nothing'}{hint}")
    return [n for name in names for n in (_folder(name) if os.path.isdir(name) else [name])]


def _folder(folder: str) -> list[str]:
    """The readable files at any depth. Each folder is entered once, so circular links end."""
    names, others, seen = [], Counter[str](), set()
    for here, folders, files in os.walk(folder, onerror=lambda e: note(f"left out: {e}"), followlinks=True):
        info = os.stat(here)
        if (info.st_dev, info.st_ino) in seen:
            folders.clear()
            continue
        seen.add((info.st_dev, info.st_ino))
        for name in files:
            if Input(name).kind:
                names.append(os.path.join(here, name))
            else:
                others[Path(name).suffix or "no suffix"] += 1
    listed = ", ".join(f"{n} {suffix}" for suffix, n in others.most_common(6))
    if not names:
        raise DataError(f"no text files in {folder}\n  it holds: {listed or 'nothing'}\n  allowed: {READABLE}")
    if others:
        note(f"{folder}: {others.total()} files of other kinds left alone ({listed})")
    return names
