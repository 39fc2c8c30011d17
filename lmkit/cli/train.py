"""`lmkit tokenize`, `pretrain`, `finetune`."""

import shlex
from pathlib import Path
from typing import Annotated

import typer

from lmkit.base.errors import UserError
from lmkit.base.units import split_quantity
from lmkit.cli import launch
from lmkit.cli.app import Overrides, Processes, Restarts, Separator, Target, Text, app, run_folder


@app.command(epilog="Example: lmkit tokenize recipes/corpus/*.txt --out tokens --vocab-size 1000")
def tokenize(
    inputs: Annotated[list[str], typer.Argument(help="Files, folders, globs or hub:NAME. Also .gz and .zst.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for tokens and tokenizer.")],
    kind: Annotated[str, typer.Option("--kind", help="bpe, wordpiece, unigram, sentencepiece or bytes.")] = "bpe",
    vocab_size: Annotated[str, typer.Option("--vocab-size", help="Entries of a trained tokenizer.")] = "32k",
    tokenizer: Annotated[str | None, typer.Option("--tokenizer", help="Take this one: a file, folder or run.")] = None,
    family: Annotated[
        str, typer.Option("--family", help="Whose special tokens: nanochat, gpt2, llama, ...")
    ] = "nanochat",
    validation: Annotated[str, typer.Option("--validation", help="Share of documents held out.")] = "5%",
    text: Text = "text",
    target: Target = None,
    separator: Separator = None,
    pixels: Annotated[
        str | None, typer.Option("--pixels", help="Of images, how they become words: 'size=14 patch=1 colours=16'.")
    ] = None,
) -> None:
    """Train a tokenizer (or take one) and write token files for pretraining."""
    from lmkit.commands import tokenize as command

    data = {"train": inputs, "validation": validation, "text": text, "target": target}
    data["separator"] = separator
    command.run(data, {"type": kind, "vocab_size": vocab_size, "path": tokenizer}, family, out, pixels)


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
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would happen: sizes, memory, time.")] = False,
) -> None:
    """Train a model from scratch."""
    from lmkit.recipe.builtin import find_recipe
    from lmkit.recipe.defaults import expand
    from lmkit.recipe.pretraining import Recipe
    from lmkit.recipe.recipe_file import load

    if resume is not None and (out or dry_run):
        raise UserError("--resume goes on with a run where it is\n  → leave out --out and --dry-run")
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
    given = None if path is None else load(Recipe, path, changes, expand)  # a mistake ends here, before torch is loaded
    launch.check(processes, max_restarts, given.train.batch // given.model.context if given else None)
    if launch.here(processes) and not dry_run:
        raise typer.Exit(launch.command("pretrain", processes, max_restarts, out, resume, path.stem if path else None))
    from lmkit.commands import pretrain as command

    if again := launch.restarted(out):
        raise typer.Exit(launch.exit_code(command.resume(again)))
    if resume is not None:
        raise typer.Exit(launch.exit_code(command.resume(resume, given, accept_changes)))
    assert path is not None
    if dry_run:
        command.dry_run(path, changes)
    else:
        raise typer.Exit(launch.exit_code(command.start(path, changes, out)))


@app.command(epilog="Example: lmkit finetune --task classify --model runs/bert-tiny --data reviews.csv")
def finetune(
    recipe: Annotated[
        str | None, typer.Argument(help="A .yaml file or the name of a built-in recipe; or leave it out.")
    ] = None,
    overrides: Overrides = None,
    task: Annotated[
        str | None, typer.Option("--task", help="classify, tag, qa, translate, summarize, chat, lm or answer.")
    ] = None,
    model: Annotated[str | None, typer.Option("--model", "-m", help="A run or a Hugging Face folder.")] = None,
    data: Annotated[list[str] | None, typer.Option("--data", "-d", help="Labelled files. Repeatable.")] = None,
    validation: Annotated[str | None, typer.Option("--validation", help="Files of their own, or a share: 10%.")] = None,
    out: Annotated[Path | None, run_folder("runs/TASK-DATA")] = None,
    resume: Annotated[Path | None, typer.Option("--resume", metavar="RUN", help="Go on with this run.")] = None,
    processes: Processes = None,
    max_restarts: Restarts = 0,
) -> None:
    """Teach a trained model a task from labelled rows."""
    if resume is not None:
        if recipe or out or task or model or data or validation:
            raise UserError("--resume goes on with a run as it is\n  → leave out everything else")
        launch.check(processes, max_restarts, None)
        if launch.here(processes):
            raise typer.Exit(launch.command("finetune", processes, max_restarts, out, resume, None))
        from lmkit.commands import finetune as command

        raise typer.Exit(launch.exit_code(command.resume(resume)))
    from lmkit.recipe.builtin import find_recipe

    changes = list(overrides or ())
    if recipe is not None and "=" in recipe:  # no recipe, only changes
        changes, recipe = [recipe, *changes], None
    path = None if recipe is None else find_recipe(str(recipe), "finetune")
    from lmkit.recipe.finetuning import FinetuneRecipe, expand, flags
    from lmkit.recipe.recipe_file import load

    if path is None and task is None and not any(change.startswith("task") for change in changes):
        raise UserError(
            "what is to be learnt is missing\n  allowed: classify, tag, qa, translate, summarize, chat, lm, answer\n"
            "  → --task classify, or a recipe that has one"
        )
    said = flags(task, model, data, validation)
    loaded = load(FinetuneRecipe, path, (*said, *changes), expand)  # a mistake ends here, before torch is loaded
    name = path.stem if path else f"{loaded.task.name}-{Path(str(data[0])).name.partition('.')[0] if data else 'run'}"
    rows, unit = split_quantity(loaded.train.batch)
    launch.check(processes, max_restarts, rows if unit == "row" else None)
    if launch.here(processes):
        raise typer.Exit(launch.command("finetune", processes, max_restarts, out, resume, name))
    from lmkit.commands import finetune as command

    if again := launch.restarted(out):
        raise typer.Exit(launch.exit_code(command.resume(again)))
    raise typer.Exit(launch.exit_code(command.start(loaded, name, out)))
