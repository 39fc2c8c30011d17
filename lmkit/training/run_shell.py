"""What all runs have in common: opens the run directory, begins or resumes the run, trains, and tells the result."""

import os
import shlex
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from lmkit.base.display import note
from lmkit.base.environment import read_environment
from lmkit.base.errors import STOPPED_RESUMABLE, Diverged, ModelError, StorageError, UserError
from lmkit.base.manifest import replace_listed
from lmkit.base.runs import BY_THE_CLOCK, Follower, Run, going_on, read_status
from lmkit.base.units import show_bytes
from lmkit.data.inventory import Entry
from lmkit.model.formats.model_card import write_card
from lmkit.recipe import recipe_file
from lmkit.recipe.finetuning import FinetuneRecipe
from lmkit.recipe.pretraining import Recipe
from lmkit.training import checkpoints, loop
from lmkit.training.distributed.world import World, join
from lmkit.training.guard import Rollback, give_up
from lmkit.training.job import Job, Listeners, checkpoint_bytes
from lmkit.training.precision import choose_device, torch_environment
from lmkit.training.signals import Asked, StopFlag, leaving_at_once
from lmkit.training.trackers import check_tracker

HARMLESS = ("evaluate.sample", "evaluate.sample_tokens", "checkpoint.keep", "checkpoint.async", "train.device",
            "train.micro_batch", "train.compile", "train.recompute", "parallel.", "tracker.")  # fmt: skip


@dataclass
class Prepared:
    """A job, and what `execute` needs to know about it."""

    job: Job
    facts: dict[str, str]  # fingerprints of the data and models that it reads
    files: Callable[[], list[Entry]]  # lists them with checksums, for `lmkit runs reproduce`
    introduce: Callable[[], dict[str, Any]]  # tells what was inferred, before the first step; returns it for the log
    conclude: Callable[[float], None]  # tells scores and what to do next, given the seconds that training took


def execute(
    world: World, path: Path, verb: str, prepare: Callable[[World, Run], Prepared], goes_on: bool,
    latest: Path | None = None, accept_changes: bool = False, listeners: Listeners = (),
) -> int:  # fmt: skip
    """Trains in the run directory `path`, with the processes that `meet` brought together. Returns the exit code.

    verb: the command that resumes the run. prepare: makes the job, once the directory is locked. latest: the path that
    the link `runs/latest` gets once the run has begun. listeners: what they raise ends the run. Raises what `prepare`,
    `take_up` and `loop.train` raise."""
    run = open_run(path, world)  # comes first, so that nothing is computed for a place that cannot be written to
    run.named_latest = latest
    try:
        prepared = prepare(world, run)
        job = prepared.job
        job.listeners = listeners
        if goes_on:
            take_up(job, run, prepared.facts, accept_changes)
        else:
            begin(job, run, prepared.facts, prepared.files)
        introduced = prepared.introduce()
        if not goes_on:
            run.event("introduced", **introduced)
        job.tell_sources(job.horizon.steps or job.state.step)
        began = time.monotonic()
        code = run_to_end(job, run, verb)
        if code is not None:
            return code
        return finish(job, run, verb, lambda: prepared.conclude(time.monotonic() - began))
    finally:
        run.close()


def tell(lines: list[str], **facts: Any) -> dict[str, Any]:
    """Tells lines to the user. Returns them, and other facts, for the log of events."""
    note("\n".join(lines))
    return {"lines": lines, **facts}


def meet(recipe: Recipe | FinetuneRecipe) -> World:
    """Returns the processes of this run, once they have met. Raises UserError as `join` and `check_tracker` do."""
    check_tracker(recipe.tracker)
    device: torch.device = choose_device(recipe.train.device)
    return join(recipe.parallel, device)


def open_run(path: Path, world: World) -> Run:
    """Opens the run directory: rank 0 may write to it, the others only read. Raises RunInUse and StorageError."""
    with world.first_alone():
        run = Run(path) if world.first else Follower(path)
    if run.killed:
        note(f"{path}: taken over from {run.killed}, which ended without closing it")
    return run


def begin(job: Job, run: Run, facts: dict[str, str], files: Callable[[], list[Entry]]) -> None:
    """Begins a new run: writes its recipe and what it was made of.

    facts: fingerprints of what it reads; files: lists these files with checksums, for `lmkit runs reproduce`. Raises
    UserError where processes have different recipes or facts."""
    job.world.check_same(recipe=recipe_file.dump(job.recipe), **facts)
    if job.world.first:
        made_of = {"tokenizer": job.tokenizer.fingerprint} | facts
        place = {"processes": job.world.size, "device": str(job.device), "precision": job.precision}
        more = {"seed": job.recipe.train.seed} | made_of | place | torch_environment() | {"files": files()}
        run.begin(recipe_file.dump(job.recipe), more)
        _check_room(job, run)
    run.event("start", parameters=sum(job.model.num_parameters().values()))


def _check_room(job: Job, run: Run) -> None:
    """Tells the user where the disk cannot hold the checkpoints of this run.

    Without this, a full disk would be noticed only when a checkpoint fails."""
    at_once = job.recipe.checkpoint.keep + 2  # the best one, and one that is being written
    needed, free = at_once * checkpoint_bytes(job), shutil.disk_usage(run.path).free
    if needed > free:
        note(
            f"{run.path}: up to {at_once} checkpoints may lie there at once, about {show_bytes(needed)} in all, and the"
            f" disk has {show_bytes(free)} free\n  → make room, checkpoint.keep=1, or --out on another disk"
        )


def take_up(job: Job, run: Run, facts: dict[str, str], accept_changes: bool = False) -> None:
    """Resumes a run from its newest whole checkpoint, or from step 0 where it has none yet.

    Raises ModelError where what the run reads has changed, or no checkpoint is whole. Raises UserError where its recipe
    has changed, unless that is accepted."""
    world = job.world
    world.check_same(recipe=recipe_file.dump(job.recipe), **facts)
    before = read_environment(run.path)
    if changed := [key for key, value in facts.items() if before.get(key, value) != value]:
        names = " and the ".join(changed).replace("data", "training data or its tokenizer")
        raise ModelError(
            f"{run.path}: the {names} changed since this run began\n  → restore the files, or start a new run"
        )
    if read_status(run.path).get("pruned"):
        raise UserError(
            f"{run.path} is done, and `lmkit runs prune` has deleted what a resume needs\n"
            f"  → it can be used as it is; lmkit finetune --model {shlex.quote(str(run.path))} goes on from its model"
        )
    newest = world.agree(run.newest_whole(note) if world.first else None)
    if newest is None:
        note(f"{run.path}: stopped before its first checkpoint; starting from step 0")
    _check_recipe(job, run, newest, accept_changes)
    if newest is not None:
        job.state = checkpoints.read(newest, job.model, job.optimizers, job.average)
        if not (loop.is_over(job) and read_status(run.path).get("state") == "done"):
            _point_again(job, run, newest)
    if job.state.micro_batch and job.state.micro_batch[0] == job.recipe.train.micro_batch:
        job.use_micro_batch(job.state.micro_batch[1])  # memory was not enough for the recipe's micro-batch
    run.truncate_logs(job.state.step, note)
    run.event("resume", step=job.state.step, **({"killed": run.killed} if run.killed else {}))
    note(f"resuming {run.path} at step {job.state.step}")


def _point_again(job: Job, run: Run, newest: Path) -> None:
    """Sets the links of the run as they were when the checkpoint from which it goes on was written."""
    state, world = job.state, job.world
    best = None if state.best is None else int(state.best["step"])
    if best is not None and best != state.step and world.agree(world.first and run.drop_damaged(best, note)):
        best = state.best = None
    run.point_again(newest, best)


def _check_recipe(job: Job, run: Run, newest: Path | None, accept: bool) -> None:
    """Compares the recipe with the one in the newest checkpoint, and tells the differences.

    That copy is used because people do not edit it; checkpoints of older versions have none, and then the run's own
    recipe.yaml is used. Raises UserError where more than harmless keys differ, unless `accept` is set."""
    file = newest / checkpoints.RECIPE if newest else None
    file = file if file and file.is_file() else run.path / "recipe.yaml"
    before = recipe_file.build_recipe(type(job.recipe), *recipe_file.read_run(file), where=str(file))
    changes = recipe_file.differences(recipe_file.as_tree(before), recipe_file.as_tree(job.recipe))
    if not changes:
        return
    lines = f"{run.path}: the recipe changed since this run began\n  " + "\n  ".join(changes)
    if not accept and not all(change.startswith(HARMLESS) for change in changes):
        way = "restore it, or start a new run with --out"
        if isinstance(job.recipe, Recipe):
            recipe = f"{run.path}/recipe.yaml"
            way += f", or go on: lmkit pretrain {recipe} --resume {run.path} --accept-changes"
        raise UserError(f"{lines}\n  → {way}")
    note(lines)
    run.event("recipe changed", step=int(newest.name.partition("-")[2]) if newest else 0, changes=changes)
    if newest and file and file.is_file() and job.world.first:
        # The change is accepted from this checkpoint on, so a resume before the next one does not ask again.
        replace_listed(newest, checkpoints.RECIPE, recipe_file.dump(job.recipe))


def run_to_end(job: Job, run: Run, verb: str) -> int | None:
    """Trains. Returns an exit code where nothing is left to do, and None where `finish` must follow.

    `finish` must follow where training has ended now, or had ended before the process was killed in `finish`. verb: the
    command that resumes the run."""
    if job.state.step and loop.is_over(job):
        if read_status(run.path).get("state") != "done":
            return None
        print(f"{run.path} is done: step {job.state.step}, nothing left to train")
        return 0
    run.status("running", step=job.state.step, horizon=job.horizon.steps)
    with _failures_told(job, run, verb), StopFlag() as stop:
        sys.audit("lmkit.train")
        outcome = _train(job, run, stop)
        if outcome != "done":
            run.status("stopped", reason=outcome, **job.progress)
    if outcome == "done":
        job.tell_sources(job.state.step)
        if sources := job.sources(job.state.step):
            run.event("sources", step=job.state.step, sources=sources)
        return None
    print(f"stopped by {outcome} at step {job.state.step}, saved\n  → {going_on(run.path, verb)}")
    return STOPPED_RESUMABLE


def finish(job: Job, run: Run, verb: str, rest: Callable[[], None]) -> int:
    """Does what follows the last step: an average, scores, and telling them. Returns the exit code.

    A signal or a full disk ends it; a resume does it again. rest: does the work, and tells it."""
    try:
        with _failures_told(job, run, verb), leaving_at_once():
            try:
                rest()
            except BrokenPipeError:  # nobody reads the output, but the work must be done all the same
                sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - stays open as long as the process lives
                rest()
    except Asked as e:
        run.status("stopped", reason=str(e), **job.progress)
        print(f"stopped by {e} after the last step\n  → {going_on(run.path, verb)} does what is left")
        return STOPPED_RESUMABLE
    return 0


@contextmanager
def _failures_told(job: Job, run: Run, verb: str) -> Iterator[None]:
    """Writes errors of a `with` block into the run's status. Raises StorageError, with advice, for errors of a disk."""
    try:
        yield
    except BaseException as e:
        state = "diverged" if isinstance(e, Diverged) else "failed" if isinstance(e, Exception) else "interrupted"
        with suppress(StorageError):  # the disk itself may be what failed
            run.status(state, step=job.state.step, reason=str(e)[:500], exit_code=getattr(e, "exit_code", 1))
        if not isinstance(e, OSError) or isinstance(e, BrokenPipeError):
            raise
        run.check()
        raise StorageError(
            f"{e.filename or run.path}: {e.strerror or e}, at step {job.state.step}\n"
            f"  → make room, then {going_on(run.path, verb)} goes on from the last checkpoint"
        ) from None


def _train(job: Job, run: Run, stop: StopFlag) -> str:
    """Returns what `loop.train` returns, and calls it again after every rollback."""
    while True:
        try:
            return loop.train(job, run, stop)
        except Rollback as bad:
            _go_back(job, run, bad)


def _go_back(job: Job, run: Run, bad: Rollback) -> None:
    """Goes back to the newest checkpoint, and marks the bad batches after it to be left out.

    Raises Diverged where there is no checkpoint yet."""
    passed_over, rollbacks = job.state.passed_over, job.state.rollbacks + 1
    micro_batch, clock = job.state.micro_batch, job.state
    folder = job.world.agree(run.newest_whole(note) if job.world.first else None)
    if folder is None:
        give_up(job, run, f"step {bad.step} is bad, and there is no checkpoint yet to go back to")
    job.state = checkpoints.read(folder, job.model, job.optimizers, job.average)
    job.state.passed_over, job.state.rollbacks = passed_over, rollbacks
    job.state.micro_batch = micro_batch  # memory is as small as before
    for name in BY_THE_CLOCK:  # the time that has passed stays passed
        setattr(job.state, name, getattr(clock, name))
    ahead = [b for b in bad.batches if b >= job.batch_of(job.state.step)]
    job.state.passed_over = sorted({*passed_over, *ahead})
    run.truncate_logs(job.state.step, note)
    run.event("rollback", from_step=bad.step, to_step=job.state.step, batches=ahead)
    note(f"step {bad.step} went wrong: back to step {job.state.step}, and past its batch from there (events.jsonl)")


def card(job: Job, run: Run) -> None:
    """Writes the model card of the run's final folder."""
    state = job.state
    rows = f"{len(job.work.rows):,} sequences to learn from, {len(job.work.held_out):,} held out"
    learnt = f"{rows}; {state.tokens:,} tokens were read in {state.step:,} steps."
    best = {name: {"value": value} for name, value in (state.best or {}).items() if name != "step"}
    if job.world.first:
        sources = [f"- source {line}" for line in job.source_lines(state.step)]
        write_card(run.path, job.model, job.recipe, [*sources, "", learnt] if sources else ["", learnt], best)


def keep_average(job: Job, run: Run) -> None:
    """Averages the last checkpoints, where the recipe asks for it, and saves the mean if it scores better than the best
    of them."""
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
        write = checkpoints.model_piece(job.model, job.tokenizer_folder, job.special)
        job.state.best = {"step": job.state.step} | scores
        if job.world.first:
            run.save_beside("average", job.state.step, write)
