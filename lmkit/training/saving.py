"""Writes checkpoints during training. If one cannot be written, training goes on, and the user is told."""

import sys
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from torch import Tensor

from lmkit.base.display import note
from lmkit.base.errors import OutOfMemory, StorageError, UserError
from lmkit.base.files import write_atomic
from lmkit.base.runs import Run
from lmkit.training import checkpoints, guard, rhythm
from lmkit.training.checkpoints import SHARDS, PieceWriter
from lmkit.training.job import Job
from lmkit.training.step import out_of_memory

LESS = "  → checkpoint.async=false needs no copy of what it writes; a smaller model"
FAILURES_IN_A_ROW = 3  # the run ends after so many, since all that it still computes might be lost


class Saver:
    """Writes a run's checkpoints, never two at once. As a context manager it waits for the last one.

    With `checkpoint.async`, a thread writes them while training goes on."""

    def __init__(self, job: Job, run: Run):
        self.job, self.run, self.failures = job, run, 0
        self.thread = ThreadPoolExecutor(1) if job.recipe.checkpoint.asynchronous else None
        self.pending: Future[None] | None = None
        self.took = 0.0  # seconds that writing the last one took
        self.recipe = (run.path / "recipe.yaml").read_bytes() if job.world.first else b""
        self.best = self.saved_best = job.state.best  # `State.best` in the checkpoint being written; in the last whole

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.finish(last=error is None)
        except UserError as e:
            if error is None:
                raise
            note(str(e))  # the error that ends the run is raised, so this one is only told
        finally:
            if self.thread:
                self.thread.shutdown()

    def save(self, best: bool, last: bool) -> None:
        """Writes a checkpoint of the job as it is now.

        best: this step has the best evaluation so far; last: training ends here. Raises Diverged where a weight is not
        finite. Raises StorageError where the checkpoint cannot be written and is the last one, or the third that failed
        in a row, or where several processes train; OutOfMemory in the same cases where memory is not enough."""
        began, job = rhythm.clock(), self.job
        self.finish(last=False)  # the checkpoint before this one
        guard.check_weights(job, self.run)
        self.best = job.state.best
        try:
            pieces, shards = self._snapshot(copy=self.thread is not None)
        except (RuntimeError, MemoryError) as e:
            if not out_of_memory(e):
                raise
            self._failed(OutOfMemory(f"memory is not enough to save step {job.state.step}: {e}\n{LESS}"), last)
            return
        step, progress = job.state.step, job.progress
        if self.thread:
            self.pending = self.thread.submit(self._write, step, pieces, shards, best, progress)
            if last:
                self.finish(last)
        else:
            self._settle(lambda: self._write(step, pieces, shards, best, progress), last)
        # With a thread, training waits only for a part of the time.
        job.state.save_seconds = max(job.state.save_seconds, self.took, rhythm.clock() - began)

    def _snapshot(self, copy: bool) -> tuple[list[PieceWriter], dict[str, Tensor]]:
        job = self.job
        pieces, shards = checkpoints.snapshot(
            job.model, job.optimizers, job.state, job.average, job.tokenizer_folder, job.special, job.adapter, copy
        )
        return [*pieces, lambda folder: write_atomic(folder / checkpoints.RECIPE, self.recipe)], shards

    def finish(self, last: bool) -> None:
        """Waits for the checkpoint that is being written, if there is one. Raises StorageError as `save` does."""
        if self.pending is not None:
            pending, self.pending = self.pending, None
            self._settle(pending.result, last)

    def _settle(self, write: Callable[[], None], last: bool) -> None:
        try:
            write()
        except StorageError as e:
            self._failed(e, last)
        else:
            self.failures, self.saved_best = 0, self.best

    def _failed(self, e: UserError, last: bool) -> None:
        """Raises `e` where training cannot go on without that checkpoint, and otherwise tells the user."""
        self.failures += 1
        if self.job.state.best == self.best:
            self.job.state.best = self.saved_best  # the best model that a checkpoint holds
        if last or self.failures == FAILURES_IN_A_ROW or self.job.world.size > 1:
            raise e
        self.run.check()
        note(f"{e}\n  → training goes on from memory; the previous checkpoint stays, the next one is tried on time")
        with suppress(StorageError):  # the disk may be too full for this as well
            self.run.event("not saved", reason=str(e))

    def _write(
        self, step: int, pieces: list[PieceWriter], shards: dict[str, Tensor], best: bool, progress: dict
    ) -> None:
        world, job, began = self.job.world, self.job, rhythm.clock()

        def write(folder: Path) -> None:
            for piece in pieces:
                sys.audit("lmkit.save.file", step)
                piece(folder)
            if shards:
                self._write_shards(folder, shards)

        if world.first:
            self.run.save(step, write, job.recipe.checkpoint.keep, best)
            with suppress(StorageError):  # the checkpoint is written, so a failure here does no harm
                self.run.status("running", **progress)
        elif shards:
            self._write_shards(self.run.part(step), shards)
        self.took = rhythm.clock() - began

    def _write_shards(self, folder: Path, shards: dict[str, Tensor]) -> None:
        from lmkit.training.distributed.sharding import save_shards

        self.job.world.wait_to_save()
        save_shards(folder / SHARDS, shards, self.job.world.saving)
