"""How a run begins, or goes on where it was."""

import shutil
from collections.abc import Callable
from pathlib import Path

import torch

from lmkit.base.display import note
from lmkit.base.environment import read_environment
from lmkit.base.errors import ModelError, UserError
from lmkit.base.manifest import replace_listed
from lmkit.base.runs import Follower, Run, read_status
from lmkit.base.units import show_bytes
from lmkit.data.inventory import Entry
from lmkit.recipe import recipe_file
from lmkit.recipe.finetuning import FinetuneRecipe
from lmkit.recipe.pretraining import Recipe
from lmkit.text.tokenizer_files import load_tokenizer
from lmkit.training import checkpoints, loop
from lmkit.training.distributed.world import World, join
from lmkit.training.job import Job, checkpoint_bytes
from lmkit.training.precision import choose_device, torch_environment

HARMLESS = ("evaluate.sample", "evaluate.sample_tokens", "checkpoint.keep", "checkpoint.async", "train.device",
            "train.micro_batch", "train.compile", "train.recompute", "parallel.")  # fmt: skip


def meet(recipe: Recipe | FinetuneRecipe) -> World:
    """The processes of this run."""
    device: torch.device = choose_device(recipe.train.device)
    return join(recipe.parallel, device)


def open_run(path: Path, world: World) -> Run:
    """The first process's to write, the others' to read. Raises RunInUse, StorageError."""
    with world.first_alone():
        run = Run(path) if world.first else Follower(path)
    if run.killed:
        note(f"{path}: taken over from {run.killed}, which ended without closing it")
    return run


def begin(job: Job, run: Run, facts: dict[str, str], files: Callable[[], list[Entry]]) -> None:
    """A new run. facts: fingerprints of what it reads; files: lists them with checksums, for `lmkit runs reproduce`.
    Raises UserError where processes were given different things."""
    job.world.check_same(recipe=recipe_file.dump(job.recipe), **facts)
    if job.world.first:
        made_of = {"tokenizer": load_tokenizer(job.tokenizer).fingerprint} | facts
        place = {"processes": job.world.size, "device": str(job.device), "precision": job.precision}
        more = {"seed": job.recipe.train.seed} | made_of | place | torch_environment() | {"files": files()}
        run.begin(recipe_file.dump(job.recipe), more)
        _check_room(job, run)
    run.event("start", parameters=sum(job.model.num_parameters().values()))


def _check_room(job: Job, run: Run) -> None:
    """Says so where the disk cannot hold the checkpoints of this run: a full disk is told when it is met, and costs
    checkpoints then."""
    at_once = job.recipe.checkpoint.keep + 2  # the best one, and one that is being written
    needed, free = at_once * checkpoint_bytes(job), shutil.disk_usage(run.path).free
    if needed > free:
        note(
            f"{run.path}: up to {at_once} checkpoints may lie there at once, about {show_bytes(needed)} in all, and the"
            f" disk has {show_bytes(free)} free\n  → make room, checkpoint.keep=1, or --out on another disk"
        )


def take_up(job: Job, run: Run, facts: dict[str, str], accept_changes: bool = False) -> None:
    """A run where its newest whole checkpoint stands. Raises ModelError where what it reads is not what it was, or no
    checkpoint is whole; UserError where its recipe is not the one it was trained by, unless that is accepted."""
    world = job.world
    world.check_same(recipe=recipe_file.dump(job.recipe), **facts)
    before = read_environment(run.path)
    if changed := [key for key, value in facts.items() if before.get(key, value) != value]:
        names = " and the ".join(changed).replace("data", "training data or its tokenizer")
        raise ModelError(
            f"{run.path}: the {names} changed since this run began\n  → restore the files, or start a new run"
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
        job.use_micro_batch(job.state.micro_batch[1])  # memory was not enough for the recipe's
    run.truncate_logs(job.state.step, note)
    run.event("resume", step=job.state.step, **({"killed": run.killed} if run.killed else {}))
    note(f"resuming {run.path} at step {job.state.step}")


def _point_again(job: Job, run: Run, newest: Path) -> None:
    """The links of the run, as they stood when the checkpoint it goes on from was written."""
    state, world = job.state, job.world
    best = None if state.best is None else int(state.best["step"])
    if best is not None and best != state.step and world.agree(world.first and run.drop_damaged(best, note)):
        best = state.best = None
    run.point_again(newest, best)


def _check_recipe(job: Job, run: Run, newest: Path | None, accept: bool) -> None:
    """Compare with the recipe that lies in the newest checkpoint, which a person does not edit; checkpoints of older
    versions have none. Raises UserError as `take_up` does."""
    file = newest / checkpoints.RECIPE if newest else None
    before = recipe_file.load(type(job.recipe), file if file and file.is_file() else run.path / "recipe.yaml")
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
        # from the first checkpoint on, so that a kill before the next one asks no more
        replace_listed(newest, checkpoints.RECIPE, recipe_file.dump(job.recipe))
