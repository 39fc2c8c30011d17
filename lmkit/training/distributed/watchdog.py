"""Notices that another process has died or hangs while this one waits for it, names it, and ends this one."""

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

from lmkit.base.errors import ProcessFailed

BEAT = 1.0  # seconds between signs of life
SILENT = 10.0  # seconds without one after which a process counts as dead or stopped; at most half of `patience`


class Watchdog:
    """Tells the other processes, through torchrun's store, what this one is doing, and reads the same of them. With one
    process it does nothing.

    patience: seconds without a step, outside evaluations and saves of any process, or without a sign of life from
    another process, after which the run ends."""

    def __init__(self, world: Any, patience: float, run: Path):
        self.world, self.patience, self.run = world, patience, run
        self.step, self.phase = 0, "step"
        self.stopping = threading.Event()
        self.threads: list[threading.Thread] = []
        self.others: dict[int, tuple[int, str]] = {}  # rank -> step and phase in its last sign of life
        self.heard: dict[int, float] = {}  # rank -> the time when that sign came

    def __enter__(self) -> Self:
        if self.world.size > 1:
            self.store = self.world.store.clone()
            self.threads = [threading.Thread(target=f, daemon=True) for f in (self._exchange, self._watch)]
            for thread in self.threads:
                thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stopping.set()
        for thread in self.threads:
            thread.join(2 * BEAT)

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Marks the time of a `with` block as waiting for the other processes."""
        yield from self._during("waiting")

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """Marks the time of a `with` block as work without a time limit: an evaluation or a checkpoint."""
        yield from self._during("at work")

    def _during(self, phase: str) -> Iterator[None]:
        before, self.phase = self.phase, phase
        yield
        self.phase = before

    def _exchange(self) -> None:
        """Sends signs of life, and reads those of the others, until the watchdog stops.

        It waits where the store's machine cannot be reached, so another thread watches."""
        beats, last = 0, dict[int, int]()
        while not self.stopping.wait(BEAT):
            beats += 1
            try:
                self.store.set(f"beat/{self.world.rank}", json.dumps([beats, self.step, self.phase]))
                for rank in range(self.world.size):
                    if self.store.check([f"beat/{rank}"]):
                        beat, step, phase = json.loads(self.store.get(f"beat/{rank}"))
                        self.others[rank] = (step, phase)
                        if last.get(rank) != beat:
                            last[rank], self.heard[rank] = beat, time.monotonic()
            except RuntimeError:  # torch's DistError: the store is gone, so no sign of life can be read
                return

    def _watch(self) -> None:
        seen, since = (-1, ""), time.monotonic()
        while not self.stopping.wait(BEAT):
            if (self.step, self.phase) != seen:
                seen, since = (self.step, self.phase), time.monotonic()
            silence = {rank: time.monotonic() - at for rank, at in list(self.heard.items())}
            lost = [rank for rank, seconds in silence.items() if seconds > min(SILENT, self.patience / 2)]
            busy = any(phase == "at work" for rank, (_, phase) in list(self.others.items()) if rank not in lost)
            if max(silence.values(), default=0.0) > self.patience:
                self._end(f"no sign of life for {self.patience:.0f} s", silence, lost)
            if self.step and self.phase != "at work" and not busy and time.monotonic() - since > self.patience:
                self._end(f"no step for {self.patience:.0f} s; step {self.step + 1} hangs", silence, lost)

    def _place(self, rank: int, silence: dict[int, float], lost: bool) -> str:
        if rank == self.world.rank:
            return f"  process {rank}: {self.phase}, after step {self.step}"
        if rank not in self.others:
            return f"  process {rank}: no sign of life yet"
        step, phase = self.others[rank]
        return f"  process {rank}: {phase}, after step {step}" + f", no sign of life for {silence[rank]:.0f} s" * lost

    def _end(self, why: str, silence: dict[int, float], lost: list[int]) -> None:
        """Tells why the run ends, writes the stack of this process into the run directory, and ends the process.

        lost: the processes without a recent sign of life; all of them, where the store cannot be reached."""
        heard = {rank: place for rank, place in self.others.items() if rank not in lost}
        if self.world.rank <= min(heard, default=self.world.rank):  # only the first living process prints
            lines = [why, *(self._place(rank, silence, rank in lost) for rank in range(self.world.size))]
            lines.append(f"  → what each was doing stands in {self.run / 'stacks'}; go on with --resume {self.run}")
            print("lmkit: " + "\n".join(lines), file=sys.stderr, flush=True)
        folder = self.run / "stacks"
        folder.mkdir(exist_ok=True)
        with (folder / f"process-{self.world.rank}.txt").open("w") as f:
            faulthandler.dump_traceback(f, all_threads=True)
        time.sleep(BEAT)  # gives the others time to write their stacks before they are stopped
        os._exit(ProcessFailed.exit_code)
