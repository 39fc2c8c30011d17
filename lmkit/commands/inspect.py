"""`lmkit inspect`: why a model says what it says."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from lmkit.commands import options
from lmkit.commands.app import app


@app.command(epilog="Example: lmkit inspect runs/demo 'It was a fine morning'")
def inspect(
    model: options.Model,
    text: Annotated[str, typer.Argument(help="What the model reads.")],
    target: Annotated[str | None, typer.Option("--target", help="What an encoder-decoder writes from it.")] = None,
    attention: Annotated[bool, typer.Option("--attention", help="What each token takes from which, by layer.")] = False,
    lens: Annotated[bool, typer.Option("--lens", help="The words that the head makes of each layer.")] = False,
    attribute: Annotated[
        bool, typer.Option("--attribute", help="The share of each token in a label, or in the next token.")
    ] = False,
    method: Annotated[
        Literal["ig", "gradient", "occlusion"], typer.Option("--method", help="Of --attribute: how it is computed.")
    ] = "ig",
    label: Annotated[str | None, typer.Option("--label", help="Of --attribute: the label; else the likeliest.")] = None,
    word: Annotated[
        str | None, typer.Option("--word", help="Of --attribute: the labelled word, or its number from 1.")
    ] = None,
    context: Annotated[
        str | None, typer.Option("--context", help="Of --attribute: where the answer to TEXT is looked for.")
    ] = None,
    top: Annotated[int, typer.Option("--top", help="Likeliest tokens that are listed.", min=1)] = 5,
    page: Annotated[Path | None, typer.Option("--html", help="Write a page of its own in the place of text.")] = None,
    as_json: options.Json = False,
    allow_pickle: options.Pickle = False,
) -> None:
    """Look inside: the loss of every token, attention, the words of each layer, or what a label rests on."""
    from lmkit.ops.inspecting import View, inspect_text

    view = View(attention, lens, attribute, method, label, word, context, target)
    inspect_text(model, text, view, top, as_json, page, allow_pickle)
