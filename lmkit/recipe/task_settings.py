"""`lmkit.json`: what `lmkit predict` and `eval` need to know of a fine-tuned model beyond transformers' own files.

It lies in the model's folder and is part of every checkpoint of fine-tuning, so a copied folder is the whole model."""

import json
from pathlib import Path
from typing import Any

from pydantic import Field

from lmkit import __version__
from lmkit.base.errors import ModelError, UserError
from lmkit.base.files import write_json
from lmkit.base.manifest import replace_listed
from lmkit.base.runs import model_folder, run_around, seeds_of
from lmkit.recipe import recipe_file as recipes
from lmkit.recipe.finetuning import FinetuneRecipe, expand_finetuning, is_finetuning
from lmkit.recipe.objectives import Count, Section
from lmkit.recipe.tasks import TaskConfig

FILE = "lmkit.json"
BEFORE = ("fitted.json", "answer.json")  # where older versions kept in a run what was chosen on held-out rows


class TaskSettings(Section):
    """What the model was fine-tuned for, and how it reads rows."""

    lmkit: str = __version__
    task: TaskConfig
    max_length: Count = 0  # tokens a row is cut to; 0: the default of the task
    columns: dict[str, str] = Field(default_factory=dict)  # those the recipe names, by role
    separator: str | None = None  # between the labels of a row that has several
    encoding: str = "utf-8"  # of the files, as `data.encoding`
    words: str = "blanks"  # what parts the words of a text to tag, as `data.words`
    fitted: dict[str, Any] = Field(default_factory=dict)  # chosen on held-out rows, like `no_answer_threshold`

    @classmethod
    def of_recipe(cls, recipe: FinetuneRecipe, **settled: Any) -> "TaskSettings":
        """Returns the settings of a recipe. settled: fields that training found out, in place of what the recipe
        says."""
        data = recipe.data
        named = {"text": data.text, "pair": data.pair, "label": data.label, "target": data.target}
        columns = {role: column for role, column in named.items() if column is not None}
        given = {"task": recipe.task, "max_length": data.max_length, "columns": columns}
        reading = {"separator": data.separator, "encoding": data.encoding, "words": data.words}
        return cls(**(given | reading | settled))

    def write(self, folder: Path) -> None:
        write_json(folder / FILE, recipes.as_tree(self))

    def write_fitted(self, folder: Path, **fitted: Any) -> None:
        """Writes what was fitted into a checkpoint that is there already, and into its manifest."""
        changed = self.model_copy(update={"fitted": self.fitted | fitted})
        replace_listed(folder.resolve(), FILE, json.dumps(recipes.as_tree(changed), indent=2, ensure_ascii=False))


def settings_of(model: str | Path) -> TaskSettings | None:
    """Returns the settings of a run, of one of several seeds, or of a folder; of a run by an older version, whose
    checkpoints have no such file, what its recipe says. Returns None where the model was not fine-tuned, or nothing is
    known of it. Raises ModelError."""
    seeds = seeds_of(model)
    folder = model_folder(seeds[0] if seeds else model)
    file = folder / FILE
    try:
        tree = dict(json.loads(file.read_bytes()))
    except (FileNotFoundError, NotADirectoryError):  # the second of a GGUF file
        run = run_of(model)
        return _of_older_run(run) if run else None
    except (OSError, ValueError, TypeError, RecursionError) as e:
        raise ModelError(f"{file}: cannot be read as a JSON object: {e}") from None
    try:
        return recipes.build_recipe(TaskSettings, tree, {}, where=str(file))
    except UserError as e:
        raise ModelError(f"{e}\n  → the lmkit that wrote it, {tree.get('lmkit')}, may be newer than this one") from None


def run_of(model: str | Path) -> Path | None:
    """Returns the fine-tuning run that a path names, or lies in."""
    run = run_around(model)
    return run if run and is_finetuning(recipes.read_tree(run / "recipe.yaml")[0]) else None


def recipe_of(run: Path) -> FinetuneRecipe:
    return recipes.load_recipe(FinetuneRecipe, run / "recipe.yaml", expand=expand_finetuning)


def _of_older_run(run: Path) -> TaskSettings:
    fitted: dict[str, Any] = {"no_answer_threshold": None}  # fitted only where rows without an answer were learnt from
    for name in BEFORE:
        if (run / name).is_file():
            fitted |= json.loads((run / name).read_text(encoding="utf-8"))
    return TaskSettings.of_recipe(recipe_of(run), fitted=fitted)
