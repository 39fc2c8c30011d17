"""What a fine-tuning recipe may say, and the defaults that task, model and adapters give it. No torch here.

The sections it shares with pretraining stand in `lmkit.recipe.pretraining`, those of the tasks in `lmkit.recipe.tasks`.
"""

import copy
import json
import re
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, Field, model_validator

from lmkit.architecture.model_config import quantity
from lmkit.architecture.sizes import PRESETS
from lmkit.base import units
from lmkit.base.errors import UserError
from lmkit.recipe import defaults
from lmkit.recipe.objectives import Count, Section
from lmkit.recipe.optimizers import OPTIMIZERS
from lmkit.recipe.pretraining import (  # fmt: skip
    Budget,
    CheckpointConfig,
    ModelSection,
    OptimizerConfig,
    ParallelConfig,
    ScheduleConfig,
    TokenizerConfig,
    TrackerConfig,
    TrainConfig,
    Warmup,
)
from lmkit.recipe.recipe_file import builtin_recipes
from lmkit.recipe.sources import RowQualityConfig
from lmkit.recipe.tasks import SECTIONS, AnswerConfig, LoraConfig, TableConfig, TaskConfig

PRETRAINED_WIDTH = 768  # at which the usual learning rates of fine-tuning were found


def _batch(text: str) -> str:
    number, unit = units.split_quantity(text)
    if unit not in ("", "row", "token") or number < 1:
        raise ValueError(f"{text!r}: write a number of rows, or of tokens: `32 rows`, `4096 tokens`")
    return str(text)


class FinetuneTrainConfig(TrainConfig):
    budget: Budget = Field("", description="Horizon: `3 epochs`, `500 steps`, `1M tokens` or `10 min`.")
    batch: Annotated[str, quantity(str, "32 rows", "row", "token"), AfterValidator(_batch)] = Field(  # type: ignore[assignment]
        "", description="An optimizer step: `32 rows` or `4096 tokens` of rows of the mean length."
    )
    patience: Count = Field(0, ge=0, description="Stop after this many evaluations without a better score; 0: never.")


class FinetuneEvaluateConfig(Section):
    every: Warmup = Field("20%", description="Steps, or a share of the horizon, between evaluations.")
    rows: Count = Field(2000, ge=1, description="Held-out rows an evaluation during training reads at most.")


class FinetuneRecipe(Section):
    task: TaskConfig = Field(description="What is learnt.")
    model: str | ModelSection = Field(
        description="A run, folder or GGUF file to start from; or a section like that of pretraining: from scratch."
    )
    tokenizer: TokenizerConfig = Field(default_factory=TokenizerConfig, description="From scratch: text to ids.")
    data: TableConfig = Field(description="What to learn from.")
    lora: LoraConfig | None = Field(None, description="Train low-rank adapters instead of all weights.")
    freeze: tuple[str, ...] = Field(
        (), description="Regular expressions of parameters that stay as they are; `body`: all but the head."
    )
    optimizer: OptimizerConfig = Field(default_factory=OptimizerConfig, description="How weights move.")
    schedule: ScheduleConfig = Field(default_factory=ScheduleConfig, description="Learning rate over time.")
    train: FinetuneTrainConfig = Field(default_factory=FinetuneTrainConfig, description="How long, how fast, on what.")
    parallel: ParallelConfig = Field(
        default_factory=ParallelConfig, description="How several processes share the work."
    )
    evaluate: FinetuneEvaluateConfig = Field(default_factory=FinetuneEvaluateConfig, description="Scores on the way.")
    checkpoint: CheckpointConfig = Field(default_factory=CheckpointConfig, description="What is kept.")
    tracker: TrackerConfig = Field(default_factory=TrackerConfig, description="Who else is told of the metrics.")
    seeds: Count = Field(1, ge=1, description="Train this many times, with train.seed, train.seed + 1, ...")

    @model_validator(mode="after")
    def _check(self) -> "FinetuneRecipe":
        task = self.task
        if self.lora and not isinstance(self.model, str):
            raise ValueError("lora changes a trained model; `model` describes a new one\n  → leave out lora")
        if not (task.new_model or isinstance(self.model, str)):
            raise ValueError(f"task {task.name} goes on with a trained model\n  → `lmkit pretrain` makes a new one")
        if self.lora and not OPTIMIZERS[self.optimizer.name].adapters:
            raise ValueError(f"optimizer.name {self.optimizer.name} is for whole matrices, not for lora's\n  → adamw")
        if self.lora and (self.train.ema or self.checkpoint.average > 1):
            raise ValueError("lora: averages of weights (train.ema, checkpoint.average) are of whole models only")
        if self.parallel.tensor > 1:
            raise ValueError("parallel.tensor is for pretraining: scores of tasks need whole matrices\n  → data: fsdp")
        if self.lora and self.parallel.data == "fsdp":
            raise ValueError("lora leaves little to shard\n  → parallel.data=ddp")
        if self.data.weights and not task.in_steps:
            raise ValueError(f"data.weights: task {task.name} is not trained step by step\n  → leave it out")
        for key in ("group", "fold"):
            held_out_here = isinstance(self.data.validation, float | int) and task.name not in ("lm", "answer")
            if getattr(self.data, key) and not held_out_here:
                raise ValueError(f"data.{key} is for tables out of which rows are held out\n  → leave it out")
        if self.data.quality != RowQualityConfig() and task.name in ("lm", "answer"):
            raise ValueError(
                "data.quality is for tables of rows here\n  → for documents, `lmkit tokenize` has it as options"
            )
        if self.data.quality.redact and task.name in ("qa", "tag"):
            raise ValueError(f"data.quality.redact moves the places that {task.name} learns in texts\n  → leave it out")
        if isinstance(task, AnswerConfig) and not task.kb:
            raise ValueError("task.kb is missing: the knowledge base that answers are looked up in (`lmkit kb build`)")
        return self


def is_finetuning(tree: dict[str, Any]) -> bool:
    """Returns whether a recipe, as written or resolved, is one of fine-tuning: its task has a section there."""
    task = tree.get("task")
    name = task.get("name") if isinstance(task, dict) else task
    return isinstance(name, str) and name in SECTIONS


def flags(task: str | None, model: str | None, data: list[str] | None, validation: str | None) -> list[str]:
    """Returns what the command line says by options, as changes to a recipe."""
    sources = data[0] if data and len(data) == 1 else data
    share = validation is not None and re.fullmatch(r"[\d.]+", validation)
    named = {
        "task.name": task,
        "model": model,
        "data.train": sources,
        "data.validation": float(validation) if share and validation else validation,
    }
    return [f"{key}={json.dumps(value, ensure_ascii=False)}" for key, value in named.items() if value is not None]


# Peak learning rates of a new model that learns labels, whatever its batch: a run of two minutes has about 100 steps on
# long texts. With the rates that its batch would have in pretraining it then says the commonest label (measured on four
# sets: docs/benchmarks-history.md).
FROM_SCRATCH = {"lr": 0.01, "embedding_lr": 0.005, "head_lr": 0.005}


def check_start(recipe: FinetuneRecipe) -> None:
    """Raises UserError where `model` names no folder, but a size or a recipe of pretraining, and says how to start from
    scratch."""
    if not isinstance(recipe.model, str) or Path(recipe.model).exists():
        return
    name = Path(recipe.model).name
    ways = [f"model.preset={name} in the place of --model trains one on these rows alone"] if name in PRESETS else []
    if name in builtin_recipes("pretrain"):
        ways.append(f"lmkit pretrain {name} makes it from text; then --model runs/{name}")
    if ways:
        listed = "".join(f"\n  → {way}" for way in ways)
        raise UserError(f"{name}: no folder or run, but the name of a size: it has no weights yet{listed}")


def expand_finetuning(tree: dict[str, Any]) -> dict[str, Any]:
    """Fills what a recipe leaves open. Raises ValueError like `expand_pretraining` for a new model."""
    tree = copy.deepcopy(tree)
    learns_tokens = is_finetuning(tree) and SECTIONS[tree["task"]["name"]].learns_tokens
    train, optimizer, schedule = (defaults.section(tree, key) for key in ("train", "optimizer", "schedule"))
    if isinstance(tree.get("model"), dict):
        if not defaults.section(tree, "tokenizer").get("path"):  # the words are learnt from the rows
            tree["model"].setdefault("vocab_size", 0)
        train.setdefault("budget", "10 epochs")
        train.setdefault("batch", "4096 tokens" if learns_tokens else "32 rows")
        if not learns_tokens and optimizer.get("name", "muon") == "muon":
            for key, rate in FROM_SCRATCH.items():
                optimizer.setdefault(key, rate)
        number, unit = units.split_quantity(train["batch"])
        context = defaults.section(tree, "model").get("context", 512)
        tokens = int(number if unit == "token" else number * min(int(units.count(context)), 64))
        full = defaults.expand_pretraining(
            {"model": tree["model"], "tokenizer": tree.get("tokenizer"), "optimizer": optimizer, "schedule": schedule,
             "task": {}, "train": {"budget": "1 step", "batch": tokens}}
        )  # fmt: skip
        tree["model"], tree["optimizer"], tree["schedule"] = full["model"], full["optimizer"], full["schedule"]
        if "clip" in full["train"]:
            train.setdefault("clip", full["train"]["clip"])
        return tree
    train.setdefault("budget", "3 epochs")
    train.setdefault("batch", "4096 tokens" if learns_tokens else "32 rows")
    train.setdefault("clip", 1.0)
    schedule.setdefault("name", "linear")
    schedule.setdefault("warmup", "6%")
    for key, value in {"name": "adamw", "betas": [0.9, 0.999], "eps": 1e-8, "weight_decay": 0.01}.items():
        optimizer.setdefault(key, value)
    return tree


def with_default_lr(recipe: FinetuneRecipe, hidden_size: int) -> FinetuneRecipe:
    """Returns the recipe with a peak learning rate, where it leaves that open: 5e-5 at BERT-base's width, the largest
    of Devlin et al. 2019, A.3, and more for narrower models (Turc et al. 2019 try up to 3e-4 at a width of 128); 3e-4
    for adapters (Hu et al. 2022), and for a head alone, which is linear regression."""
    if recipe.optimizer.lr is not None:
        return recipe
    small = recipe.lora is not None or "body" in recipe.freeze
    lr = float(f"{(3e-4 if small else 5e-5) * PRETRAINED_WIDTH / hidden_size:.2g}")
    return recipe.model_copy(update={"optimizer": recipe.optimizer.model_copy(update={"lr": lr})})
