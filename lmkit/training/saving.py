"""When a checkpoint is written, by whom, and what happens if it cannot be: training goes on, and says so."""

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Self

from torch import Tensor

from lmkit.display import note
from lmkit.errors import StorageError
from lmkit.runs import Run
from lmkit.training import checkpoints, shards
from lmkit.training.checkpoints import SHARDS, Piece
from lmkit.training.job import Job

FAILURES_IN_A_ROW = 3  # after which the run ends: what it goes on computing would be lost


class Saver:
    """Writes a run's checkpoints; with `checkpoint.background` beside training, never two at once. As a context manager
    it waits for the last one."""

    def __init__(self, job: Job, run: Run):
        self.job, self.run, self.failures = job, run, 0
        self.thread = ThreadPoolExecutor(1) if job.recipe.checkpoint.background else None
        self.pending: Future[None] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.finish(last=error is None)
        finally:
            if self.thread:
                self.thread.shutdown()

    def save(self, best: bool, last: bool) -> None:
        """Of the job as it is now. Raises StorageError where this is the last one, or three in a row failed."""
        began, job = time.monotonic(), self.job
        self.finish(last)
        pieces, held = checkpoints.snapshot(
            job.model, job.optimizers, job.state, job.average, job.tokenizer, job.special, job.adapter,
            copy=self.thread is not None,
        )  # fmt: skip
        step, progress = job.state.step, job.progress
        if self.thread:
            self.pending = self.thread.submit(self._write, step, pieces, held, best, progress)
            if last:
                self.finish(last)
        else:
            self._settle(lambda: self._write(step, pieces, held, best, progress), last)
        job.state.reserve = max(job.state.reserve, job.state.eval_seconds + 1.3 * (time.monotonic() - began))

    def finish(self, last: bool) -> None:
        """Wait for the checkpoint that is being written. Raises as `save` does."""
        if self.pending is not None:
            pending, self.pending = self.pending, None
            self._settle(pending.result, last)

    def _settle(self, write: Callable[[], None], last: bool) -> None:
        try:
            write()
            self.failures = 0
        except StorageError as e:
            self.failures += 1
            if last or self.failures == FAILURES_IN_A_ROW or self.job.world.size > 1:
                raise
            self.run.event("not saved", reason=str(e))
            note(f"{e}\n  → training goes on from memory; the previous checkpoint stays, the next one is tried on time")

    def _write(self, step: int, pieces: list[Piece], held: dict[str, Tensor], best: bool, progress: dict) -> None:
        world, job = self.job.world, self.job

        def write(folder: Path) -> None:
            for piece in pieces:
                piece(folder)
            if held:
                world.wait_to_save()
                shards.save(folder / SHARDS, held, world.saving)

        if world.first:
            self.run.save(step, write, job.recipe.checkpoint.keep, best)
            self.run.status("running", **progress)
        elif held:
            world.wait_to_save()
            shards.save(self.run.part(step) / SHARDS, held, world.saving)
