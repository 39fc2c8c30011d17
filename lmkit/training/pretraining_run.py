"""`lmkit pretrain`: a resolved recipe becomes objects, the objects meet the loop."""

import shlex
import time
from pathlib import Path

from lmkit.base.display import note
from lmkit.base.errors import UserError
from lmkit.base.files import write_atomic
from lmkit.base.runs import Run, find_run, fresh_path, going_on, takes_latest
from lmkit.base.units import show_count, show_seconds
from lmkit.data.inventory import of_store
from lmkit.data.tokens.cache import open_tokens
from lmkit.data.tokens.store import TokenStore
from lmkit.recipe import recipe_file
from lmkit.recipe.defaults import expand_pretraining
from lmkit.recipe.finetuning import is_finetuning
from lmkit.recipe.pretraining import Recipe
from lmkit.training.distributed.world import ALONE, World
from lmkit.training.job import Job, build_job, describe, fit_vocabulary
from lmkit.training.run_shell import Prepared, execute, keep_average, meet
from lmkit.training.step import probe_speed


def start(recipe_path: Path, overrides: tuple[str, ...], out: Path | None) -> int:
    """Train from the beginning. Returns the exit code."""
    recipe = recipe_file.load_recipe(Recipe, recipe_path, overrides, expand_pretraining)
    world = meet(recipe)
    path = world.agree(fresh_path(out, recipe_path.stem, "pretrain"))
    latest = path if takes_latest(out) else None
    return execute(
        world, path, "pretrain", lambda world, run: _prepare(recipe, world, run), goes_on=False, latest=latest
    )


def resume(path: Path, given: Recipe | None = None, accept_changes: bool = False) -> int:
    """Go on with a run where its newest whole checkpoint stands. Returns the exit code.

    given: a recipe to go on by, which must be the run's own but for what `accept_changes`. Raises UserError."""
    tree, lines = recipe_file.read_tree(find_run(path) / "recipe.yaml")
    if is_finetuning(tree):
        raise UserError(f"{path} is a run of fine-tuning\n  → {going_on(path, 'finetune')}")
    recipe = recipe_file.build_recipe(Recipe, tree, lines, expand_pretraining, str(path / "recipe.yaml"))
    if given is not None:  # what it leaves open stays as it was chosen
        left = {"micro_batch": 0, "compile": "auto"}
        same = {k: getattr(recipe.train, k) for k, v in left.items() if getattr(given.train, k) == v}
        given = given.model_copy(update={"train": given.train.model_copy(update=same)})

    def prepare(world: World, run: Run) -> Prepared:
        prepared = _prepare(given or recipe, world, run)
        resolved = recipe_file.dump(prepared.job.recipe)
        rewrite = given is not None and world.first
        prepared.introduce = lambda: write_atomic(path / "recipe.yaml", resolved) if rewrite else None
        return prepared

    return execute(meet(given or recipe), path, "pretrain", prepare, goes_on=True, accept_changes=accept_changes)


def _prepare(recipe: Recipe, world: World, run: Run) -> Prepared:
    recipe, store = _settle(recipe, world)
    job = build_job(recipe, store, world=world)
    return Prepared(
        job, {"data": store.fingerprint}, lambda: of_store(store, recipe.data.train),
        lambda: note("\n".join(describe(job, store))), lambda seconds: _tell(job, run, seconds),
    )  # fmt: skip


def dry_run(recipe_path: Path, overrides: tuple[str, ...]) -> None:
    """Print what would happen; writes tokens (they are cached) and nothing else."""
    recipe, store = _settle(recipe_file.load_recipe(Recipe, recipe_path, overrides, expand_pretraining))
    job = build_job(recipe, store)
    print(recipe_file.dump(job.recipe))
    note("\n".join(describe(job, store)))
    speed = probe_speed(job, 5.0, time.perf_counter)
    job_steps, train = job.horizon.steps, job.recipe.train
    if job_steps is not None:
        took = job_steps * train.batch / speed
        note(f"time     {speed:,.0f} tokens/s measured on a micro-batch → {show_seconds(took)} for {job_steps:,} steps")
    else:
        assert job.horizon.seconds is not None
        steps = job.horizon.seconds * speed / train.batch
        note(f"time     {speed:,.0f} tokens/s measured on a micro-batch → about {steps:,.0f} steps in {train.budget}")
    note("Nothing was started.")


def _tell(job: Job, run: Run, seconds: float) -> None:
    """Of training that has ended: what came out, and what to do with it."""
    keep_average(job, run)
    state = job.state
    run.status("done", **job.progress)
    best = ""
    if state.best:
        best = (
            f"\n  best   step {state.best['step']:.0f}: validation loss {state.best['val_loss']:.4f},"
            f" perplexity {state.best['val_perplexity']:.2f}, {_figure(state.best)}"
        )
    skipped = f" · {state.skipped} steps skipped (events.jsonl)" if state.skipped else ""
    print(f"done in {show_seconds(seconds)}: {state.step} steps, {show_count(state.tokens)} tokens{skipped}{best}")
    folder = "best" if (run.path / "best").exists() else "latest"
    print(f"  model  {run.path}/{folder}   (a Hugging Face folder)")
    print(f"  next   lmkit generate {shlex.quote(str(run.path))} {_prompt(job)}")


def _figure(best: dict[str, float]) -> str:
    if "val_bits_per_byte" in best:
        return f"{best['val_bits_per_byte']:.4f} bits per byte"
    return f"{best['val_accuracy']:.1%} of the predictions right"


def _prompt(job: Job) -> str:
    """Something to try the model with."""
    gap = {"masked_lm": job.tokenizer.special.mask, "span_corruption": "<extra_id_0>"}
    blank = gap.get(job.recipe.task.name)
    return f"'Once upon a {blank}.'" if blank else "'Once upon a time'"


# ---------------------------------------------------------------- what a run is made of


def _settle(recipe: Recipe, world: World = ALONE) -> tuple[Recipe, TokenStore]:
    """Tokens on disk, and the sizes that follow from them."""
    with world.first_alone():
        store = open_tokens(recipe.data, recipe.tokenizer, recipe.model.family, verify=world.first)
    model = fit_vocabulary(recipe.model, store.tokenizer)
    return recipe.model_copy(update={"model": model}), store
