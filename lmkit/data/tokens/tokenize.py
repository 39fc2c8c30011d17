"""Raw text to a token store, in bounded memory, on all cores, and safe to kill: the same command continues.

Inputs are handled in units, each with shards of its own. A unit is done when its `unit-*.json` is there; the store is
done when its manifest is. `plan.json` says what the folder is being made from."""

import errno
import fcntl
import hashlib
import heapq
import os
import shutil
from array import array
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from functools import cached_property, partial
from pathlib import Path
from typing import Any, NamedTuple

from lmkit.base.display import Meter, note
from lmkit.base.environment import usable_cores
from lmkit.base.errors import DataError, RunInUse, StorageError, UserError
from lmkit.base.files import disk_error, fsync_directory, lock_now, sha256, write_atomic, write_json
from lmkit.base.manifest import write_manifest
from lmkit.data.documents import read_documents, read_pairs, unread_advice
from lmkit.data.encodings import settle_encodings
from lmkit.data.inputs import Document, Input, Pairing, Problems, list_inputs, number_sources
from lmkit.data.quality.judging import Quality
from lmkit.data.tokens.encode import EncoderPool
from lmkit.data.tokens.store import (
    FORMAT,
    MANIFEST,
    PLAN,
    SPLITS,
    TokenStore,
    card_lines,
    unmake,
)
from lmkit.data.tokens.units import Progress, Unit, bytes_read, files_of, size_of, stored_texts, units_of
from lmkit.recipe.pretraining import DataConfig, TokenizerConfig
from lmkit.text.tokenizer import Tokenizer, read_object
from lmkit.text.tokenizer_files import load_tokenizer
from lmkit.text.training import train_tokenizer
from lmkit.text.words import id_type

FEW_FILES = 20  # fewer plain .txt files than this are too few documents to choose among: each gives its end
SMALL_BYTES = 10_000_000  # of input, for which starting processes does not pay
MOST_PROCESSES = 16  # of 100 MB at most; more would wait for the reader
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES)  # or not to be written to
PARTS = ".*.part"
OWN_FILES = ("unit-*.*", "train-*.*", "validation-*.*", "tokenizer", "card.txt", PARTS, PLAN)  # as removed


class UnitCounts(NamedTuple):
    """How far the work on a store is. uncompared: units whose documents the parts have yet to read for comparing."""

    uncompared: int
    done: int
    units: int


def tokenize(data: DataConfig, tokenizer: TokenizerConfig, family: str, out: Path) -> TokenStore:
    """Makes `out` the store of `data`, returns at once when it is already, and continues where a killed run stopped.

    `family` chooses the control tokens of a tokenizer that is trained here; one from `tokenizer.path` has its own.
    Raises DataError when no text can be read or a split would be empty, ModelError for a tokenizer that cannot be used,
    UserError when `out` holds something else, StorageError when `out` cannot be made or written, as on a full disk."""
    with _writing(out), _locked(out / ".lock"):
        return _Job(data, tokenizer, family, out).run()


def begin_store(data: DataConfig, tokenizer: TokenizerConfig, family: str, out: Path) -> UnitCounts:
    """Makes `out` ready for parts: what is to be made, and the tokenizer. Returns how far all parts are. Raises what
    `tokenize` raises."""
    with _writing(out), _locked(out / ".lock"):
        job = _Job(data, tokenizer, family, out)
        job.begin()
        return job.unit_counts()


def tokenize_part(
    data: DataConfig,
    tokenizer: TokenizerConfig,
    family: str,
    out: Path,
    part: int,
    parts: int,
    cores: int = MOST_PROCESSES,
) -> UnitCounts:
    """Makes the units of part `part` (from 1) of `parts`, while other processes make the others in the same folder;
    then `tokenize` makes the store of them. Returns how far all parts are. cores: how many of them it uses at most.

    Where documents are compared, a part has two rounds: as long as not all parts have written the keys of their
    documents, it writes those. Raises RunInUse where another process makes the part, and what `tokenize` raises."""
    with _writing(out), ExitStack() as stack:
        with _locked(out / ".lock"):
            job = _Job(data, tokenizer, family, out)
            if not (made := job.begin()):
                return job.unit_counts()
            plan = stack.enter_context((out / PLAN).open("rb"))
            fcntl.flock(plan, fcntl.LOCK_SH)  # held while units are made: `_Job.begin` of a whole store waits for it
            own = stack.enter_context((out / f".part-{part}-of-{parts}.lock").open("w"))
            try:
                lock_now(own.fileno(), fcntl.LOCK_EX)
            except BlockingIOError:
                raise RunInUse(f"part {part}/{parts} of {out}: another process is making it") from None
        if data.quality.deduplicate == "none" or job.write_candidates(part - 1, parts):
            job.encode(made, part - 1, parts, cores)
        return job.unit_counts()


@contextmanager
def _writing(out: Path) -> Iterator[None]:
    """Makes the folder, and raises StorageError where it cannot be made or written."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _unwritable(out, error) from error
    try:
        yield
    except Exception as error:
        problem = disk_error(error)
        if problem is None or problem.errno not in FULL:
            raise
        raise _unwritable(out, problem) from error


def _unwritable(out: Path, problem: OSError) -> StorageError:
    advice = "make room, or choose another folder (--out; LMKIT_CACHE for the cache of tokens), then run again"
    return StorageError(f"{out}: {problem.strerror}\n  → {advice}")


@contextmanager
def _locked(file: Path) -> Iterator[None]:
    """Lets in one process at a time; the others wait, then find the store done."""
    with file.open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            note(f"waiting for another process that tokenizes into {file.parent}")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


class _Job:
    def __init__(self, data: DataConfig, tokenizer: TokenizerConfig, family: str, out: Path):
        self.data, self.config, self.family, self.out = data, tokenizer, family, out
        pairing = None if data.target is None else Pairing(data.text, data.target)
        if pairing and data.separator is not None:
            raise UserError(
                "data.separator ends documents and data.target makes a pair of every line or record\n"
                "  → leave one of them out"
            )
        self.read = read_pairs if pairing else read_documents
        self.quality = Quality(data)
        share = data.validation if isinstance(data.validation, float) else None
        self.share = share or 0.0  # of the documents, chosen by hash
        self.inputs = {
            "train": _inputs(data.train, pairing, data),
            "validation": [] if share is not None else _inputs(data.validation, pairing, data),
        }
        tails = data.separator is None and len(self.inputs["train"]) < FEW_FILES
        self.tails = tails and all(i.kind == "txt" and not i.packing for i in self.inputs["train"])
        self.holding = False  # whether the document being read is held out
        if self.tails and self.share:
            note(f"few files: the last {self.share:.0%} of each is held out (data.separator splits them better)")
        for item in self.inputs["train"] if self.tails else ():
            item.tail = self.share
        self.given = None if tokenizer.path is None else load_tokenizer(tokenizer.path)
        if self.given and data.target is not None and self.given.for_targets is not self.given:
            raise UserError(
                f"tokenizer.path {tokenizer.path}: it makes ids of targets in another way than of sources, which token"
                " files cannot hold\n  → fine-tune its model with --task translate, or leave out tokenizer.path"
            )
        self.palette = None if tokenizer.path is None else _palette(Path(os.path.expanduser(tokenizer.path)))
        defaults = {"special": (), "split": "two_digits"}  # of versions without these keys, whose stores stay valid
        later = {key for key, value in defaults.items() if getattr(tokenizer, key) == value}
        trained = tokenizer.model_dump(mode="json", exclude={"path", *later}) | {"family": family}
        self.settings: dict[str, Any] = {
            "format": FORMAT,
            "tokenizer": trained if self.given is None else self.given.fingerprint,
            "separator": data.separator,
            "text": data.text,
            "validation": share,
        }
        if pairing:  # not a key otherwise: stores made before there were pairs stay valid
            self.settings["target"] = data.target
        if data.weights:
            self.settings["sources"] = [item.source for item in self.inputs["train"]]
        if data.encoding != "utf-8":
            self.settings["encoding"] = data.encoding
        if self.quality.settings:
            self.settings["quality"] = self.quality.settings
        if self.palette:  # the same words may stand for other colours
            self.settings["palette"] = sha256(self.palette)

    @cached_property
    def plan(self) -> dict[str, Any]:
        files = {split: [[f.name, f.size, f.mtime] for f in files_of(self.inputs[split])] for split in SPLITS}
        return {"settings": self.settings, "inputs": files}

    @cached_property
    def units(self) -> list[tuple[str, list[Input]]]:
        return [(split, unit) for split in SPLITS for unit in units_of(self.inputs[split])]

    def unit_counts(self) -> UnitCounts:
        """Returns how far all parts of the work are."""
        units = len(self.units)
        if (self.out / MANIFEST).is_file():
            return UnitCounts(0, units, units)
        comparing = self.data.quality.deduplicate != "none"
        return UnitCounts(len(self.waiting("candidates", 0, 1)) if comparing else 0,
                          units - len(self.waiting("json", 0, 1)), units)  # fmt: skip

    def run(self) -> TokenStore:
        if not (tokenizer := self.begin(alone=True)):
            return TokenStore(self.out)
        self.encode(tokenizer)
        self._finish(self.plan, tokenizer)
        store = TokenStore(self.out)
        write_atomic(self.out / "card.txt", "\n".join(card_lines(store)) + "\n")
        for path in (*self.out.glob("unit-*.*"), *self.out.glob(".part-*.lock")):
            path.unlink()
        return store

    def begin(self, alone: bool = False) -> Tokenizer | None:
        """Makes the folder ready for units, and returns their tokenizer; None where the store is done already.

        alone: waits for processes that make parts of it, as is done also before anything is taken away."""
        if (self.out / MANIFEST).is_file() and self._unchanged(self.plan):
            note(f"{self.out}: inputs and settings unchanged, nothing to do")
            return None
        if (self.out / PLAN).is_file() and (alone or read_object(self.out / PLAN) != self.plan):
            with _locked(self.out / PLAN):
                pass
        self._prepare(self.plan)
        return self._tokenizer()

    def _unchanged(self, plan: dict[str, Any]) -> bool:
        """Returns whether settings are the same, and files of the same name, size and time, or else of the same
        content."""
        manifest = TokenStore(self.out).manifest
        if manifest["plan"] == plan:
            return True
        items = [file for split in SPLITS for file in files_of(self.inputs[split])]
        before = manifest["inputs"]
        if manifest["plan"]["settings"] != plan["settings"] or [i["size"] for i in before] != [i.size for i in items]:
            return False
        pairs = zip(items, before, strict=True)
        return all(i.kind != "hub" and old["sha256"] == sha256(Path(i.name)) for i, old in pairs)

    def _prepare(self, plan: dict[str, Any]) -> None:
        """Makes the folder hold finished units of this plan, or nothing."""
        entries = [p for p in self.out.iterdir() if not p.match(".*lock") and not p.match(PARTS)]
        if entries and not any((self.out / name).is_file() for name in (MANIFEST, PLAN)):
            raise UserError(f"{self.out} is not empty and not a token store\n  → choose another folder for the tokens")
        if entries and read_object(self.out / PLAN) == plan and not (self.out / MANIFEST).is_file():
            note(f"{self.out}: continuing after {len(list(self.out.glob('unit-*.json')))} finished parts")
            return
        if (self.out / MANIFEST).is_file():
            why = f"{self.out}: inputs or settings have changed, "
            unmake(self.out, why + "and a run reads the tokens\n  → wait for it, or choose another folder")
            note(why + "making it anew")
        for path in [path for pattern in OWN_FILES for path in self.out.glob(pattern)]:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        write_json(self.out / PLAN, plan)

    def _tokenizer(self) -> Tokenizer:
        """Returns the tokenizer that is given, that an earlier try has trained, or a new one, and saves it in the
        store."""
        folder = self.out / "tokenizer"
        if folder.is_dir():
            return load_tokenizer(folder)
        made = self.given or self._trained()
        part = self.out / ".tokenizer.part"
        made.save(part)
        if self.palette:
            shutil.copyfile(self.palette, part / self.palette.name)
        part.rename(folder)
        fsync_directory(self.out)
        return made

    def _trained(self) -> Tokenizer:
        if self.config.type == "bytes":
            return train_tokenizer(iter(()), self.config, self.family)
        with Meter("sampling", size_of(self.inputs["train"])) as meter:
            sample = self._sample(meter)
        note(f"training the tokenizer ({self.config.type}) on {sum(map(len, sample)) / 1e6:,.1f} MB of text")
        made = train_tokenizer((text.decode() for text in sample), self.config, self.family)
        if made.vocab_size < self.config.vocab_size:
            note(f"the texts hold fewer pieces than {self.config.vocab_size:,}: {made.vocab_size:,} ids")
        return made

    def _sample(self, meter: Meter) -> list[bytes]:
        """Returns training documents for the tokenizer: all, or those of the smallest hashes that fit in `sample`
        bytes."""
        kept: list[tuple[int, int, bytes]] = []  # a heap with the largest hash on top: (-hash, -order, text)
        size = done = order = 0
        problems, quality = Problems(), self.quality.anew()
        for item in self.inputs["train"]:
            for split, document in self._documents(False, quality, item, problems):
                if split != "train":
                    continue
                texts = stored_texts(document)
                for text in texts:  # the sides of a pair stay or go together
                    order += 1
                    heapq.heappush(kept, (-_hash(texts[0]), -order, text))
                    size += len(text)
                while size > self.config.sample and len(kept) > 1:
                    size -= len(heapq.heappop(kept)[2])
                meter.update(done + bytes_read(item))
            done += size_of([item])
        if not kept:
            raise self._nothing("train", problems)
        return [text for _, _, text in sorted(kept, key=lambda entry: -entry[1])]

    def _held_out(self, document: Document) -> bool:
        """Returns the side of a document as it was read, whatever is left of it."""
        if self.tails:
            return document.held_out
        if document.part == 0:  # the parts of one long document stay together
            self.holding = _hash(document.text.encode()) < self.share * 2**64
        return self.holding

    def _documents(
        self, all_held_out: bool, quality: Quality, item: Input, problems: Problems
    ) -> Iterator[tuple[str, Document]]:
        """Yields the documents of an input that stay, each with its split."""
        for document in self.read(item, self.data, problems):
            split = "validation" if all_held_out or self._held_out(document) else "train"
            judged = quality.judge(document, f"{item.name}:{document.line}", problems)
            if judged is not None:
                yield split, judged

    def waiting(self, kind: str, part: int, parts: int) -> list[int]:
        """Returns the numbers of the units of a part (from 0) that do not have a file of this kind yet."""
        return [n for n in range(part, len(self.units), parts) if not self.unit_file(n, kind).is_file()]

    def write_candidates(self, part: int, parts: int) -> bool:
        """Writes the keys of all documents that a part compares with others, and returns whether all parts have."""
        waiting = self.waiting("candidates", part, parts)
        with Meter("comparing", sum(size_of(self.units[n][1]) for n in waiting)) as meter:
            progress = Progress(meter, 0)
            for number in waiting:
                split, items = self.units[number]
                quality = self.quality.anew(comparing=False)
                for item in items:
                    for _ in self._documents(split == "validation", quality, item, Problems()):
                        progress.show(bytes_read(item))
                    progress.done += size_of([item])
                write_atomic(self.unit_file(number, "candidates"), quality.take_added())
        return not self.waiting("candidates", 0, 1)

    def encode(self, tokenizer: Tokenizer, part: int = 0, parts: int = 1, cores: int = MOST_PROCESSES) -> None:
        """Encodes every unit of a part that is not done."""
        waiting = set(self.waiting("json", part, parts))
        total = sum(size_of(unit) for _, unit in self.units[part::parts])
        left = sum(size_of(self.units[n][1]) for n in waiting)
        cores = min(usable_cores(), cores)
        large = left > SMALL_BYTES or any(i.kind == "hub" for n in waiting for i in self.units[n][1])
        workers = cores if large and cores > 1 else 0
        with EncoderPool(self.out / "tokenizer", workers) as pool, Meter("tokenizing", total) as meter:
            progress = Progress(meter, total - left)
            for number in range(max(waiting, default=-1) + 1):
                if number in waiting:
                    unit = Unit(self.out, number, tokenizer, "" if self.given else self.config.type, pool)
                    self._encode_unit(unit, progress)
                else:
                    self._remember(number)

    def _encode_unit(self, unit: Unit, progress: Progress) -> None:
        split, items = self.units[unit.number]
        entry = unit.encode(items, partial(self._documents, split == "validation", self.quality), progress)
        if self.data.weights:
            entry["shards"] = [shard | {"source": items[0].source} for shard in entry["shards"]]
        if keys := self.quality.take_added():
            write_atomic(self.unit_file(unit.number, "keys"), keys)
        fsync_directory(self.out)
        write_json(self.unit_file(unit.number, "json"), entry)

    def _remember(self, number: int) -> None:
        """Takes the documents of a unit as seen, so that later ones are compared with them."""
        for kind in ("keys", "candidates"):  # of the documents that stayed, where that is known
            if (file := self.unit_file(number, kind)).is_file():
                self.quality.remember(array("Q", file.read_bytes()))
                return

    def unit_file(self, number: int, kind: str) -> Path:
        """Returns where a unit keeps what is known of it (`json`), the keys of the documents of it that stay (`keys`),
        or of all that are compared (`candidates`)."""
        return self.out / f"unit-{number:05d}.{kind}"

    def _finish(self, plan: dict[str, Any], tokenizer: Tokenizer) -> None:
        """Sums up in the manifest what the units say."""
        units = [read_object(path) for path in sorted(self.out.glob("unit-*.json"))]
        problems = Problems()
        for unit in units:
            problems.merge(Problems(**unit["problems"]))
        shards = {split: [s for u in units for s in u["shards"] if s["split"] == split] for split in SPLITS}
        wanted = [split for split in SPLITS if split == "train" or self.share or self.inputs["validation"]]
        for split in wanted:
            if not shards[split]:
                raise self._nothing(split, problems)
        inputs = [item for unit in units for item in unit["inputs"]]
        identity = repr(
            (self.settings, tokenizer.fingerprint, [i["sha256"] for i in inputs], len(self.inputs["train"]))
        )
        files = sorted((self.out / "tokenizer").iterdir())
        manifest = {
            "format": FORMAT,
            **({} if self.data.target is None else {"pairs": True}),
            "fingerprint": hashlib.sha256(identity.encode()).hexdigest(),
            "dtype": str(id_type(tokenizer.vocab_size)),
            "tokenizer": {
                "type": self.config.type if self.given is None else f"taken from {self.config.path}",
                "fingerprint": tokenizer.fingerprint,
                "vocab_size": tokenizer.vocab_size,
                **{f"{role}_id": getattr(tokenizer, f"{role}_id") for role in ("bos", "eos", "pad")},
                "files": {f.name: {"size": f.stat().st_size, "sha256": sha256(f)} for f in files},
            },
            "checks": {key: sum(u[key] for u in units) for key in ("checked", "differs")},
            "problems": asdict(problems),
            "shards": shards,
            "inputs": inputs,
            "plan": plan,
        }
        fsync_directory(self.out)  # the shards, before what says that they are there
        write_manifest(self.out / MANIFEST, manifest)
        fsync_directory(self.out)

    def _nothing(self, split: str, problems: Problems) -> DataError:
        counted = "".join(f"\n  {n:,} {kind}: {problems.examples[kind][0]}" for kind, n in problems.counts.items())
        counted += unread_advice(problems)
        if split == "train" or not self.share:
            return DataError(f"no {split} document could be read from {len(self.inputs[split]):,} inputs{counted}")
        return DataError(
            f"holding out {self.share:.3g} of the documents for validation leaves none: there are too few{counted}\n"
            "  → name files of their own in data.validation, or hold out none with data.validation=0; data.separator"
            " splits .txt files into documents"
        )


def _inputs(patterns: str | list[str] | float, pairing: Pairing | None, data: DataConfig) -> list[Input]:
    named = [patterns] if isinstance(patterns, str) else list(patterns)  # type: ignore[arg-type]
    groups = [[pattern] for pattern in named] if data.weights and patterns == data.train else [named]
    listed = [list_inputs(group, pairing, data) for group in groups]
    number_sources(listed)
    return settle_encodings([item for items in listed for item in items])


def _palette(path: Path) -> Path | None:
    """Returns the file beside a tokenizer of images that says what its words look like: in a run, a store or a
    folder."""
    places = (path / name / "palette.json" for name in ("latest", "tokenizer", ""))
    return next((place for place in places if place.is_file()), None)


def _hash(text: bytes) -> int:
    """Returns 64 bits that depend on the text alone, so that equal documents are on one side of the split."""
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little")
