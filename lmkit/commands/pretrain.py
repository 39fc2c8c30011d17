"""`lmkit pretrain`: a model from scratch, by a recipe."""

import shlex
from pathlib import Path
from typing import Annotated

import typer

from lmkit.base.errors import UserError
from lmkit.commands.app import app
from lmkit.commands.options import (
    DryRun,
    JsonLines,
    Overrides,
    PrintRecipe,
    Processes,
    Restarts,
    rows_as_json,
    run_folder,
)
from lmkit.training.distributed import launch


@app.command(epilog="Example: lmkit pretrain demo train.budget='5 steps' evaluate.tokens=2048 --out runs/short")
def pretrain(
    recipe: Annotated[str | None, typer.Argument(help="A .yaml file, or the name of a built-in recipe.")] = None,
    overrides: Overrides = None,
    out: Annotated[Path | None, run_folder("runs/RECIPE")] = None,
    resume: Annotated[
        Path | None, typer.Option("--resume", metavar="RUN", help="Go on with this run, exactly.")
    ] = None,
    accept_changes: Annotated[
        bool, typer.Option("--accept-changes", help="With --resume and a recipe: go on by it, changed as it is.")
    ] = False,
    processes: Processes = None,
    max_restarts: Restarts = 0,
    dry_run: DryRun = False,
    print_recipe: PrintRecipe = False,
    as_json: JsonLines = False,
) -> None:
    """Train a model from scratch."""
    from lmkit.recipe.defaults import expand_pretraining
    from lmkit.recipe.pretraining import Recipe
    from lmkit.recipe.recipe_file import dump, find_recipe, load_recipe

    if resume is not None and (out or dry_run or print_recipe):
        raise UserError("--resume goes on with a run where it is\n  → leave out --out, --dry-run and --print-recipe")
    if accept_changes and resume is None:
        raise UserError("--accept-changes says how to go on\n  → add --resume RUN, or leave it out")
    if resume is None and recipe is None:
        raise UserError("name a recipe, or a run after --resume\n  → `lmkit recipes` lists the built-in recipes")
    if resume is not None and recipe is not None and "=" in recipe:
        changed = shlex.join([f"{resume}/recipe.yaml", recipe, *(overrides or ()), "--resume", str(resume)])
        raise UserError(
            f"{recipe}: --resume goes on by the recipe of the run\n"
            f"  → lmkit pretrain {changed} --accept-changes changes it on the way"
        )
    changes = tuple(overrides or ())
    path = None if recipe is None else find_recipe(recipe, "pretrain")
    # A mistake ends here, before torch is loaded.
    given = None if path is None else load_recipe(Recipe, path, changes, expand_pretraining)
    if given and print_recipe:
        print(dump(given), end="")
        return
    launch.check(processes, max_restarts, given.train.batch // given.model.context if given else None)
    if launch.here(processes) and not dry_run:
        raise typer.Exit(launch.command("pretrain", processes, max_restarts, out, resume, path.stem if path else None))
    from lmkit.training import pretraining_run

    if dry_run and path is not None:
        pretraining_run.dry_run(path, changes)
        return
    with rows_as_json(as_json) as listeners:
        if again := launch.restarted(out):
            code = pretraining_run.resume(again, listeners=listeners)
        elif resume is not None:
            code = pretraining_run.resume(resume, given, accept_changes, listeners)
        else:
            assert path is not None and given is not None
            code = pretraining_run.train(given, path.stem, out, listeners)
    raise typer.Exit(launch.exit_code(code))
