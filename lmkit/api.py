"""lmkit in Python: what the commands do, as functions. `import lmkit` offers them without waiting for torch."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lmkit.base.errors import UserError
from lmkit.base.runs import find_run
from lmkit.data.tokens.store import TokenStore
from lmkit.data.tokens.tokenize import tokenize as make_store
from lmkit.ops import scores
from lmkit.pretrained import Pretrained, read_model
from lmkit.recipe import recipe_file
from lmkit.recipe.defaults import expand_pretraining
from lmkit.recipe.finetuning import FinetuneRecipe, check_start, expand_finetuning
from lmkit.recipe.pretraining import DataConfig, Recipe, TokenizerConfig
from lmkit.report.record import RunRecord
from lmkit.tasks.records import answers
from lmkit.tasks.table import task_of, trained_task
from lmkit.tasks.task import Task
from lmkit.training import finetuning_run, pretraining_run
from lmkit.training.job import Listeners

Callback = Callable[[dict[str, Any]], None]
RecipeLike = str | Path | Mapping[str, Any] | None


class Model(Pretrained):
    """A model that `load` has read: `logits`, `hidden`, `embed`, `generate`, `fill`, `predict`, `save`."""

    _task: Task | None = None

    def predict(self, records: Sequence[str | Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Returns what a fine-tuned model says of each record, as `lmkit predict` writes it.

        records: texts, or rows with the columns that the model was trained with. Raises UserError for a model that
        labels no rows, and where no record can be read."""
        section = task_of(str(self.folder))
        if section is None:
            raise UserError(f"{self.folder}: not fine-tuned for a task\n  → `generate` or `fill`, or lmkit.finetune")
        self._task = self._task or trained_task(str(self.folder), self, section)
        rows = [{"text": record} if isinstance(record, str) else record for record in records]
        return answers(self, section, self._task, rows)


def load(path: str | Path, allow_pickle: bool = False, device: str = "auto") -> Model:
    """Returns the model and tokenizer of a run, a Hugging Face folder or a GGUF file. Arguments and errors are those
    of `lmkit.pretrained.load`."""
    return Model(*read_model(path, allow_pickle, device))


def tokenize(
    inputs: str | Sequence[str], out: str | Path, family: str = "nanochat",
    tokenizer: str | Path | Mapping[str, Any] | None = None, **data: Any,
) -> TokenStore:  # fmt: skip
    """Writes token files for pretraining into `out`, and returns them.

    tokenizer: a folder or file to take, or keys of the recipe's section `tokenizer`; data: keys of its section `data`.
    Raises UserError and DataError."""
    chosen = {"path": str(tokenizer)} if isinstance(tokenizer, str | Path) else dict(tokenizer or {})
    train = [inputs] if isinstance(inputs, str) else list(inputs)
    settings = recipe_file.build_recipe(DataConfig, {"train": train} | data, {}, where="lmkit.tokenize")
    config = recipe_file.build_recipe(TokenizerConfig, chosen, {}, where="lmkit.tokenize")
    return make_store(settings, config, family, Path(out))


def pretrain(
    recipe: RecipeLike = None, out: str | Path | None = None, resume: str | Path | None = None,
    on_step: Callback | None = None, on_evaluation: Callback | None = None, **sections: Any,
) -> RunRecord:  # fmt: skip
    """Trains a model from scratch, and returns its run.

    recipe: a file, the name of a built-in recipe, or a recipe as nested dicts. sections: changes, such as
    `train={"budget": "5 steps"}`. on_step: is given each row of metrics.jsonl; on_evaluation: those with scores. What
    they raise ends the run, which `resume` goes on with. Raises UserError, DataError, Diverged and StorageError."""
    listeners = _listeners(on_step, on_evaluation)
    if resume is not None:
        pretraining_run.resume(find_run(resume), listeners=listeners)
        return RunRecord(Path(resume))
    path, overrides = _changes(recipe, sections, "pretrain")
    loaded = recipe_file.load_recipe(Recipe, path, overrides, expand_pretraining)
    pretraining_run.train(loaded, path.stem if path else "run", _path(out), listeners)
    return _made(out)


def finetune(
    recipe: RecipeLike = None, out: str | Path | None = None, resume: str | Path | None = None,
    on_step: Callback | None = None, on_evaluation: Callback | None = None, **sections: Any,
) -> RunRecord:  # fmt: skip
    """Teaches a trained model a task, and returns its run. Arguments and errors are those of `pretrain`.

    Without a recipe: `finetune(task="classify", model="runs/mine", data="mails.csv")`."""
    if isinstance(sections.get("data"), str | list):
        sections["data"] = {"train": sections["data"]}
    listeners = _listeners(on_step, on_evaluation)
    if resume is not None:
        finetuning_run.resume(find_run(resume), listeners)
        return RunRecord(Path(resume))
    path, overrides = _changes(recipe, sections, "finetune")
    loaded = recipe_file.load_recipe(FinetuneRecipe, path, overrides, expand_finetuning)
    check_start(loaded)
    finetuning_run.start(loaded, path.stem if path else loaded.task.name, _path(out), listeners)
    return _made(out)


def evaluate(
    models: str | Path | Sequence[str | Path], data: str | Sequence[str] | None = None,
    tasks: str | Sequence[str] | None = None, **options: Any,
) -> dict[str, Any]:  # fmt: skip
    """Scores a model, or two beside each other, and prints what `lmkit eval` prints. Returns what its JSON holds.

    options: those of the command, as `by="domain"` and `worst=20`. Raises UserError for others, and DataError."""
    given = {"models": _list(models), "data": _list(data), "tasks": _list(tasks)} | options
    if unknown := [name for name in given if name not in scores.OPTIONS]:
        raise UserError(f"{unknown[0]}: no option of evaluate\n  allowed: {', '.join(scores.OPTIONS)}")
    return scores.evaluate(scores.OPTIONS | given, as_json=False)


def _list(value: Any) -> list[str] | None:
    return None if value is None else [str(value)] if isinstance(value, str | Path) else [str(one) for one in value]


def _path(out: str | Path | None) -> Path | None:
    return None if out is None else Path(out)


def _made(out: str | Path | None) -> RunRecord:
    """Returns the run that was just made: `out`, or else the one that runs/latest names."""
    return RunRecord(Path(out) if out is not None else Path("runs", Path("runs/latest").readlink()))


def _listeners(on_step: Callback | None, on_evaluation: Callback | None) -> Listeners:
    scored = lambda row: any(name.startswith("val_") for name in row)
    evaluated = [lambda row: on_evaluation(row) if scored(row) else None] if on_evaluation else []
    return [*([on_step] if on_step else []), *evaluated]


def _changes(recipe: RecipeLike, sections: Mapping[str, Any], verb: str) -> tuple[Path | None, tuple[str, ...]]:
    """Returns the file of a recipe, None where it is nested dicts, and what changes or makes it up, as KEY=VALUE."""
    path, tree = None, recipe
    if not isinstance(recipe, Mapping):
        path, tree = None if recipe is None else recipe_file.find_recipe(str(recipe), verb), {}
    return path, tuple(_assigned(tree)) + tuple(_assigned(sections))


def _assigned(tree: Any, at: str = "") -> Iterator[str]:
    """Yields KEY=VALUE for each leaf; values are JSON, which is YAML too."""
    if isinstance(tree, Mapping) and (tree or not at):
        for key, value in tree.items():
            yield from _assigned(value, f"{at}.{key}" if at else str(key))
    else:
        yield f"{at}={json.dumps(tree, default=str, ensure_ascii=False)}"
