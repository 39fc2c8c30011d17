"""Notices that a process has died or hangs while the others wait for it, names it, and ends this one."""

import faulthandler
import json
import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from lmkit.errors import ProcessFailed

BEAT = 1.0  # seconds between signs of life
SILENT = 10.0  # seconds without one, by which a process is taken for dead or stopped, or half of `patience`


class Watchdog:
    """A thread that tells the other processes, through torchrun's store, where this one is. With one process it does
    nothing.

    patience: seconds without a step, outside evaluations and saves of any process, after which the run ends."""

    def __init__(self, world: Any, patience: float, run: Path):
        self.world, self.patience, self.run = world, patience, run
        self.step, self.phase = 0, "step"
        self.stopping = threading.Event()
        self.thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        if self.world.size > 1:
            self.store = self.world.store.clone()
            self.thread = threading.Thread(target=self._watch, daemon=True)
            self.thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stopping.set()
        if self.thread:
            self.thread.join()

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """For the others."""
        yield from self._during("waiting")

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """On something that takes as long as it takes: an evaluation, a checkpoint."""
        yield from self._during("at work")

    def _during(self, phase: str) -> Iterator[None]:
        before, self.phase = self.phase, phase
        yield
        self.phase = before

    def _watch(self) -> None:
        seen, since, beats = (-1, ""), time.monotonic(), 0
        heard: dict[int, tuple[int, float]] = {}  # rank -> its last beat, and when it was new
        while not self.stopping.wait(BEAT):
            beats += 1
            self.store.set(f"beat/{self.world.rank}", json.dumps([beats, self.step, self.phase]))
            if (self.step, self.phase) != seen:
                seen, since = (self.step, self.phase), time.monotonic()
            others = self._listen(heard)
            busy = any(phase == "at work" for rank, (_, phase) in others.items() if not self._silent(heard, rank))
            if self.step and self.phase != "at work" and not busy and time.monotonic() - since > self.patience:
                self._end(others, heard)

    def _listen(self, heard: dict[int, tuple[int, float]]) -> dict[int, tuple[int, str]]:
        """Step and phase of every process that ever gave a sign."""
        found = {}
        for rank in range(self.world.size):
            if not self.store.check([f"beat/{rank}"]):
                continue
            beat, step, phase = json.loads(self.store.get(f"beat/{rank}"))
            if rank not in heard or heard[rank][0] != beat:
                heard[rank] = (beat, time.monotonic())
            found[rank] = (step, phase)
        return found

    def _silent(self, heard: dict[int, tuple[int, float]], rank: int) -> bool:
        return time.monotonic() - heard[rank][1] > min(SILENT, self.patience / 2)

    def _end(self, others: dict[int, tuple[int, str]], heard: dict[int, tuple[int, float]]) -> None:
        alive = [rank for rank in others if not self._silent(heard, rank)]
        if self.world.rank == min(alive):
            lines = [f"no step for {self.patience:.0f} s; step {self.step + 1} hangs"]
            for rank, (step, phase) in others.items():
                sign = "" if rank in alive else f", no sign of life for {time.monotonic() - heard[rank][1]:.0f} s"
                lines.append(f"  process {rank}: {phase}, after step {step}{sign}")
            lines.append(f"  → what each was doing stands in {self.run / 'stacks'}; go on with --resume {self.run}")
            print("lmkit: " + "\n".join(lines), file=sys.stderr, flush=True)
        folder = self.run / "stacks"
        folder.mkdir(exist_ok=True)
        with (folder / f"process-{self.world.rank}.txt").open("w") as f:
            faulthandler.dump_traceback(f, all_threads=True)
        time.sleep(BEAT)  # for the others to write theirs before they are stopped
        os._exit(ProcessFailed.exit_code)
