"""Pretraining that goes on from a trained model, on other text and with the model's own tokenizer (`task: lm`)."""

import shutil
from pathlib import Path
from typing import Any

from lmkit.base.display import note
from lmkit.base.errors import ModelError
from lmkit.base.units import split_quantity
from lmkit.data.tokens.cache import open_tokens
from lmkit.data.tokens.store import TokenStore
from lmkit.generation.rules import GENERATION_CONFIG
from lmkit.model.heads import Head
from lmkit.pretrained import BESIDE, copy_beside, load
from lmkit.recipe.finetuning import FinetuneRecipe, with_default_lr
from lmkit.recipe.objectives import default_objective
from lmkit.recipe.pretraining import DataConfig, EvaluateConfig, ModelSection, Recipe, TokenizerConfig, TrainConfig
from lmkit.recipe.task_settings import TaskSettings
from lmkit.training.distributed.world import World
from lmkit.training.finetune import adapt
from lmkit.training.job import Job, build_job

MOST_TOKENS = 1024  # of a row, unless `data.max_length` says otherwise


def build_continued(recipe: FinetuneRecipe, folder: Path, world: World) -> tuple[Job, TokenStore]:
    """folder: where what checkpoints hold beside the weights is kept, in `tokenizer`. Raises ModelError for a model
    that predicts no words, and what `build_job` raises."""
    assert isinstance(recipe.model, str), "`task: lm` from scratch is `lmkit pretrain`"
    loaded = load(recipe.model, device="cpu")
    origin, model = loaded.folder, loaded.model
    c = model.config
    if not isinstance(model.head, Head):
        raise ModelError(f"{origin} is a {c.spec.cls}: it has no head for words to go on with")
    if c.head == "pairs":
        note(f"{origin} is a {c.spec.cls}: its head for pairs of texts is left out, words alone are learnt")
        c = c.model_copy(update={"head": "lm"})
        model.config, model.pairs = c, None
    if default_objective(c.family) == "seq2seq":
        raise ModelError(f"{origin}: a {c.family} learns from pairs of texts\n  → --task translate or summarize")
    recipe = with_default_lr(recipe, c.hidden_size)
    data = DataConfig(
        train=recipe.data.train, validation=recipe.data.validation, text=recipe.data.text or "text",
        separator=recipe.data.separator,
    )  # fmt: skip
    with world.first_alone():
        store = open_tokens(data, TokenizerConfig(path=str(loaded.tokenizer_folder)), c.family, verify=world.first)
    pretraining = _as_pretraining(recipe, ModelSection(**c.model_dump()), data)
    adapter = adapt(model, recipe, str(origin))
    job = build_job(pretraining, store, model.train(), world)
    job.adapter, job.patience = adapter, recipe.train.patience
    if world.first:
        job.tokenizer_folder = folder / "tokenizer"
        shutil.copytree(store.tokenizer_path, job.tokenizer_folder, dirs_exist_ok=True)
        copy_beside(loaded.homes, job.tokenizer_folder, (*BESIDE, GENERATION_CONFIG))
        TaskSettings.of_recipe(recipe).write(job.tokenizer_folder)
    # the run is one of fine-tuning: its recipe is what it was asked for, with what was settled on the way
    settled = recipe.train.model_copy(update={k: getattr(job.recipe.train, k) for k in ("micro_batch", "compile")})
    job.recipe = recipe.model_copy(update={"train": settled})
    return job, store


def _as_pretraining(recipe: FinetuneRecipe, model: ModelSection, data: DataConfig) -> Recipe:
    """The recipe of pretraining that reads and scores the same way. Rows fill the context; a batch is whole rows."""
    context = min(model.context, recipe.data.max_length or MOST_TOKENS)
    number, unit = split_quantity(recipe.train.batch)
    rows = max(1, round(number / context)) if unit == "token" else int(number)
    train = TrainConfig(**recipe.train.model_dump(exclude={"patience"}) | {"batch": rows * context})
    task: Any = {"name": default_objective(model.family)}
    return Recipe(
        task=task,
        model=model.model_copy(update={"context": context}),
        data=data,
        optimizer=recipe.optimizer,
        schedule=recipe.schedule,
        train=train,
        checkpoint=recipe.checkpoint,
        parallel=recipe.parallel,
        evaluate=EvaluateConfig(every=recipe.evaluate.every),
    )
