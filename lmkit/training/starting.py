"""How a run begins, or goes on where it was."""

from collections.abc import Callable
from pathlib import Path

import torch

from lmkit import config
from lmkit.data.inventory import Entry
from lmkit.display import note
from lmkit.environment import read_environment
from lmkit.errors import ModelError, UserError
from lmkit.finetune_recipe import FinetuneRecipe
from lmkit.recipe import Recipe
from lmkit.runs import Follower, Run
from lmkit.text.tokenizer import load_tokenizer
from lmkit.training import checkpoints
from lmkit.training.distributed import World, join
from lmkit.training.job import Job
from lmkit.training.precision import choose_device, torch_environment

HARMLESS = ("evaluate.sample", "evaluate.sample_tokens", "checkpoint.keep", "checkpoint.background", "train.device",
            "train.micro_batch", "train.compile", "train.recompute", "parallel.")  # fmt: skip


def meet(recipe: Recipe | FinetuneRecipe) -> World:
    """The processes of this run."""
    device: torch.device = choose_device(recipe.train.device)
    return join(recipe.parallel, device)


def open_run(path: Path, world: World) -> Run:
    """The first process's to write, the others' to read. Raises RunInUse, StorageError."""
    with world.first_alone():
        return Run(path) if world.first else Follower(path)


def begin(job: Job, run: Run, facts: dict[str, str], files: Callable[[], list[Entry]]) -> None:
    """A new run. facts: fingerprints of what it reads; files: lists them with checksums, for `lmkit runs reproduce`.
    Raises UserError where processes were given different things."""
    job.world.check_same(recipe=config.dump(job.recipe), **facts)
    if job.world.first:
        made_of = {"tokenizer": load_tokenizer(job.tokenizer).fingerprint} | facts
        place = {"processes": job.world.size, "device": str(job.device), "precision": job.precision}
        more = {"seed": job.recipe.train.seed} | made_of | place | torch_environment() | {"files": files()}
        run.begin(config.dump(job.recipe), more)
    run.event("start", parameters=sum(job.model.num_parameters().values()))


def take_up(job: Job, run: Run, facts: dict[str, str]) -> None:
    """A run where its newest whole checkpoint stands. Raises ModelError where what it reads is not what it was, or no
    checkpoint is whole."""
    world = job.world
    world.check_same(recipe=config.dump(job.recipe), **facts)
    before = read_environment(run.path)
    if changed := [key for key, value in facts.items() if before.get(key, value) != value]:
        names = " and the ".join(changed).replace("data", "training data or its tokenizer")
        raise ModelError(
            f"{run.path}: the {names} changed since this run began\n  → restore the files, or start a new run"
        )
    newest = world.agree(run.newest_whole(note) if world.first and run.steps() else None)
    if newest is None:
        note(f"{run.path}: stopped before its first checkpoint; starting from step 0")
    else:
        job.state = checkpoints.read(newest, job.model, job.optimizers, job.average)
    run.truncate_logs(job.state.step)
    run.event("resume", step=job.state.step)
    note(f"resuming {run.path} at step {job.state.step}")


def changed_recipe(old: Recipe | FinetuneRecipe, new: Recipe | FinetuneRecipe, accept: bool, where: Path) -> None:
    """Say what another recipe would change in a run that goes on. Raises UserError unless that is harmless, or
    accepted."""
    changes = config.differences(old.model_dump(mode="json"), new.model_dump(mode="json"))
    if not changes:
        return
    told = f"{where}: the recipe changed since this run began\n  " + "\n  ".join(changes)
    if accept or all(c.startswith(HARMLESS) for c in changes):
        note(told)
        return
    raise UserError(f"{told}\n  → restore it, start a new run with --out, or --accept-changes")
