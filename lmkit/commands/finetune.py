"""`lmkit finetune`: a trained model learns a task from labelled rows."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lmkit.base.errors import UserError
from lmkit.base.units import split_quantity
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

if TYPE_CHECKING:
    from lmkit.recipe.finetuning import FinetuneRecipe


@app.command(epilog="Example: lmkit finetune --task classify --model runs/bert-tiny --data reviews.csv")
def finetune(
    recipe: Annotated[
        str | None, typer.Argument(help="A .yaml file or the name of a built-in recipe; or leave it out.")
    ] = None,
    overrides: Overrides = None,
    task: Annotated[
        str | None, typer.Option("--task", help="classify, tag, qa, translate, summarize, chat, lm or answer.")
    ] = None,
    model: Annotated[
        str | None, typer.Option("--model", "-m", help="A run, a Hugging Face folder or a GGUF file.")
    ] = None,
    data: Annotated[list[str] | None, typer.Option("--data", "-d", help="Labelled files. Repeatable.")] = None,
    validation: Annotated[str | None, typer.Option("--validation", help="Files of their own, or a share: 10%.")] = None,
    out: Annotated[Path | None, run_folder("runs/TASK-DATA")] = None,
    resume: Annotated[Path | None, typer.Option("--resume", metavar="RUN", help="Go on with this run.")] = None,
    processes: Processes = None,
    max_restarts: Restarts = 0,
    dry_run: DryRun = False,
    print_recipe: PrintRecipe = False,
    as_json: JsonLines = False,
) -> None:
    """Teach a trained model a task from labelled rows."""
    if resume is not None:
        if recipe or out or task or model or data or validation or dry_run or print_recipe:
            raise UserError("--resume goes on with a run as it is\n  → leave out everything else")
        launch.check(processes, max_restarts, None)
        if launch.here(processes):
            raise typer.Exit(launch.command("finetune", processes, max_restarts, out, resume, None))
        from lmkit.training import finetuning_run

        with rows_as_json(as_json) as listeners:
            code = finetuning_run.resume(resume, listeners)
        raise typer.Exit(launch.exit_code(code))
    from lmkit.recipe.finetuning import flags
    from lmkit.recipe.recipe_file import dump

    loaded, path = _settled(recipe, overrides or [], flags(task, model, data, validation))
    if print_recipe:
        print(dump(loaded), end="")
        return
    name = path.stem if path else f"{loaded.task.name}-{Path(str(data[0])).name.partition('.')[0] if data else 'run'}"
    rows, unit = split_quantity(loaded.train.batch)
    launch.check(processes, max_restarts, rows if unit == "row" else None)
    if launch.here(processes) and not dry_run:
        raise typer.Exit(launch.command("finetune", processes, max_restarts, out, resume, name))
    from lmkit.training import finetuning_run

    if dry_run:
        finetuning_run.dry_run(loaded)
        return
    with rows_as_json(as_json) as listeners:
        again = launch.restarted(out)
        code = finetuning_run.resume(again, listeners) if again else finetuning_run.start(loaded, name, out, listeners)
    raise typer.Exit(launch.exit_code(code))


def _settled(recipe: str | None, overrides: list[str], options: list[str]) -> tuple["FinetuneRecipe", Path | None]:
    """Returns the recipe with its changes, and its file. A mistake ends here, before torch is loaded."""
    from lmkit.recipe.finetuning import FinetuneRecipe, check_start, expand_finetuning
    from lmkit.recipe.recipe_file import find_recipe, load_recipe

    if recipe is not None and "=" in recipe:  # no recipe, only changes
        overrides, recipe = [recipe, *overrides], None
    path = None if recipe is None else find_recipe(recipe, "finetune")
    if path is None and not any(change.startswith("task") for change in (*options, *overrides)):
        raise UserError(
            "what is to be learnt is missing\n  allowed: classify, tag, qa, translate, summarize, chat, lm, answer\n"
            "  → --task classify, or a recipe that has one"
        )
    loaded = load_recipe(FinetuneRecipe, path, (*options, *overrides), expand_finetuning)
    check_start(loaded)
    return loaded, path
