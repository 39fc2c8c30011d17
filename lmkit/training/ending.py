"""How a run ends: trained, stopped with a checkpoint, or by an error; its status says which."""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from lmkit.base.display import note
from lmkit.base.errors import STOPPED_RESUMABLE, Diverged, StorageError
from lmkit.base.runs import BY_THE_CLOCK, Run, going_on, read_status
from lmkit.training import checkpoints, loop
from lmkit.training.guard import Rollback, give_up
from lmkit.training.job import Job
from lmkit.training.signals import Asked, StopFlag, leaving_at_once


def run_to_end(job: Job, run: Run, verb: str) -> int | None:
    """Train. Returns an exit code where there is nothing left to do, None where training ended and its end is to be
    told, by now or before a kill kept it from being told. verb: the command that resumes it."""
    if job.state.step and loop.is_over(job):
        if read_status(run.path).get("state") != "done":
            return None
        print(f"{run.path} is done: step {job.state.step}, nothing left to train")
        return 0
    run.status("running", step=job.state.step)
    with _failures_told(job, run, verb), StopFlag() as stop:
        sys.audit("lmkit.train")
        ended = _train(job, run, stop)
        if ended != "done":
            run.status("stopped", reason=ended, **job.progress)
    if ended == "done":
        return None
    print(f"stopped by {ended} at step {job.state.step}, saved\n  → {going_on(run.path, verb)}")
    return STOPPED_RESUMABLE


def finish(job: Job, run: Run, verb: str, rest: Callable[[], None]) -> int:
    """What follows the last step: an average, scores, and what is told of them. Returns the exit code. A signal or a
    full disk ends it; a resume does it again."""
    try:
        with _failures_told(job, run, verb), leaving_at_once():
            try:
                rest()
            except BrokenPipeError:  # nobody reads what it says; what it does is done all the same
                sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - for as long as the process lives
                rest()
    except Asked as e:
        run.status("stopped", reason=str(e), **job.progress)
        print(f"stopped by {e} after the last step\n  → {going_on(run.path, verb)} does what is left")
        return STOPPED_RESUMABLE
    return 0


@contextmanager
def _failures_told(job: Job, run: Run, verb: str) -> Iterator[None]:
    """Errors stand in the run's status; a disk's come with what to do. Raises StorageError for these."""
    try:
        yield
    except BaseException as e:
        state = "diverged" if isinstance(e, Diverged) else "failed" if isinstance(e, Exception) else "interrupted"
        with suppress(StorageError):  # which may be what went wrong
            run.status(state, step=job.state.step, reason=str(e)[:500])
        if not isinstance(e, OSError) or isinstance(e, BrokenPipeError):
            raise
        run.check()
        raise StorageError(
            f"{e.filename or run.path}: {e.strerror or e}, at step {job.state.step}\n"
            f"  → make room, then {going_on(run.path, verb)} goes on from the last checkpoint"
        ) from None


def _train(job: Job, run: Run, stop: StopFlag) -> str:
    """`loop.train`, again after every rollback."""
    while True:
        try:
            return loop.train(job, run, stop)
        except Rollback as bad:
            _go_back(job, run, bad)


def _go_back(job: Job, run: Run, bad: Rollback) -> None:
    """To the newest checkpoint, from which the bad batches will be passed over, but for those it was taken after.
    Raises Diverged where there is none yet."""
    passed_over, rollbacks = job.state.passed_over, job.state.rollbacks + 1
    micro_batch, clock = job.state.micro_batch, job.state
    folder = job.world.agree(run.newest_whole(note) if job.world.first else None)
    if folder is None:
        give_up(job, run, f"step {bad.step} is bad, and there is no checkpoint yet to go back to")
    job.state = checkpoints.read(folder, job.model, job.optimizers, job.average)
    job.state.passed_over, job.state.rollbacks = passed_over, rollbacks
    job.state.micro_batch = micro_batch  # memory is no larger than it was
    for name in BY_THE_CLOCK:  # nor did time go back
        setattr(job.state, name, getattr(clock, name))
    ahead = [b for b in bad.batches if b >= job.batch_of(job.state.step)]
    job.state.passed_over = sorted({*passed_over, *ahead})
    run.truncate_logs(job.state.step, note)
    run.event("rollback", from_step=bad.step, to_step=job.state.step, batches=ahead)
    note(f"step {bad.step} went wrong: back to step {job.state.step}, and past its batch from there (events.jsonl)")


def keep_average(job: Job, run: Run) -> None:
    """The mean of the last checkpoints, where the recipe asks for one, kept if it scores better than the best."""
    if job.recipe.checkpoint.average < 2:
        return
    if not len(job.work.held_out):
        note("checkpoint.average: nothing is held out that could say whether the average is better; none is made")
        return
    folders = job.world.agree(run.steps()[-job.recipe.checkpoint.average :])
    checkpoints.average_models(folders, job.model)
    scores = job.score()
    is_best = job.state.best is not None and job.better(scores)
    outcome = "better than the best of them, and kept" if is_best else "no better than the best of them, and not kept"
    note(f"average of the last {len(folders)} checkpoints: {job.metric} {scores[job.metric]:.4f}, {outcome}")
    if is_best:
        write = checkpoints.model_piece(job.model, job.tokenizer, job.special)
        job.state.best = {"step": job.state.step} | scores
        if job.world.first:
            run.save_average(job.state.step, write)
