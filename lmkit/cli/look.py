"""`lmkit recipes`: what there is; `plan`: what it would take; `doctor`: whether this machine is fit for it."""

from pathlib import Path
from typing import Annotated

import typer

from lmkit.base.errors import UserError
from lmkit.cli.app import Json, Overrides, app


@app.command(epilog="Example: lmkit recipes demo")
def recipes(
    name: Annotated[
        str | None, typer.Argument(help="A recipe to print; `keys`: every key there is; `families`: published sizes.")
    ] = None,
) -> None:
    """List the built-in recipes, print one, explain every key, or list families and sizes."""
    from lmkit.commands import recipes as command

    command.run(name)


@app.command(epilog="Example: lmkit plan gpt2-124m --gpus 1,8,64 --gpu h100")
def plan(
    recipe: Annotated[str | None, typer.Argument(help="A pretraining recipe: a .yaml file or a built-in name.")] = None,
    overrides: Overrides = None,
    model: Annotated[
        str | None, typer.Option("--model", "-m", help="Instead: a size of `lmkit recipes families`, llama-3-70b, ...")
    ] = None,
    gpus: Annotated[str, typer.Option("--gpus", help="How many. Default: 1,8,64,1024.")] = "",
    gpu: Annotated[str, typer.Option("--gpu", help="a100-80, h100, h200, b200 or cpu: this machine.")] = "h100",
    gflops: Annotated[float, typer.Option("--gflops", help="cpu: its float32 matrix products. 0: measured.")] = 0.0,
    as_json: Json = False,
) -> None:
    """Estimate memory, speed and the best layout on any number of GPUs."""
    changes = list(overrides or ())
    if recipe is not None and "=" in recipe:  # no recipe, only changes
        changes, recipe = [recipe, *changes], None
    if (recipe is None) == (model is None):
        raise UserError("name a recipe, or a size after --model\n  → lmkit plan gpt2-124m, or --model llama-2-7b")
    from lmkit.commands import plan as command
    from lmkit.recipe.builtin import find_recipe

    path = None if recipe is None else find_recipe(recipe, "pretrain")
    command.run(path, tuple(changes), model, gpus, gpu, gflops, as_json)


@app.command(epilog="Example: lmkit doctor")
def doctor(
    overrides: Overrides = None,
    resume: Annotated[
        str | None,
        typer.Option("--resume", metavar="RECIPE", help="Instead: prove that a run by this recipe resumes exactly."),
    ] = None,
    steps: Annotated[
        int | None, typer.Option("--steps", help="Of that proof; half way the run is killed. Default: 6.", min=2)
    ] = None,
    tokens: Annotated[
        Path | None,
        typer.Option("--tokens", metavar="STORE", help="Instead: read a token store whole, by its checksums."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Check this machine, and say what to do about what is wrong. Exit code 1: something is.

    With --resume RECIPE [KEY=VALUE]...: train by it for a few steps, straight and again with a kill -9 in between, in a
    temporary folder, and compare weights, optimizer state and metrics byte for byte. Exit code 1: they differ.
    """
    if tokens is not None:
        from lmkit.data.tokens.store import TokenStore

        store = TokenStore(tokens)
        store.verify()
        print(f"{tokens}: every byte is as it was written ({store.fingerprint[:12]})")
        return
    if resume is None:
        if overrides or steps:
            raise UserError("KEY=VALUE and --steps belong to a recipe\n  → lmkit doctor --resume RECIPE KEY=VALUE")
        from lmkit.commands import doctor as command

        raise typer.Exit(command.run(as_json))
    from lmkit.commands import prove_resume

    raise typer.Exit(prove_resume.run(resume, tuple(overrides or ()), steps or 6, as_json))
