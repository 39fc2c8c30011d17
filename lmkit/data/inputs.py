"""The files that a list of paths, folders, globs and hub: names stands for, and what is counted while they are read."""

import glob
import os
import stat
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lmkit.base.display import note
from lmkit.base.errors import DataError, UserError, nearest
from lmkit.recipe.sources import SourcesConfig

KINDS = {
    ".txt": "txt", ".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "json", ".csv": "csv", ".tsv": "csv",
    ".parquet": "parquet", ".arrow": "arrow", ".feather": "arrow", ".xlsx": "xlsx",
}  # fmt: skip
PACKED = (".gz", ".zst")
READABLE = (
    ".txt, .jsonl, .json, .csv, .tsv, .xlsx, .parquet, .arrow, .feather, .gz or .zst of these; others by "
    "data.text_files (--text-files)"
)
ABOUT_DATA = ("dataset_info.json", "dataset_dict.json", "state.json")  # that `datasets` puts beside data
EXAMPLES = 5  # places remembered for each kind of problem


@dataclass
class Problems:
    """Counts how often each thing went wrong, and remembers where it did first."""

    counts: dict[str, int] = field(default_factory=dict)
    examples: dict[str, list[str]] = field(default_factory=dict)
    rows: list[tuple[str, str]] | None = None  # (kind, place) of every record that is lost; None where nobody asks

    def add(self, kind: str, where: str, lost: bool = True) -> None:
        """Counts one problem. lost: a record is left out because of it."""
        if lost and self.rows is not None:
            self.rows.append((kind, where))
        self.counts[kind] = self.counts.get(kind, 0) + 1
        if len(places := self.examples.setdefault(kind, [])) < EXAMPLES:
            places.append(where)

    def merge(self, other: "Problems") -> None:
        for kind, places in other.examples.items():
            self.counts[kind] = self.counts.get(kind, 0) + other.counts[kind]
            own_places = self.examples.setdefault(kind, [])
            own_places += places[: EXAMPLES - len(own_places)]


@dataclass
class Input:
    """One file, or one dataset of the hub (`name` then begins with hub:). Reading fills in the last three fields."""

    name: str
    size: int = 0  # bytes on disk; 0 for a hub dataset
    mtime: int = 0  # nanoseconds
    tail: float = 0.0  # share of a plain .txt file, at its end, that is held out for validation
    encoding: str = "utf-8"  # of its text; auto: by its bytes
    text_files: tuple[str, ...] = ()  # endings of files that are text besides .txt
    source: int = 0  # which one of those it is that a recipe weighs
    targets: "Input | None" = None  # line by line the target texts of the sentences in this file
    sha256: str = ""  # of the file's bytes; of the texts for a hub dataset; "" when it could not be read
    done: int = 0  # bytes of the file read so far
    whole: bool = False  # it was read to its end

    @property
    def files(self) -> list["Input"]:
        """This file, and the file of its targets where there is one."""
        return [self, self.targets] if self.targets else [self]

    @property
    def kind(self) -> str:
        if self.name.startswith("hub:"):
            return "hub"
        suffix = Path(_unpacked(self.name)).suffix
        if suffix in self.text_files:
            return "html" if suffix in (".html", ".htm") else "txt"
        return "lines" if self.targets else KINDS.get(suffix, "")

    @property
    def packing(self) -> str:
        suffix = Path(self.name).suffix
        return suffix if suffix in PACKED else ""

    def look(self) -> None:
        """Notes the size and time of the file. Raises DataError for pipes and devices, and for a name that is not
        UTF-8."""
        try:
            self.name.encode()
            info = os.stat(self.name)
        except UnicodeEncodeError as e:
            raise DataError(f"{os.fsencode(self.name)!r}: the name is not UTF-8\n  → rename the file") from e
        except OSError:  # a broken or circular link, or no permission: counted when it is read
            return
        if not stat.S_ISREG(info.st_mode):
            raise DataError(f"{self.name} is not a regular file (a pipe, device or socket cannot be read twice)")
        self.size, self.mtime = info.st_size, info.st_mtime_ns


@dataclass(frozen=True)
class Document:
    text: str
    line: int  # where it begins in its file, counted from 1; the row for Parquet and hub datasets
    part: int = 0  # an over-long document comes in several parts: 0, 1, ...
    held_out: bool = False  # in the tail of a file that goes to validation
    target: str | None = None  # the other side of a pair; None where texts are no pairs
    beside: Any = None  # the value of a column that was asked for


@dataclass(frozen=True)
class Pairing:
    """The endings by which files of parallel text with a sentence a line are named, like `en` and `de`.

    NAME.en goes with NAME.de, NAME.en.txt with NAME.de.txt, and any other NAME.txt with NAME.de."""

    source: str
    target: str

    def __post_init__(self) -> None:
        if self.source == self.target:
            raise UserError(
                f"data.text and data.target are both `{self.source}`\n  → name the sources and the targets of the pairs"
            )

    def is_target(self, name: str) -> bool:
        return _unpacked(name).endswith((f".{self.target}", f".{self.target}.txt"))

    def target_of(self, name: str) -> str:
        """Returns the name of the file of targets that belongs to a file of sources, without packing; "" for other
        files."""
        bare = _unpacked(name)
        for tail in ("", ".txt"):
            if bare.endswith(f".{self.source}{tail}"):
                return bare.removesuffix(f"{self.source}{tail}") + self.target + tail
        return bare.removesuffix("txt") + self.target if bare.endswith(".txt") else ""

    def find(self, name: str) -> Input | None:
        """Returns the file of targets, packed or not; None for a file that has none. Raises DataError when it is
        missing."""
        wanted = self.target_of(name)
        if not wanted:
            return None
        candidates = [wanted + packing for packing in dict.fromkeys([Input(name).packing, "", *PACKED])]
        existing = next((c for c in candidates if os.path.lexists(c)), None)
        if existing is None:
            raise DataError(
                f"{name}: the file with its target texts is missing\n"
                f"  expected: {candidates[0]} (or {', '.join(Path(c).name for c in candidates[1:])})\n"
                f"  → put it there, or set data.target, now `{self.target}`, to the ending of its name"
            )
        return Input(existing)


def _unpacked(name: str) -> str:
    return name.removesuffix(Input(name).packing)


def list_inputs(
    patterns: list[str], pairing: Pairing | None = None, config: SourcesConfig | None = None
) -> list[Input]:
    """Returns the files that paths, folders, globs and hub: names stand for, sorted, each once. With a `pairing`, files
    of a sentence a line come with those of their targets.

    Raises DataError for a path, glob or folder that gives nothing, a kind of file that cannot be read, for pipes and
    devices, and for either side of parallel text without the other. A file that exists but cannot be opened is left to
    `read_documents`, which counts it."""

    def kind_of(name: str) -> str:
        if pairing and (pairing.target_of(name) or pairing.is_target(name)):
            return "lines"
        return Input(name, text_files=config.text_files if config else ()).kind

    files = list_files(patterns, kind_of, _readable(pairing), "is not a kind of text file", config)
    if pairing is None:
        return files
    targets = [item for item in files if pairing.is_target(item.name)]
    sources = [item for item in files if item not in targets]
    for item in sources:
        item.targets = pairing.find(item.name)
        if item.targets:
            item.targets.encoding = item.encoding
            item.targets.look()
    known = {os.path.realpath(item.targets.name) for item in sources if item.targets}
    for item in targets:
        if os.path.realpath(item.name) not in known:
            source = Pairing(pairing.target, pairing.source).target_of(item.name)
            raise DataError(
                f"{item.name} holds targets (data.target is `{pairing.target}`) without sources\n"
                f"  → name the file of the sources in its place; expected: {source}"
            )
    return sources


def number_sources(groups: Sequence[Sequence[Input]]) -> None:
    """Notes on each file which source it belongs to: the files of each are a group. Raises DataError for one in two."""
    owners: dict[str, int] = {}
    for number, item in ((number, item) for number, items in enumerate(groups) for item in items):
        item.source = number
        if owners.setdefault(os.path.realpath(item.name), number) != number:
            raise DataError(f"{item.name} belongs to two sources of data.weights\n  → leave it out of one of them")


def list_files(
    patterns: list[str], kind_of: Callable[[str], str], allowed: str, refusal: str, config: SourcesConfig | None = None
) -> list[Input]:
    """Returns the files that paths, folders, globs and hub: names stand for, sorted, each once.

    kind_of: returns "" for a name that cannot be read. allowed, refusal: for the message about such a file, where it is
    named and not in a folder. config: says how files are read. Raises DataError for such a file, for
    whatever gives nothing, and for pipes and devices."""
    items: dict[str, Input] = {}  # by real path
    repeated = list[str]()
    for pattern in patterns:
        if pattern.startswith("hub:"):
            items[pattern] = Input(pattern)
            continue
        for name in files_of(pattern, lambda name: bool(kind_of(name)), allowed):
            if not kind_of(name):
                raise DataError(f"{name}: `{Path(name).suffix or 'no suffix'}` {refusal}\n  allowed: {allowed}")
            item = Input(name, encoding=config.encoding, text_files=config.text_files) if config else Input(name)
            item.look()
            if items.setdefault(os.path.realpath(name), item) is not item:
                repeated.append(name)
    if repeated:
        note(f"{len(repeated):,} of the files are named more than once and count once, like {repeated[0]}")
    return sorted(items.values(), key=lambda item: item.name)


def _readable(pairing: Pairing | None) -> str:
    return READABLE + (f"; .{pairing.source} beside .{pairing.target}, a sentence a line" if pairing else "")


def files_of(pattern: str, wanted: Callable[[str], bool], allowed: str) -> list[str]:
    """Returns the files that a path, folder or glob stands for; of folders, those that are `wanted`. Raises DataError,
    which says what is `allowed`, where there are none."""
    if os.path.isdir(pattern):
        return _folder(pattern, wanted, allowed)
    if os.path.lexists(pattern):
        return [pattern]
    names = glob.glob(pattern, recursive=True)
    if not names:
        parent = Path(pattern)
        while not os.path.isdir(parent):  # whose name may be too long to ask for
            parent = parent.parent
        siblings = sorted(p.name for p in parent.iterdir())
        shown = ", ".join(siblings[:12]) + (f" and {len(siblings) - 12} more" if len(siblings) > 12 else "")
        what = "no file matches" if glob.has_magic(pattern) else "no such file:"
        near = nearest(Path(pattern).name, siblings)
        hint = f"\n  → did you mean `{near}`?" if near else ""
        raise DataError(f"{what} {pattern}\n  {parent.resolve()} holds: {shown or 'nothing'}{hint}")
    return [n for name in names for n in (_folder(name, wanted, allowed) if os.path.isdir(name) else [name])]


def _folder(folder: str, wanted: Callable[[str], bool], allowed: str) -> list[str]:
    """Returns the `wanted` files at any depth. Each folder is entered once, so that circular links end."""
    names, others, seen = [], Counter[str](), set()
    for here, folders, files in os.walk(folder, onerror=lambda e: note(f"left out: {e}"), followlinks=True):
        info = os.stat(here)
        if (info.st_dev, info.st_ino) in seen:
            folders.clear()
            continue
        seen.add((info.st_dev, info.st_ino))
        if "dataset_dict.json" in files:
            splits = sorted(folders)
            raise DataError(f"{here} holds splits: {', '.join(splits)}\n  → name one of them: {here}/{splits[-1]}")
        for name in files:
            if wanted(name) and name not in ABOUT_DATA:
                names.append(os.path.join(here, name))
            else:
                others[Path(name).suffix or "no suffix"] += 1
    listed = ", ".join(f"{n} {suffix}" for suffix, n in others.most_common(6))
    if not names:
        raise DataError(f"no text files in {folder}\n  it holds: {listed or 'nothing'}\n  allowed: {allowed}")
    if others:
        note(f"{folder}: {others.total()} files of other kinds left alone ({listed})")
    return names
