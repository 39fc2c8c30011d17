"""`lmkit pretrain`: builds a job from a resolved recipe, trains it, and tells the result."""

import math
import shlex
from pathlib import Path
from typing import Any

import numpy as np

from lmkit.base.display import waiting
from lmkit.base.errors import UserError
from lmkit.base.files import write_atomic
from lmkit.base.runs import Run, find_run, fresh_path, going_on, takes_latest
from lmkit.base.units import show_count, show_seconds
from lmkit.data.inventory import of_store
from lmkit.data.tokens.cache import open_tokens
from lmkit.data.tokens.store import Split, TokenStore
from lmkit.evaluation.baseline import compressed, unigram
from lmkit.recipe import recipe_file
from lmkit.recipe.defaults import expand_pretraining
from lmkit.recipe.finetuning import is_finetuning
from lmkit.recipe.pretraining import Recipe
from lmkit.training import verdict
from lmkit.training.distributed.world import ALONE, World
from lmkit.training.job import Job, Listeners, build_pretraining, describe_pretraining, fit_vocabulary
from lmkit.training.run_shell import Prepared, card, execute, keep_average, meet, tell
from lmkit.training.step import expected_time

MOST_TOKENS, MOST_BYTES = 5_000_000, 500_000  # of texts that the baselines read


def start(recipe_path: Path, overrides: tuple[str, ...], out: Path | None) -> int:
    """Trains from the beginning. Returns the exit code."""
    return train(recipe_file.load_recipe(Recipe, recipe_path, overrides, expand_pretraining), recipe_path.stem, out)


def train(recipe: Recipe, name: str, out: Path | None, listeners: Listeners = ()) -> int:
    """Trains from the beginning by a resolved recipe of this name. Returns the exit code."""
    world = meet(recipe)
    path = world.agree(fresh_path(out, name, "pretrain"))
    latest = path if takes_latest(out) else None
    prepare = lambda world, run: _prepare(recipe, world, run)
    return execute(world, path, "pretrain", prepare, goes_on=False, latest=latest, listeners=listeners)


def resume(path: Path, given: Recipe | None = None, accept_changes: bool = False, listeners: Listeners = ()) -> int:
    """Goes on with a run from its newest whole checkpoint. Returns the exit code.

    given: a recipe to use instead of the run's own; without `accept_changes` only harmless keys may differ. Raises
    UserError where other keys differ, and for a run of fine-tuning."""
    tree, lines = recipe_file.read_run(find_run(path) / "recipe.yaml")
    if is_finetuning(tree):
        raise UserError(f"{path} is a run of fine-tuning\n  → {going_on(path, 'finetune')}")
    recipe = recipe_file.build_recipe(Recipe, tree, lines, expand_pretraining, str(path / "recipe.yaml"))
    if given is not None:  # keys that it leaves open stay as they were chosen when the run began
        open_values = {"micro_batch": 0, "compile": "auto"}
        chosen = {k: getattr(recipe.train, k) for k, v in open_values.items() if getattr(given.train, k) == v}
        given = given.model_copy(update={"train": given.train.model_copy(update=chosen)})

    def prepare(world: World, run: Run) -> Prepared:
        prepared = _prepare(given or recipe, world, run)
        resolved = recipe_file.dump(prepared.job.recipe)
        rewrite = given is not None and world.first

        def introduce() -> dict[str, Any]:
            if rewrite:
                write_atomic(path / "recipe.yaml", resolved)
            return {}

        prepared.introduce = introduce
        return prepared

    return execute(meet(given or recipe), path, "pretrain", prepare, True, None, accept_changes, listeners)


def _prepare(recipe: Recipe, world: World, run: Run) -> Prepared:
    recipe, store = settle(recipe, world)
    job = build_pretraining(recipe, store, world=world)
    return Prepared(
        job, {"data": store.fingerprint}, lambda: of_store(store, recipe.data.train),
        lambda: tell(describe_pretraining(job, store)), lambda seconds: _tell(job, run, store, seconds),
    )  # fmt: skip


def dry_run(recipe_path: Path, overrides: tuple[str, ...]) -> None:
    """Prints what would happen. It writes tokens into their cache, and nothing else."""
    recipe, store = settle(recipe_file.load_recipe(Recipe, recipe_path, overrides, expand_pretraining))
    job = build_pretraining(recipe, store)
    job.tell_sources(job.horizon.steps or 0)
    print("\n".join([*describe_pretraining(job, store), *expected_time(job, job.recipe.train.batch)]))


def _tell(job: Job, run: Run, store: TokenStore, seconds: float) -> None:
    """Prints the result of training that has ended, and what to do next. seconds: how long training took."""
    keep_average(job, run)
    state = job.state
    card(job, run)
    baselines, lines = dict[str, dict[str, float]](), list[str]()
    if job.world.first:
        with waiting("scoring the baselines"):
            baselines = _baselines(job, store)
        lines = verdict.course(run.path, job.recipe.train.budget, "pretrain", by_loss=True)
        scores = {name.removeprefix("val_"): value for name, value in (state.best or {}).items()}
        lines += verdict.beside_frequencies(scores, baselines, run.path, job.recipe.train.budget, bool(lines))
    run.status("done", verdict=lines, baselines=baselines, **job.progress)
    best = ""
    if state.best:
        best = (
            f"\n  best   step {state.best['step']:.0f}: validation loss {state.best['val_loss']:.4f},"
            f" perplexity {state.best['val_perplexity']:.2f}, {_figure(state.best)}"
        )
    skipped = f" · {state.skipped} steps skipped (events.jsonl)" if state.skipped else ""
    print(f"done in {show_seconds(seconds)}: {state.step} steps, {show_count(state.tokens)} tokens{skipped}{best}")
    if baselines:
        unit = "bits_per_byte" if "val_bits_per_byte" in (state.best or {}) else "perplexity"
        beside = (f"{name} {scores[unit]:.4g}" for name, scores in baselines.items() if unit in scores)
        print(f"  beside {', '.join(beside)} {unit.replace('_', ' ')}")
    if lines:
        print(verdict.as_text(lines))
    folder = "best" if (run.path / "best").exists() else "latest"
    print(f"  model  {run.path}/{folder}   (a Hugging Face folder)")
    verb = "fill" if job.model.config.stacks == "encoder" else "generate"
    print(f"  report lmkit report {shlex.quote(str(run.path))}")
    print(f"  next   lmkit {verb} {shlex.quote(str(run.path))} {_prompt(job)}")


def _baselines(job: Job, store: TokenStore) -> dict[str, dict[str, float]]:
    """Returns the scores of simpler predictions of the held-out texts, by their names; {} where what is predicted is
    no share of the tokens as they stand.

    They are: all tokens as likely as each other; as likely as they are in the training texts; and, where every token is
    predicted, xz, which knows neither."""
    held_out = store.split("validation")
    if not job.state.best or job.recipe.task.name not in ("causal_lm", "masked_lm"):
        return {}
    vocabulary, ids = job.tokenizer.vocab_size, held_out.stream(0, min(held_out.num_tokens, MOST_TOKENS))
    losses = {"unigram": unigram(_some(store.split("train")), ids, vocabulary), "uniform": math.log(vocabulary)}
    scores = {name: {"loss": loss, "perplexity": math.exp(loss)} for name, loss in losses.items()}
    if (per_byte := job.work.tokens_per_byte) is None:
        return scores
    for name, loss in losses.items():
        scores[name]["bits_per_byte"] = loss * per_byte / math.log(2)
    text = job.tokenizer.decode(ids[: round(MOST_BYTES * per_byte)]).encode()
    return ({"xz": {"bits_per_byte": compressed(text)}} if text else {}) | scores


def _some(split: Split) -> np.ndarray:
    """Returns the ids of a split, or of many a part at equal distances."""
    starts = np.linspace(0, split.num_tokens, 101).astype(int)[:-1]
    size = min(math.ceil(split.num_tokens / 100), MOST_TOKENS // 100)
    return np.concatenate([split.stream(int(start), min(int(start) + size, split.num_tokens)) for start in starts])


def _figure(best: dict[str, float]) -> str:
    if "val_bits_per_byte" in best:
        return f"{best['val_bits_per_byte']:.4f} bits per byte"
    return f"{best['val_accuracy']:.1%} of the predictions right"


def _prompt(job: Job) -> str:
    """Returns a prompt to try the model with: that of the recipe, if it has one."""
    if sample := getattr(job.recipe.evaluate, "sample", ""):
        return shlex.quote(sample)
    gap = {"masked_lm": job.tokenizer.special.mask, "span_corruption": "<extra_id_0>"}
    blank = gap.get(job.recipe.task.name)
    return f"'Once upon a {blank}.'" if blank else "'Once upon a time'"


# ---------------------------------------------------------------- what a run is made of


def settle(recipe: Recipe, world: World = ALONE) -> tuple[Recipe, TokenStore]:
    """Tokenizes the data, if that is not done yet, and returns the recipe with the size of the vocabulary, and the
    tokens."""
    with world.first_alone():
        store = open_tokens(recipe.data, recipe.tokenizer, recipe.model.family, verify=world.first)
    model = fit_vocabulary(recipe.model, store.tokenizer)
    return recipe.model_copy(update={"model": model}), store
