"""A run directory: everything a resume, a reader or a person needs to know about one training run.

    recipe.yaml  environment.json  status.json  lock
    metrics.jsonl  timing.jsonl  samples.jsonl  events.jsonl
    scores.json  held_out.jsonl     of a fine-tuned model, and of each row that it was scored on
    checkpoints/step-00000400/   a Hugging Face folder, and training/ for resuming
    latest -> checkpoints/...    best -> checkpoints/...

metrics.jsonl holds only what depends on (recipe, step) alone; numbers that depend on the clock are in timing.jsonl.
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
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from lmkit.base.environment import environment
from lmkit.base.errors import CONTROL, ModelError, RunInUse, StorageError, UserError
from lmkit.base.files import disk_error, replace_link, write_atomic, write_json
from lmkit.base.gguf_file import is_gguf
from lmkit.base.manifest import damage, put_whole

OWN = re.compile(r"step-\d{8,}")  # names of checkpoints; other files beside them are not ours
HELD_OUT = "held_out.jsonl"
LOGS = ("metrics.jsonl", "timing.jsonl", "samples.jsonl")  # whose rows have steps
# All that is written before a run begins. A folder with only these was left by a killed start, and may be used again.
STARTED = {"lock", "checkpoints", "tokenizer", "environment.json"}
# Keys of training/state.json that hold seconds, and so differ between equal runs.
BY_THE_CLOCK = ("elapsed", "beside", "saving", "eval_seconds", "save_seconds", "reserve")
LINK = "LMKIT_LINK_LATEST"  # set for the processes of a run whose directory was not chosen by a person
ADAPTER_CONFIG = "adapter_config.json"  # PEFT's file in a folder that holds an adapter instead of a whole model


class Run:
    """Opens or creates a run directory, and locks it. The system frees the lock when the process ends in any way.

    killed: the process that had the run before and did not close it, or "". named_latest: the run that the link
    `latest` beside the runs will name once a run has begun here; None: the link stays as it is. Raises RunInUse where
    another process has the run, and StorageError where the directory cannot be written to."""

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
        """Frees the lock, and removes the directory again if no run began in it and it is otherwise empty."""
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
        """Removes what a start left that did not become a run, so that a later start does not use it."""
        shutil.rmtree(self.path / "tokenizer", ignore_errors=True)
        (self.path / "environment.json").unlink(missing_ok=True)

    def check(self) -> None:
        """Raises StorageError where the directory was deleted, or replaced by another one.

        Otherwise the run would silently create it again, or write into the directory of another run."""
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
        """Begins the run: writes its environment, with `facts`, and then its recipe. Raises StorageError."""
        with self._writing("recipe.yaml"):
            write_json(self.path / "environment.json", environment() | facts)
            sys.audit("lmkit.begin")
            write_atomic(self.path / "recipe.yaml", recipe_yaml)  # last: from here on there is a run to resume
        if self.named_latest:
            link_latest(self.named_latest)

    def status(self, state: str, **facts: Any) -> None:
        """Writes status.json. state: running, done, stopped, diverged, interrupted or failed. Raises StorageError."""
        now = time.strftime("%Y-%m-%dT%H:%M:%S%z")
        with self._writing("status.json"):
            write_json(self.path / "status.json", {"state": state, "pid": os.getpid(), "time": now, **facts})

    # ---- checkpoints

    def save(self, step: int, write: Callable[[Path], None], keep: int, best: bool) -> Path:
        """Writes a checkpoint, which exists under its name if and only if it is whole (`put_whole`).

        write: fills a folder; keep: how many checkpoints stay besides the best one; best: the link `best` will name
        this checkpoint. Returns its folder. Raises StorageError."""
        final, part = self.checkpoint(step), self.part(step)
        sys.audit("lmkit.save", step)
        with self._saving(final, part):
            put_whole(final, part, write, step)
            self._point("latest", final)
            if best:
                self._point("best", final)
            self._retire(keep)
        return final

    def save_beside(self, name: str, step: int, write: Callable[[Path], None]) -> Path:
        """Writes a model made of checkpoints up to this step, as their average is, in the same way as a checkpoint.

        The link `best` will name it. Returns its folder. Raises StorageError."""
        final, part = self.path / name, self.path / f"{name}.part"
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
        """Returns the folder in which checkpoint `step` is written before it is renamed."""
        return self.checkpoint(step).with_suffix(".part")

    def _point(self, name: str, target: Path) -> None:
        sys.audit("lmkit.link", name)
        replace_link(self.path / name, target.relative_to(self.path))

    def point_again(self, newest: Path, best: int | None) -> None:
        """Sets the links `latest` and `best` to the checkpoints `newest` and of step `best`.

        The process may have been killed before it set them, or they may name damaged checkpoints."""
        with self._writing("latest"):
            self._point("latest", newest)
            if best is not None and self.checkpoint(best).is_dir():
                self._point("best", self.checkpoint(best))
            elif not (self.path / "best").exists():
                (self.path / "best").unlink(missing_ok=True)

    def _retire(self, keep: int) -> None:
        """Deletes all but the newest `keep` checkpoints, oldest first.

        The best checkpoint stays, and those that another process is reading."""
        sys.audit("lmkit.retire")
        best = (self.path / "best").resolve()
        for old in self.steps()[:-keep]:
            with _locked(old, fcntl.LOCK_EX | fcntl.LOCK_NB) as ours:
                if ours and old.resolve() != best:
                    retired = old.with_name(old.name + ".old")
                    old.rename(retired)
                    shutil.rmtree(retired, ignore_errors=True)  # the next start removes what a reader holds open

    def steps(self) -> list[Path]:
        """Returns the folders of checkpoints, oldest first."""
        return sorted(p for p in self.checkpoints.glob("step-*") if OWN.fullmatch(p.name) and p.is_dir())

    def newest_whole(self, told: Callable[[str], None]) -> Path | None:
        """Returns the newest checkpoint that matches its manifest; None where none was ever written.

        Newer ones that are damaged are named through `told` and renamed, so that they no longer count as checkpoints.
        Raises ModelError where all are damaged, since a resume must not silently start again from step 0."""
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
        if damaged or os.path.lexists(self.path / "latest"):  # the link is set with the first checkpoint
            raise ModelError(f"{self.path}: no whole checkpoint to resume from\n  → start again with another --out")
        return None

    def _put_aside(self, checkpoint: Path) -> None:
        aside = checkpoint.with_suffix(".damaged")
        with self._writing(aside.name):
            shutil.rmtree(aside, ignore_errors=True)
            checkpoint.rename(aside)

    def drop_damaged(self, step: int, told: Callable[[str], None]) -> bool:
        """Renames the checkpoint of this step if it is damaged. Returns whether it was."""
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
        """Drops the rows of steps after `step`, which are about to be trained again, and an incomplete last line.

        Other damaged lines are dropped too, and their number is told."""
        for name in LOGS:
            damaged: list[int] = []
            rows = [row for row in read_jsonl(self.path / name, damaged) if isinstance(row.get("step"), int)]
            if damaged:
                told(f"{self.path / name}: {len(damaged):,} damaged lines are lost, like line {damaged[0]:,}")
            with self._writing(name):
                earlier = [row for row in rows if row["step"] <= step]
                write_atomic(self.path / name, "".join(json.dumps(row) + "\n" for row in earlier))

    def open_log(self, name: str) -> IO[str]:
        return (self.path / name).open("a", buffering=1)

    def event(self, kind: str, **facts: Any) -> None:
        """Appends an event to events.jsonl: starts, resumes, skipped steps, fallbacks. Raises StorageError."""
        with self._writing("events.jsonl"), self.open_log("events.jsonl") as f:
            f.write(json.dumps({"time": time.strftime("%Y-%m-%dT%H:%M:%S%z"), "event": kind, **facts}) + "\n")


class Follower(Run):
    """The run directory for all processes except the first: they read it and write nothing."""

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
    """Keeps a run that goes on training from deleting a checkpoint while it is read."""
    with _locked(checkpoint, fcntl.LOCK_SH):
        yield


@contextmanager
def _locked(folder: Path, how: int) -> Iterator[bool]:
    """Locks a folder for the time of a `with` block. Yields whether that worked; True where there are no locks."""
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
    """Says whether the link `latest` is to name a run, which is so where no person chose its directory."""
    return out is None or LINK in os.environ


def link_latest(run: Path) -> None:
    """Makes the link `latest`, beside the run, name it."""
    run.parent.mkdir(parents=True, exist_ok=True)
    replace_link(run.parent / "latest", Path(run.name))


def going_on(run: Path, verb: str) -> str:
    """Returns the command, for a shell, that goes on with a run; for one of several seeds, that goes on with all."""
    is_one_of_seeds = run.name.startswith("seed-") and (run.parent / "recipe.yaml").is_file()
    return f"lmkit {verb} --resume {shlex.quote(str(run.parent if is_one_of_seeds else run))}"


def read_jsonl(path: Path, damaged: list[int] | None = None) -> Iterator[dict[str, Any]]:
    """Yields the rows of a log, without lines at its end that a crash or power cut left incomplete or empty.

    damaged: gets the numbers of lines before the last row that cannot be read; they are left out."""
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
    """Returns the Hugging Face folder, of a model or an adapter, that `path` stands for.

    `path` is such a folder, or a run, which stands for its `best`, else its `latest`; or a GGUF file, which stands for
    itself. Raises ModelError for others."""
    path = Path(path)
    if is_gguf(path):
        return path
    for folder in (path, path / "best", path / "latest"):
        if any((folder / name).exists() for name in ("config.json", ADAPTER_CONFIG)):
            return folder
    if not path.exists():
        siblings = sorted(p.name for p in path.parent.glob("*") if p.is_dir()) if path.parent.exists() else []
        here = f"\n  {path.parent}/ holds: {', '.join(siblings[:12])}" if siblings else ""
        raise ModelError(f"{path}: no such model or run{here}\n  → `lmkit runs` lists runs")
    if seeds := seeds_of(path):
        raise ModelError(f"{path}: a run for each of several seeds\n  → name one: {', '.join(p.name for p in seeds)}")
    raise ModelError(f"{path}: neither a run with a checkpoint, nor a model folder (no config.json), nor a .gguf file")


def is_in_use(path: Path) -> bool:
    """Says whether a process has the run, or, where the system has no locks, may have it."""
    try:
        with (path / "lock").open() as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return False


def read_status(path: Path) -> dict[str, Any]:
    """Returns the content of status.json, or {} where it cannot be read, since it only serves to inform people."""
    try:
        return dict(json.loads((path / "status.json").read_text()))
    except (OSError, ValueError, TypeError):
        return {}


def seeds_of(path: Path | str) -> list[Path]:
    """Returns the run of each seed, where `path` holds such runs and is not a run itself; else []."""
    path = Path(path)
    if (path / "latest").exists() or not (path / "recipe.yaml").exists():
        return []
    return sorted(path.glob("seed-*"), key=lambda p: (len(p.name), p.name))


def fresh_path(out: Path | None, name: str, verb: str) -> Path:
    """Returns a directory for a new run: `out`, or else the first free one of runs/NAME, runs/NAME-2, ...

    Raises UserError where `out` already holds a run, or other files."""
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
    """Returns the names in a folder without a run, except those that a killed start left."""
    names = sorted(p.name for p in folder.iterdir()) if folder.is_dir() else []
    if "lock" not in names:
        return names
    return [name for name in names if name not in STARTED or (name == "checkpoints" and any((folder / name).iterdir()))]


def spare_checkpoints(run: Path) -> list[Path]:
    """Returns the checkpoints of a run that neither `best` nor, where there is no best one, `latest` names."""
    link = run / ("best" if (run / "best").exists() else "latest")
    return [p for p in sorted((run / "checkpoints").glob("*")) if p.is_dir() and p.resolve() != link.resolve()]


def delete_run(path: Path, parts: Sequence[Path] | None = None) -> None:
    """Deletes a run, or of it only the folders `parts`; links that then name nothing go too.

    Raises RunInUse where a process has the run, and StorageError where something cannot be deleted."""
    if busy := next(filter(is_in_use, seeds_of(path)), None):
        raise RunInUse(f"{busy}: in use by another process\n  → wait for it, or stop it")
    run = Run(path)  # locks it
    try:
        if parts is not None:  # It is written first, since a deletion that stops half-way has taken something too.
            write_json(path / "status.json", read_status(path) | {"pruned": True})
        for folder in [path.resolve()] if parts is None else parts:
            shutil.rmtree(folder)
        for link in (path.parent / "latest", path, path / "latest", path / "best"):
            if link.is_symlink() and not link.exists():
                link.unlink()
    except OSError as e:
        raise StorageError(f"{e.filename or path}: cannot be deleted: {e.strerror}") from None
    finally:
        run.close()


def run_around(path: Path | str) -> Path | None:
    """Returns the run that a path names, or that a checkpoint lies in; of several seeds that of the first."""
    path = next(iter(seeds_of(path)), Path(path)).resolve()
    return next((folder for folder in (path, *path.parents[:2]) if (folder / "recipe.yaml").is_file()), None)


def find_run(path: Path | str) -> Path:
    """Returns the path of a run directory. Raises UserError where it is not one."""
    path = Path(path)
    if not (path / "recipe.yaml").exists():
        raise UserError(f"{path}: not a run directory (no recipe.yaml)\n  → `lmkit runs` lists runs")
    return path
