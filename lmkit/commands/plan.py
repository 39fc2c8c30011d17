"""`lmkit plan`: what a pretraining recipe would need on one GPU or a thousand."""

from typing import Annotated

import typer

from lmkit.base.errors import UserError
from lmkit.commands.app import app
from lmkit.commands.options import Json, Overrides


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
    from lmkit.plan import report
    from lmkit.recipe.recipe_file import find_recipe

    path = None if recipe is None else find_recipe(recipe, "pretrain")
    report.print_plan(path, tuple(changes), model, gpus, gpu, gflops, as_json)
