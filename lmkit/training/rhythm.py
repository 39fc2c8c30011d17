"""The clock of a run: its progress, what is due, and how a time budget is divided between steps and everything else."""

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager

from lmkit.base.display import note
from lmkit.base.units import split_quantity
from lmkit.training.job import Job
from lmkit.training.schedules import WARMUP_AT_MOST

clock = time.monotonic  # not the time of day, which may jump; tests replace it
# Shares of a time budget. An evaluation takes place if everything besides steps stays below the first share, counting
# the checkpoint of a better model that may follow it. Other checkpoints are written if all stay below the second share.
EVALUATING, SAVING = 0.12, 0.03
MARGIN = 1.3  # the last evaluation and save may take this many times as long as earlier ones
LATE, LATE_SHARE = 5.0, 0.03  # a run may end late by so many seconds, or by this share of the budget, if that is more
LANDED = 0.02  # the share of the horizon that may be left when the decay counts as complete
FORWARD = 1 / 3  # the share of a step's time that its forward pass takes


class Rhythm:
    """Measures the progress of a run, and says what is due. All processes use the clock of rank 0."""

    def __init__(self, job: Job):
        self.job, self.state, self.world = job, job.state, job.world
        self.seconds = job.horizon.seconds
        self.started = clock() - self.state.elapsed
        self.last = self.state.elapsed  # the time of the last step's end, plus the time of evaluations and saves since
        self.step_seconds = self.save_seconds = 0.0  # of the last step, and of the last save: how long training waited
        self.fastest = math.inf  # seconds of the fastest step, without the first, which also compiles
        self.thinned = set[str]()  # the things of which some are left out, each of which is told once
        self.before = self.now = self._agreed(self._progress())

    def look(self) -> None:
        """Brings `elapsed` up to date."""
        self.state.elapsed = clock() - self.started

    def tick(self) -> float:
        """Notes that a step was taken, and returns the progress of the run, from 0 to 1.

        The progress is read only here, so that everything that may be due is judged by the same number."""
        self.look()
        if self.step_seconds:
            self.fastest = min(self.fastest, self.state.elapsed - self.last)
        self.step_seconds, self.last = self.state.elapsed - self.last, self.state.elapsed
        self.before, self.now = self.now, self._agreed(self._landing(self._progress()))
        self._tell_warmup()
        return self.now

    def _agreed(self, progress: float) -> float:
        return progress if self.seconds is None else self.world.agree(progress)  # all processes count the same steps

    def _progress(self) -> float:
        """Returns the share of the horizon that is done.

        With a time budget it is the share of the time for steps: the budget without evaluations and checkpoints, those
        at the end included."""
        if self.job.horizon.steps is not None:
            return min(1.0, self.state.step / self.job.horizon.steps)
        remaining = self._end() - self.state.elapsed
        trained = self.state.elapsed - self.state.beside
        return trained / (trained + remaining) if remaining > 0 else 1.0

    def _end(self) -> float:
        """Returns when the last step of a time budget must be done, in seconds from the start."""
        assert self.seconds is not None
        evaluation = self.state.eval_seconds or self._expected_evaluation()
        scorings = 1 + self.job.closing + (self.job.recipe.checkpoint.average > 1)  # an average is evaluated too
        self.state.reserve = MARGIN * (scorings * evaluation + self.state.save_seconds)
        return self.seconds - min(self.state.reserve, 0.5 * self.seconds)

    def _expected_evaluation(self) -> float:
        """Returns how many seconds the first evaluation will take, estimated from the number of rows that it reads."""
        step = 0.0 if math.isinf(self.fastest) else self.fastest
        return FORWARD * step * self.job.scored_rows / self.job.batch_rows

    def _landing(self, progress: float) -> float:
        """Returns the progress, but lets it grow by at most half of what was left, if there is time for more steps.

        When the machine becomes slow, one step can take the time of many. The learning rate then still falls to its end
        in a few more steps."""
        half = (1 + self.now) / 2
        if self.seconds is None or progress <= half or 1 - half <= LANDED:
            return progress
        late = self.state.elapsed + self.step_seconds - self._end()  # seconds by which the next step would be late
        return half if late <= max(LATE, LATE_SHARE * self.seconds) else progress

    @contextmanager
    def beside(self) -> Iterator[None]:
        """Does not count the time of a `with` block as training, so that it does not move the learning rate."""
        began = clock()
        yield
        duration = clock() - began
        self.state.beside += duration
        self.last += duration

    @contextmanager
    def saving(self) -> Iterator[None]:
        """Does the same for the time of saving a checkpoint, and records it."""
        began = clock()
        with self.beside():
            yield
        self.save_seconds = clock() - began
        self.state.saving += self.save_seconds

    def due(self, every: str) -> bool:
        """Says whether the step just taken reached or passed a multiple of `every`, as `100 steps` or `5%`."""
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
        """Says whether something that happens `every` so often is due, and fits a time budget.

        It fits if the seconds spent on it so far, plus `seconds` for one more, are at most this share of the time that
        has passed, and there is time for it before the end. That some are left out is told once."""
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
