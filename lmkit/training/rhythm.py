"""The clock of a run: how far it is, what is due, and how a time budget is shared out between steps and all else."""

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager

from lmkit.base.display import note
from lmkit.base.units import split_quantity
from lmkit.training.job import Job
from lmkit.training.schedules import WARMUP_AT_MOST

clock = time.monotonic  # never the time of day, which may jump; tests set it
# Of a time budget, at most: an evaluation comes where all that is beside the steps stays under the first share, with
# the checkpoint of a better model that may follow; other checkpoints where all of them stay under the second.
EVALUATING, SAVING = 0.12, 0.03
MARGIN = 1.3  # times as long as before the last evaluation and save may take
LATE, LATE_SHARE = 5.0, 0.03  # seconds, or share of the budget, that a run may end late: the larger of both
LANDED = 0.02  # what is left of the horizon when the decay counts as complete
FORWARD = 1 / 3  # of the time of a step, without its backward pass


class Rhythm:
    """Several processes go by the clock of the first."""

    def __init__(self, job: Job):
        self.job, self.state, self.world = job, job.state, job.world
        self.seconds = job.horizon.seconds
        self.started = clock() - self.state.elapsed
        self.last = self.state.elapsed  # when the last step had been taken, but for what was done beside it since
        self.step_seconds = self.save_seconds = 0.0  # of the last one; of a save what training waits for
        self.fastest = math.inf  # of all steps but the first, which also compiles
        self.thinned = set[str]()  # what is, which is said once
        self.before = self.now = self._agreed(self._progress())

    def look(self) -> None:
        """Bring `elapsed` up to date."""
        self.state.elapsed = clock() - self.started

    def tick(self) -> float:
        """A step was taken. Progress is read once, so that all that is due is judged alike."""
        self.look()
        if self.step_seconds:
            self.fastest = min(self.fastest, self.state.elapsed - self.last)
        self.step_seconds, self.last = self.state.elapsed - self.last, self.state.elapsed
        self.before, self.now = self.now, self._agreed(self._landing(self._progress()))
        self._tell_warmup()
        return self.now

    def _agreed(self, progress: float) -> float:
        return progress if self.seconds is None else self.world.agree(progress)  # steps are the same to all

    def _progress(self) -> float:
        """Share of the horizon done. Of a time budget it is the share of the time for steps, which is what evaluations
        and checkpoints leave, now and at the end."""
        if self.job.horizon.steps is not None:
            return min(1.0, self.state.step / self.job.horizon.steps)
        left = self._end() - self.state.elapsed
        trained = self.state.elapsed - self.state.beside
        return trained / (trained + left) if left > 0 else 1.0

    def _end(self) -> float:
        """When the last step of a time budget has to be done, in seconds from the start."""
        assert self.seconds is not None
        evaluation = self.state.eval_seconds or self._expected_evaluation()
        scorings = 1 + self.job.closing + (self.job.recipe.checkpoint.average > 1)  # of an average of checkpoints, too
        self.state.reserve = MARGIN * (scorings * evaluation + self.state.save_seconds)
        return self.seconds - min(self.state.reserve, 0.5 * self.seconds)

    def _expected_evaluation(self) -> float:
        """Seconds, by the rows it reads, before there was one."""
        step = 0.0 if math.isinf(self.fastest) else self.fastest
        return FORWARD * step * self.job.scored_rows / self.job.batch_rows

    def _landing(self, progress: float) -> float:
        """At most half of what was left, where a slower machine made one step of many: so the rate falls to its end in
        a few steps more, as long as these end in time."""
        half = (1 + self.now) / 2
        if self.seconds is None or progress <= half or 1 - half <= LANDED:
            return progress
        late = self.state.elapsed + self.step_seconds - self._end()  # by the next step
        return half if late <= max(LATE, LATE_SHARE * self.seconds) else progress

    @contextmanager
    def beside(self) -> Iterator[None]:
        """What is done inside is no training: it moves neither the rate nor the decay."""
        began = clock()
        yield
        took = clock() - began
        self.state.beside += took
        self.last += took

    @contextmanager
    def saving(self) -> Iterator[None]:
        """The same, of a checkpoint."""
        began = clock()
        with self.beside():
            yield
        self.save_seconds = clock() - began
        self.state.saving += self.save_seconds

    def due(self, every: str) -> bool:
        """Whether the step just taken passed a multiple of `every`."""
        number, unit = split_quantity(every)
        if not number:
            return False
        if unit != "%":
            return self.state.step % int(number) == 0
        return math.floor(self.now * 100 / number + 1e-9) > math.floor(self.before * 100 / number + 1e-9)

    def evaluation_due(self) -> bool:
        seconds = (self.state.eval_seconds or self._expected_evaluation()) + self.save_seconds
        return self._due_in_time("evaluations", self.job.recipe.evaluate.every, seconds, self.state.beside, EVALUATING)

    def checkpoint_due(self) -> bool:
        every = self.job.recipe.checkpoint.every
        return self._due_in_time("checkpoints", every, self.save_seconds, self.state.saving, SAVING)

    def _due_in_time(self, what: str, every: str, seconds: float, spent: float, share: float) -> bool:
        """Whether it is due, and fits a time budget: beside the seconds spent it takes no more than this share of what
        has passed, and there is time for it before the end. That some are left out is said once."""
        if not self.due(every) or self.seconds is None:
            return self.due(every)
        affordable = spent + seconds <= share * self.seconds * self.now
        in_time = self.world.agree(affordable and self.state.elapsed + seconds < self._end())
        if not (in_time or affordable or what in self.thinned):
            note(
                f"{what} every {every} would take over {share:.0%} of the time, {seconds:.1f} s each: some are left out"
            )
            self.thinned.add(what)
        return in_time

    def _tell_warmup(self) -> None:
        number, unit = split_quantity(self.job.recipe.schedule.warmup)
        if unit != "%" and self.before < WARMUP_AT_MOST <= self.now and self.state.step < number:
            note(
                f"schedule.warmup of {number:,.0f} steps is over {WARMUP_AT_MOST:.0%} of this run: it ended at step"
                f" {self.state.step:,}"
            )
