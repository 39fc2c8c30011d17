"""The source from which the training loop takes its batches."""

from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Self

from lmkit.training.job import Job
from lmkit.training.step import Share, read_share


class ShareSource:
    """Gives this process's share of each batch. Where the objective allows it, a thread reads the share of the next
    step while this one is computed. As a context manager it waits for what the thread still reads."""

    def __init__(self, job: Job):
        self.job = job
        self.thread = ThreadPoolExecutor(1)
        self.ahead: dict[tuple[int, int], Future[Share]] = {}  # at most one, by its step and the size of micro-batches

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.thread.shutdown()

    def share(self, step: int) -> Share:
        """Returns the share of `step`, and begins to read the one after it. What was read ahead for larger
        micro-batches than those of now is read again. Raises what reading the share of `step` raised."""
        size = self.job.recipe.train.micro_batch
        ready = self.ahead.get((step, size))
        share = self.again(step) if ready is None else ready.result()
        self.ahead = {}
        if self.job.work.objective.read_ahead:
            self.ahead[step + 1, size] = self.thread.submit(read_share, self.job, step + 1)
        return share

    def again(self, step: int) -> Share:
        """Returns the share of `step`, read now, in micro-batches of the size of now."""
        return read_share(self.job, step)
