"""A run directory: everything a resume, a reader or a person needs to know about one training run.

    recipe.yaml  environment.json  status.json  lock  metrics.jsonl  timing.jsonl  events.jsonl
    checkpoints/step-00000400/   a Hugging Face folder, and training/ for resuming
    latest -> checkpoints/...    best -> checkpoints/...

metrics.jsonl holds only what is a pure function of (recipe, step); what the clock decides stands in timing.jsonl.
"""

import fcntl
import json
import os
import shutil
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from lmkit.environment import environment
from lmkit.errors import ModelError, RunInUse, StorageError, UserError
from lmkit.files import fsync_directory, sha256, write_atomic, write_json

MANIFEST = "training/manifest.json"
ADAPTER_CONFIG = "adapter_config.json"  # in a folder that holds an adapter instead of a whole model, as PEFT keeps it


class Run:
    """Opens or creates; holds a lock for life. Raises RunInUse, StorageError."""

    def __init__(self, path: Path):
        self.path, self.checkpoints = path, path / "checkpoints"
        try:
            self.checkpoints.mkdir(parents=True, exist_ok=True)
            self._lock = (path / "lock").open("a+")
        except OSError as e:
            raise StorageError(f"{path}: cannot write a run here: {e.strerror}") from None
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._lock.seek(0)
            owner = self._lock.read().strip() or "another process"
            raise RunInUse(
                f"{path}: in use by {owner}\n  → wait for it, or name another run directory with --out"
            ) from None
        self._lock.truncate(0)
        self._lock.write(f"process {os.getpid()} on {socket.gethostname()}")
        self._lock.flush()
        for half in [*self.checkpoints.glob("*.part"), *self.checkpoints.glob("*.old")]:
            shutil.rmtree(half)

    def close(self) -> None:
        self._lock.close()

    # ---- identity

    def begin(self, recipe_yaml: str, facts: dict[str, Any]) -> None:
        write_atomic(self.path / "recipe.yaml", recipe_yaml)
        write_json(self.path / "environment.json", environment() | facts)

    def status(self, state: str, **facts: Any) -> None:
        """state: running, done, stopped, diverged or failed."""
        now = time.strftime("%Y-%m-%dT%H:%M:%S%z")
        write_json(self.path / "status.json", {"state": state, "pid": os.getpid(), "time": now, **facts})

    def read_status(self) -> dict[str, Any]:
        path = self.path / "status.json"
        return json.loads(path.read_text()) if path.exists() else {}

    # ---- checkpoints

    def save(self, step: int, write: Callable[[Path], None], keep: int, best: bool) -> Path:
        """A checkpoint exists under its name if and only if it is whole: `write` fills a `.part` folder, a manifest of
        sizes and checksums comes last, everything is flushed, then one rename."""
        final, part = self.checkpoints / f"step-{step:08d}", self.part(step)
        shutil.rmtree(part, ignore_errors=True)
        try:
            (part / "training").mkdir(parents=True)
            write(part)
            files = sorted(f for f in part.rglob("*") if f.is_file())
            facts = {str(f.relative_to(part)): {"bytes": f.stat().st_size, "sha256": sha256(f)} for f in files}
            write_json(part / MANIFEST, {"step": step, "files": facts})
            for f in files:
                with f.open("rb") as handle:
                    os.fsync(handle.fileno())
            for folder in (part / "training", part):
                fsync_directory(folder)
            if final.exists():
                final.rename(final.with_name(final.name + ".old"))
            part.rename(final)
            fsync_directory(self.checkpoints)
        except OSError as e:
            shutil.rmtree(part, ignore_errors=True)
            raise StorageError(f"{final}: the checkpoint could not be written: {e.strerror or e}") from None
        shutil.rmtree(final.with_name(final.name + ".old"), ignore_errors=True)
        self._point("latest", final)
        if best:
            self._point("best", final)
        self._retire(keep)
        return final

    def part(self, step: int) -> Path:
        """Where checkpoint `step` is put together."""
        return self.checkpoints / f"step-{step:08d}.part"

    def _point(self, name: str, target: Path) -> None:
        _symlink(self.path / name, target.relative_to(self.path))

    def mark_best(self, checkpoint: Path) -> None:
        self._point("best", checkpoint)

    def link_latest(self) -> None:
        link_latest(self.path)

    def _retire(self, keep: int) -> None:
        """Only whole checkpoints, oldest step first; never the best."""
        best = (self.path / "best").resolve()
        for old in self.steps()[:-keep]:
            if old.resolve() != best:
                gone = old.with_name(old.name + ".old")
                old.rename(gone)
                shutil.rmtree(gone)

    def steps(self) -> list[Path]:
        """Checkpoint folders, oldest first."""
        return sorted(p for p in self.checkpoints.glob("step-*") if p.suffix not in (".part", ".old"))

    def newest_whole(self, told: Callable[[str], None]) -> Path:
        """The newest checkpoint whose every byte matches its manifest; damaged ones are named through `told`.
        Raises ModelError when none is left: a resume never restarts from nothing."""
        for checkpoint in reversed(self.steps()):
            problem = damage(checkpoint)
            if problem is None:
                return checkpoint
            told(f"{checkpoint.name} is damaged ({problem}); trying the one before")
        raise ModelError(f"{self.path}: no whole checkpoint to resume from\n  → start again with another --out")

    # ---- metrics

    def truncate_logs(self, step: int) -> None:
        """Drop the rows of steps that are about to be trained again, and a torn last line."""
        for name in ("metrics.jsonl", "timing.jsonl"):
            kept = [row for row in read_jsonl(self.path / name) if row["step"] <= step]
            write_atomic(self.path / name, "".join(json.dumps(row) + "\n" for row in kept))

    def open_log(self, name: str) -> IO[str]:
        return (self.path / name).open("a", buffering=1)

    def event(self, kind: str, **facts: Any) -> None:
        """Append to events.jsonl: starts, resumes, skipped steps, fallbacks."""
        with self.open_log("events.jsonl") as f:
            f.write(json.dumps({"time": time.strftime("%Y-%m-%dT%H:%M:%S%z"), "event": kind, **facts}) + "\n")


class Follower(Run):
    """What all processes of a run but the first see of it: they read it and write nothing."""

    def __init__(self, path: Path):
        self.path, self.checkpoints = path, path / "checkpoints"

    def close(self) -> None: ...

    def begin(self, recipe_yaml: str, facts: dict[str, Any]) -> None: ...

    def status(self, state: str, **facts: Any) -> None: ...

    def event(self, kind: str, **facts: Any) -> None: ...

    def mark_best(self, checkpoint: Path) -> None: ...

    def link_latest(self) -> None: ...

    def truncate_logs(self, step: int) -> None: ...

    def open_log(self, name: str) -> IO[str]:
        return open(os.devnull, "w")


def link_latest(run: Path) -> None:
    """`latest`, beside the run, means it."""
    run.parent.mkdir(parents=True, exist_ok=True)
    _symlink(run.parent / "latest", Path(run.name))


def _symlink(link: Path, target: Path) -> None:
    part = link.with_name(f".{link.name}.part")
    part.unlink(missing_ok=True)
    part.symlink_to(target)
    part.replace(link)


def damage(checkpoint: Path) -> str | None:
    """What is wrong with a checkpoint by its manifest; None if it is whole."""
    try:
        files = json.loads((checkpoint / MANIFEST).read_text())["files"]
    except (OSError, ValueError, KeyError):
        return "its manifest is missing or unreadable"
    for name, facts in files.items():
        path = checkpoint / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != facts["bytes"]:
            return f"{name} has {path.stat().st_size} bytes instead of {facts['bytes']}"
        if sha256(path) != facts["sha256"]:
            return f"{name} does not match its checksum"
    return None


def read_jsonl(path: Path) -> Iterator[dict[str, Any]]:
    """Rows of a log; a torn last line, as a crash leaves it, is passed over."""
    if not path.exists():
        return
    with path.open() as f:
        for line in f:
            if not line.endswith("\n"):
                return
            yield json.loads(line)


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
    raise ModelError(f"{path}: neither a run with a checkpoint nor a model folder (no config.json)")


def fresh_path(out: Path | None, name: str, verb: str) -> Path:
    """A run directory of its own. One named by the user must be new; otherwise runs/NAME, runs/NAME-2, ..."""
    if out is not None:
        if (out / "recipe.yaml").exists():
            raise UserError(f"{out}: holds a run already\n  → lmkit {verb} --resume {out}, or another --out")
        return out
    runs = Path("runs")
    candidates = [runs / name, *(runs / f"{name}-{n}" for n in range(2, 10_000))]
    return next(c for c in candidates if not (c / "recipe.yaml").exists())


def find_run(path: Path | str) -> Path:
    """A run directory by path. Raises UserError."""
    path = Path(path)
    if not (path / "recipe.yaml").exists():
        raise UserError(f"{path}: not a run directory (no recipe.yaml)\n  → `lmkit runs` lists runs")
    return path
