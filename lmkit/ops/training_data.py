"""Whether what a model is scored on is what its run learnt from, and is read as it was there."""

import json
from contextlib import redirect_stderr, suppress
from io import StringIO
from pathlib import Path
from typing import Any

from lmkit.base.display import note
from lmkit.base.environment import read_environment
from lmkit.base.errors import UserError
from lmkit.base.runs import run_around
from lmkit.data.inventory import known_files, list_data, training_files
from lmkit.data.tokens.store import TokenStore, is_store
from lmkit.recipe import either
from lmkit.recipe.finetuning import FinetuneRecipe
from lmkit.recipe.pretraining import Recipe
from lmkit.tasks.table import TASKS


def note_learnt(models: list[str], patterns: list[str]) -> list[dict[str, Any]]:
    """Notes the files that the run of a model, or one that it started from, learnt from, as their content tells.

    Returns them: model, file, held_out (the share of its content), and where the split can be made again, rows that
    were learnt from and rows_held_out."""
    learnt = [{"model": model} | facts for model in models for facts in _learnt(model, patterns)]
    for model in models:
        files = [facts for facts in learnt if facts["model"] == model]
        if not files:
            continue
        names = files[0]["file"] + (f" and {len(files) - 1:,} more files" if len(files) > 1 else "")
        part = f"it, but for the {100 * files[0]['held_out']:.3g}% held out" if files[0]["held_out"] else "it"
        if all("rows" in facts for facts in files):
            rows, held_out = (sum(facts[key] for facts in files) for key in ("rows", "rows_held_out"))
            part = f"{rows:,} of its rows" + (f" ({held_out:,} were held out)" if held_out else "")
        note(f"{names}: {model} was trained on {part}, so the scores flatter; score on other files")
    return learnt


def note_separator(model: str, separator: str | None) -> None:
    """Notes where the documents of .txt files ended in training, if not at what ends them now."""
    of_run = recipe_around(model)
    if of_run and isinstance(recipe := of_run[1], Recipe) and recipe.data.separator != separator:
        before = recipe.data.separator
        trained, now = (f"ended at {json.dumps(end)}" if end else "were whole files" for end in (before, separator))
        advice = f"--separator {json.dumps(before)}" if before else "leave out --separator"
        note(f"documents {trained} when {model} was trained, and {now} here\n  → {advice} reads them as in training")


def encoding_of(model: str) -> str:
    """Returns the encoding of the files that the run of a model read; UTF-8 where no run is known."""
    of_run = recipe_around(model)
    return of_run[1].data.encoding if of_run else "utf-8"


def recipe_around(model: str) -> tuple[Path, Recipe | FinetuneRecipe] | None:
    """Returns the run that a model is of, and its recipe, in which the settings of a token store stand in the place of
    those that it makes idle; None where there is none that can be read."""
    run = run_around(model)
    if run is None or not (run / "environment.json").is_file():  # a recipe beside a model need not be its own
        return None
    with suppress(UserError):
        recipe = either.load(run / "recipe.yaml")
        if not (len(recipe.data.sources) == 1 and is_store(recipe.data.sources[0])):
            return run, recipe
        of_store = {"encoding": "utf-8"} | TokenStore(recipe.data.sources[0]).manifest["plan"]["settings"]
        settled = {key: of_store[key] for key in ("separator", "encoding", "validation")}
        return run, recipe.model_copy(update={"data": recipe.data.model_copy(update=settled)})
    return None


def _learnt(model: str, patterns: list[str]) -> list[dict[str, Any]]:
    if (of_run := recipe_around(model)) is None:
        return []
    run, recipe = of_run
    share, facts = recipe.data.validation, list[dict[str, Any]]()
    with suppress(UserError, OSError):  # of a run that is damaged, or files that scoring itself refuses
        before = training_files(read_environment(run).get("files", []), recipe)
        with redirect_stderr(StringIO()):  # notes on files come when they are read
            names = list(dict.fromkeys(list_data(patterns, recipe)))
        files = known_files(names, before)
        rows = _rows(run, recipe) if files else None
        held_out = share if isinstance(share, float | int) else 0
        counted = {name: _counted(entry["path"], rows) for name, entry in files.items()}
        facts = [{"file": name, "held_out": held_out} | c for name, c in counted.items() if c.get("rows") != 0]
    if not (isinstance(recipe, FinetuneRecipe) and isinstance(recipe.model, str)):
        return facts
    return facts + [file for file in _learnt(recipe.model, patterns) if file["file"] not in {f["file"] for f in facts}]


def _rows(run: Path, recipe: Recipe | FinetuneRecipe) -> tuple[list[str], list[str]] | None:
    """Returns the places of the rows learnt from and of those held out; None where they are not those of the run."""
    from lmkit.training.finetuning_run import tables

    if not isinstance(recipe, FinetuneRecipe) or recipe.task.name not in TASKS:
        return None
    with suppress(UserError), redirect_stderr(StringIO()):
        train, held_out = tables(recipe)
        if train.fingerprint == read_environment(run).get("data"):
            return train.places, held_out.places
    return None


def _counted(path: str, rows: tuple[list[str], list[str]] | None) -> dict[str, Any]:
    if rows is None:
        return {}
    learnt, held_out = (sum(place.rpartition(":")[0] == path for place in places) for places in rows)
    return {"rows": learnt, "rows_held_out": held_out} if learnt + held_out else {}  # places need not name files
