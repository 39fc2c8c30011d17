"""`lmkit inspect`: why a model says what it says."""

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from lmkit.commands import options
from lmkit.commands.app import app


def _option(name: str, text: str, metavar: str | None = None) -> Any:
    return typer.Option(f"--{name}", help=text, metavar=metavar)


@app.command(epilog="Example: lmkit inspect runs/demo 'It was a fine morning'")
def inspect(
    model: options.Model,
    text: Annotated[str | None, typer.Argument(help="What the model reads.", show_default=False)] = None,
    attention: Annotated[bool, _option("attention", "View: what each token takes from which, by layer.")] = False,
    lens: Annotated[bool, _option("lens", "View: the words that the head makes of each layer.")] = False,
    attribute: Annotated[
        bool, _option("attribute", "View: each token's share in a label, an answer or the next token.")
    ] = False,
    nearest: Annotated[
        Path | None, _option("nearest", "View: the documents of a token store that share most with TEXT.", "STORE")
    ] = None,
    probe: Annotated[
        list[str] | None, _option("probe", "View: what layers tell of labels. Repeatable.", "FILES")
    ] = None,
    neuron: Annotated[
        str | None, _option("neuron", "View: where a neuron fires, in TEXT or --data.", "LAYER.NUMBER")
    ] = None,
    target: Annotated[str | None, _option("target", "What an encoder-decoder writes from TEXT.")] = None,
    method: Annotated[
        Literal["ig", "gradient", "occlusion"], _option("method", "Of --attribute: how it is computed.")
    ] = "ig",
    label: Annotated[
        str | None, _option("label", "Of --attribute: the label; else the likeliest. Of --probe: its column.")
    ] = None,
    word: Annotated[str | None, _option("word", "Of --attribute: the labelled word, or its number from 1.")] = None,
    context: Annotated[
        str | None, _option("context", "Of --attribute: where the answer to TEXT is looked for.")
    ] = None,
    data: Annotated[list[str] | None, _option("data", "Of --neuron: files of texts. Repeatable.", "FILES")] = None,
    column: Annotated[str | None, _option("text", "Of --probe and --data: the column of the text.", "COLUMN")] = None,
    top: Annotated[int, typer.Option("--top", help="How many tokens, documents or texts are listed.", min=1)] = 5,
    page: Annotated[Path | None, _option("html", "Write a page of its own in the place of text.")] = None,
    as_json: options.Json = False,
    allow_pickle: options.Pickle = False,
) -> None:
    """Look inside: the losses of the tokens of a text, or one of the views."""
    from lmkit.ops.inspecting import inspect_text
    from lmkit.ops.text_views import View

    view = View(
        attention, lens, attribute, method, label, word, context, target, nearest, probe or None, neuron, data or None,
        column, top,
    )  # fmt: skip
    inspect_text(model, text, view, as_json, page, allow_pickle)
