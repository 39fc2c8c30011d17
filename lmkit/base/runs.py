"""A run directory: everything a resume, a reader or a person needs to know about one training run.

    recipe.yaml  environment.json  status.json  lock  metrics.jsonl  timing.jsonl  events.jsonl
    checkpoints/step-00000400/   a Hugging Face folder, and training/ for resuming
    latest -> checkpoints/...    best -> checkpoints/...

metrics.jsonl holds only what is a pure function of (recipe, step); what the clock decides stands in timing.jsonl.
"""

import fcntl
import json
import os
import re
import shlex
import shutil
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from lmkit.base.environment import environment
from lmkit.base.errors import CONTROL, ModelError, RunInUse, StorageError, UserError
from lmkit.base.files import disk_error, replace_link, write_atomic, write_json
from lmkit.base.manifest import damage, put_whole

OWN = re.compile(r"step-\d{8,}")  # checkpoints; whatever else lies beside them is somebody else's
# All that a start writes before its run begins: what a kill left of it is no run, and nobody else's.
STARTED = {"lock", "checkpoints", "tokenizer", "environment.json"}
# seconds in training/state.json, which no two runs share
BY_THE_CLOCK = ("elapsed", "beside", "saving", "eval_seconds", "save_seconds", "reserve")
LINK = "LMKIT_LINK_LATEST"  # set for the processes of a run whose place was chosen for them
ADAPTER_CONFIG = "adapter_config.json"  # in a folder that holds an adapter instead of a whole model, as PEFT keeps it


class Run:
    """Opens or creates; holds a lock for life, which the system frees when the process ends, however it ends.

    killed: the process that had the run before and did not close it. named_latest: what the link `latest` beside the
    runs is to name once a run has begun here; None: it stays. Raises RunInUse, StorageError."""

    named_latest: Path | None = None

    def __init__(self, path: Path):
        self.path, self.checkpoints = path, path / "checkpoints"
        try:
            self.checkpoints.mkdir(parents=True, exist_ok=True)
            self._lock = (path / "lock").open("a+")
            self._lock.seek(0)
            self.killed = self._lock.read().strip()
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._lock.truncate(0)
            self._lock.write(f"process {os.getpid()} on {socket.gethostname()}")
            self._lock.flush()
        except BlockingIOError:
            owner = self.killed or "another process"
            raise RunInUse(
                f"{path}: in use by {owner}\n  → wait for it, or name another run directory with --out"
            ) from None
        except OSError as e:
            raise StorageError(
                f"{path}: cannot write a run here: {e.strerror or e}\n  → --out names another place"
            ) from None
        if not (path / "recipe.yaml").exists():
            self._sweep()
        for half in self.checkpoints.iterdir():
            if OWN.fullmatch(half.stem) and half.suffix in (".part", ".old"):
                shutil.rmtree(half)

    def close(self) -> None:
        """A directory in which no run began is left as it was found."""
        with suppress(StorageError, OSError):
            self.check()
            self._lock.truncate(0)
            if not (self.path / "recipe.yaml").exists():
                self._sweep()
                (self.path / "lock").unlink()
                self.checkpoints.rmdir()
                self.path.rmdir()
        with suppress(OSError):
            self._lock.close()

    def _sweep(self) -> None:
        """Of a start that came to nothing no later one takes anything for its own."""
        shutil.rmtree(self.path / "tokenizer", ignore_errors=True)
        (self.path / "environment.json").unlink(missing_ok=True)

    def check(self) -> None:
        """Raises StorageError where the directory is gone or is another one now: nothing is made anew in silence, and
        nothing written into another's."""
        try:
            same = os.path.samestat(os.stat(self.path / "lock"), os.fstat(self._lock.fileno()))
        except (FileNotFoundError, NotADirectoryError):
            same = False
        if not same:
            raise StorageError(
                f"{self.path}: deleted or replaced while the run went on; nothing more can be saved\n"
                "  → put the directory back and --resume, or start again"
            )

    @contextmanager
    def _writing(self, name: str) -> Iterator[None]:
        self.check()
        try:
            yield
        except OSError as e:
            raise StorageError(f"{self.path / name}: cannot be written: {e.strerror}") from None

    # ---- identity

    def begin(self, recipe_yaml: str, facts: dict[str, Any]) -> None:
        with self._writing("recipe.yaml"):
            write_json(self.path / "environment.json", environment() | facts)
            sys.audit("lmkit.begin")
            write_atomic(self.path / "recipe.yaml", recipe_yaml)  # last: from here on there is a run to resume
        if self.named_latest:
            link_latest(self.named_latest)

    def status(self, state: str, **facts: Any) -> None:
        """state: running, done, stopped, diverged or failed."""
        now = time.strftime("%Y-%m-%dT%H:%M:%S%z")
        with self._writing("status.json"):
            write_json(self.path / "status.json", {"state": state, "pid": os.getpid(), "time": now, **facts})

    # ---- checkpoints

    def save(self, step: int, write: Callable[[Path], None], keep: int, best: bool) -> Path:
        """A checkpoint, which exists under its name if and only if it is whole (`put_whole`). Raises StorageError."""
        final, part = self.checkpoint(step), self.part(step)
        sys.audit("lmkit.save", step)
        with self._saving(final, part):
            put_whole(final, part, write, step)
            self._point("latest", final)
            if best:
                self._point("best", final)
            self._retire(keep)
        return final

    def save_average(self, step: int, write: Callable[[Path], None]) -> Path:
        """The average of the last checkpoints up to this step, as whole as a checkpoint, and the best. Raises
        StorageError."""
        final, part = self.path / "average", self.path / "average.part"
        with self._saving(final, part):
            put_whole(final, part, write, step)
            self._point("best", final)
        return final

    @contextmanager
    def _saving(self, final: Path, part: Path) -> Iterator[None]:
        self.check()
        try:
            yield
        except Exception as e:
            shutil.rmtree(part, ignore_errors=True)
            problem = disk_error(e)
            if problem is None:
                raise
            where = f" ({problem.filename})" if problem.filename else ""
            raise StorageError(f"{final}: the checkpoint could not be written: {problem.strerror}{where}") from None

    def checkpoint(self, step: int) -> Path:
        return self.checkpoints / f"step-{step:08d}"

    def part(self, step: int) -> Path:
        """Where checkpoint `step` is put together."""
        return self.checkpoint(step).with_suffix(".part")

    def _point(self, name: str, target: Path) -> None:
        sys.audit("lmkit.link", name)
        replace_link(self.path / name, target.relative_to(self.path))

    def point_again(self, newest: Path, best: int | None) -> None:
        """`latest`, and `best` of step `best`, as they stood when `newest` was written: a kill may have come before
        they were set, and what they name may be damaged."""
        with self._writing("latest"):
            self._point("latest", newest)
            if best is not None and self.checkpoint(best).is_dir():
                self._point("best", self.checkpoint(best))
            elif not (self.path / "best").exists():
                (self.path / "best").unlink(missing_ok=True)

    def _retire(self, keep: int) -> None:
        """Only whole checkpoints, oldest step first; never the best, nor one that somebody is reading."""
        sys.audit("lmkit.retire")
        best = (self.path / "best").resolve()
        for old in self.steps()[:-keep]:
            with _locked(old, fcntl.LOCK_EX | fcntl.LOCK_NB) as ours:
                if ours and old.resolve() != best:
                    gone = old.with_name(old.name + ".old")
                    old.rename(gone)
                    shutil.rmtree(gone, ignore_errors=True)  # the next start sweeps what a reader holds open

    def steps(self) -> list[Path]:
        """Checkpoint folders, oldest first."""
        return sorted(p for p in self.checkpoints.glob("step-*") if OWN.fullmatch(p.name) and p.is_dir())

    def newest_whole(self, told: Callable[[str], None]) -> Path | None:
        """The newest checkpoint whose every byte matches its manifest; None where none was ever written. Damaged ones
        are named through `told` and put aside, so that none of them is counted as kept.

        Raises ModelError when none is left: a resume never restarts from nothing."""
        damaged: list[Path] = []
        for checkpoint in reversed(self.steps()):
            problem = damage(checkpoint)
            if problem is None:
                for bad in damaged:
                    self._put_aside(bad)
                return checkpoint
            told(f"{checkpoint.name} is damaged ({problem}); trying the one before")
            self.event("damaged", checkpoint=checkpoint.name, problem=problem)
            damaged.append(checkpoint)
        if damaged or os.path.lexists(self.path / "latest"):  # written with the first checkpoint
            raise ModelError(f"{self.path}: no whole checkpoint to resume from\n  → start again with another --out")
        return None

    def _put_aside(self, checkpoint: Path) -> None:
        aside = checkpoint.with_suffix(".damaged")
        with self._writing(aside.name):
            shutil.rmtree(aside, ignore_errors=True)
            checkpoint.rename(aside)

    def drop_damaged(self, step: int, told: Callable[[str], None]) -> bool:
        """Whether the checkpoint of this step, if there is one, was damaged; then it is put aside."""
        checkpoint = self.checkpoint(step)
        problem = damage(checkpoint) if checkpoint.is_dir() else None
        if problem is None:
            return False
        told(f"{checkpoint.name}, the best so far, is damaged ({problem}); the next evaluation chooses the best anew")
        self.event("damaged", checkpoint=checkpoint.name, problem=problem)
        self._put_aside(checkpoint)
        return True

    # ---- metrics

    def truncate_logs(self, step: int, told: Callable[[str], None]) -> None:
        """Drop the rows of steps that are about to be trained again, and a torn last line. Lines that something else
        has damaged are dropped as well, and how many is told."""
        for name in ("metrics.jsonl", "timing.jsonl"):
            damaged: list[int] = []
            rows = [row for row in read_jsonl(self.path / name, damaged) if isinstance(row.get("step"), int)]
            if damaged:
                told(f"{self.path / name}: {len(damaged):,} damaged lines are lost, like line {damaged[0]:,}")
            with self._writing(name):
                kept = [row for row in rows if row["step"] <= step]
                write_atomic(self.path / name, "".join(json.dumps(row) + "\n" for row in kept))

    def open_log(self, name: str) -> IO[str]:
        return (self.path / name).open("a", buffering=1)

    def event(self, kind: str, **facts: Any) -> None:
        """Append to events.jsonl: starts, resumes, skipped steps, fallbacks."""
        with self._writing("events.jsonl"), self.open_log("events.jsonl") as f:
            f.write(json.dumps({"time": time.strftime("%Y-%m-%dT%H:%M:%S%z"), "event": kind, **facts}) + "\n")


class Follower(Run):
    """What all processes of a run but the first see of it: they read it and write nothing."""

    def __init__(self, path: Path):
        self.path, self.checkpoints, self.killed = path, path / "checkpoints", ""

    def close(self) -> None: ...

    def check(self) -> None: ...

    def status(self, state: str, **facts: Any) -> None: ...

    def event(self, kind: str, **facts: Any) -> None: ...

    def point_again(self, newest: Path, best: int | None) -> None: ...

    def truncate_logs(self, step: int, told: Callable[[str], None]) -> None: ...

    def open_log(self, name: str) -> IO[str]:
        return open(os.devnull, "w")


@contextmanager
def reading(checkpoint: Path) -> Iterator[None]:
    """Keeps a run that goes on training from retiring a checkpoint while it is read."""
    with _locked(checkpoint, fcntl.LOCK_SH):
        yield


@contextmanager
def _locked(folder: Path, how: int) -> Iterator[bool]:
    """Whether we hold a lock on it; where the file system has none, as if."""
    fd, ours = os.open(folder, os.O_RDONLY), True
    try:
        with suppress(OSError):
            try:
                fcntl.flock(fd, how)
            except BlockingIOError:
                ours = False
        yield ours
    finally:
        os.close(fd)


def takes_latest(out: Path | None) -> bool:
    """Whether `latest` is to name a run: where its place was not chosen by a person."""
    return out is None or LINK in os.environ


def link_latest(run: Path) -> None:
    """`latest`, beside the run, means it."""
    run.parent.mkdir(parents=True, exist_ok=True)
    replace_link(run.parent / "latest", Path(run.name))


def going_on(run: Path, verb: str) -> str:
    """The command that goes on with a run, for a shell; of one of several seeds, the one that goes on with all."""
    several = run.name.startswith("seed-") and (run.parent / "recipe.yaml").is_file()
    return f"lmkit {verb} --resume {shlex.quote(str(run.parent if several else run))}"


def read_jsonl(path: Path, damaged: list[int] | None = None) -> Iterator[dict[str, Any]]:
    """Rows of a log, without a line that a crash left torn at its end or, after a power cut, empty.

    damaged: is given the numbers of the lines before it that cannot be read; they are passed over."""
    if not path.exists():
        return
    unread: list[int] = []
    with path.open(errors="replace") as f:
        for number, line in enumerate(f, 1):
            try:
                row = json.loads(line if line.endswith("\n") else "")
            except (ValueError, RecursionError):
                row = None
            if not isinstance(row, dict):
                unread.append(number)
                continue
            if damaged is not None:
                damaged += unread
            unread.clear()
            yield row


def model_folder(path: Path | str) -> Path:
    """The Hugging Face folder, of a model or of an adapter, meant by a run (its `best`, else its `latest`) or by such
    a folder. Raises ModelError."""
    path = Path(path)
    for folder in (path, path / "best", path / "latest"):
        if any((folder / name).exists() for name in ("config.json", ADAPTER_CONFIG)):
            return folder
    if not path.exists():
        beside = sorted(p.name for p in path.parent.glob("*") if p.is_dir()) if path.parent.exists() else []
        here = f"\n  {path.parent}/ holds: {', '.join(beside[:12])}" if beside else ""
        raise ModelError(f"{path}: no such model or run{here}\n  → `lmkit runs` lists runs")
    if seeds := seeds_of(path):
        raise ModelError(f"{path}: a run for each of several seeds\n  → name one: {', '.join(p.name for p in seeds)}")
    raise ModelError(f"{path}: neither a run with a checkpoint nor a model folder (no config.json)")


def read_status(path: Path) -> dict[str, Any]:
    """Empty where there is none, or none that can be read: nothing depends on it but what people are told."""
    try:
        return dict(json.loads((path / "status.json").read_text()))
    except (OSError, ValueError, TypeError):
        return {}


def seeds_of(path: Path | str) -> list[Path]:
    """The run of each seed, where `path` holds such runs and is none itself."""
    path = Path(path)
    if (path / "latest").exists() or not (path / "recipe.yaml").exists():
        return []
    return sorted(path.glob("seed-*"), key=lambda p: (len(p.name), p.name))


def fresh_path(out: Path | None, name: str, verb: str) -> Path:
    """A run directory of its own. One named by the user must be new or empty; otherwise runs/NAME, runs/NAME-2, ...

    Raises UserError where there is a run, or what is somebody's."""
    if out is not None:
        if (out / "recipe.yaml").exists():
            raise UserError(f"{out}: holds a run already\n  → {going_on(out, verb)}, or another --out")
        if names := _of_others(out):
            raise UserError(
                f"--out {out}: holds {', '.join(names[:6])}, and no run\n  → name a new folder: a run has its own"
            )
        return out
    runs, name = Path("runs"), name.translate(CONTROL)
    candidates = [runs / name, *(runs / f"{name}-{n}" for n in range(2, 10_000))]
    return next(c for c in candidates if not (c / "recipe.yaml").exists() and not _of_others(c))


def _of_others(folder: Path) -> list[str]:
    """What a folder without a run holds, but for what is left of a start."""
    names = sorted(p.name for p in folder.iterdir()) if folder.is_dir() else []
    if "lock" not in names:
        return names
    return [name for name in names if name not in STARTED or (name == "checkpoints" and any((folder / name).iterdir()))]


def find_run(path: Path | str) -> Path:
    """A run directory by path. Raises UserError."""
    path = Path(path)
    if not (path / "recipe.yaml").exists():
        raise UserError(f"{path}: not a run directory (no recipe.yaml)\n  → `lmkit runs` lists runs")
    return path
