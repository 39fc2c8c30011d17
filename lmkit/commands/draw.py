"""`lmkit draw`: the beginnings of images, continued by a model of their words, as a PNG."""

from pathlib import Path
from typing import Annotated

import typer

from lmkit.commands.app import app
from lmkit.commands.options import Json, MinP, Model, Penalty, Pickle, Seed, Temperature, TopK, TopP


@app.command(epilog="Example: lmkit draw runs/mnist-causal --images mnist --keep 50% --out drawn.png")
def draw(
    model: Model,
    images: Annotated[list[str], typer.Option("--images", help="Images to begin with: idx files, .bin. Repeatable.")],
    keep: Annotated[str, typer.Option("--keep", help="Share of each image that the model goes on from.")] = "50%",
    n: Annotated[int, typer.Option("-n", "--samples", help="How many images to draw.", min=1)] = 8,
    out: Annotated[Path, typer.Option("--out", "-o", help="The PNG.")] = Path("drawn.png"),
    temperature: Temperature = 0.8,
    top_k: TopK = 0,
    top_p: TopP = 1.0,
    min_p: MinP = 0.0,
    repetition_penalty: Penalty = 1.0,
    seed: Seed = 0,
    as_json: Json = False,
    allow_pickle: Pickle = False,
) -> None:
    """Draw on from the beginnings of images, by a model that was pretrained on images."""
    from lmkit.generation.sampling import SamplingConfig
    from lmkit.ops import drawing

    config = SamplingConfig(
        temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p, repetition_penalty=repetition_penalty, seed=seed
    )
    drawing.draw_images(model, images, keep, n, config, out, as_json, allow_pickle)
