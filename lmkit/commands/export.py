"""`lmkit export`: a model in the files of other tools."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from lmkit.commands.app import app
from lmkit.commands.options import Model


@app.command(epilog="Example: lmkit export runs/demo demo-gguf --to gguf --quant q8_0")
def export(
    model: Model,
    out: Annotated[Path, typer.Argument(help="The folder to write.", show_default=False)],
    to: Annotated[Literal["hf", "gguf", "onnx"], typer.Option("--to", help="transformers, llama.cpp or ONNX.")] = "hf",
    quant: Annotated[
        Literal["q8_0", "q4_0", "q4_1", "q5_0", "q5_1"] | None,
        typer.Option("--quant", help="GGUF: matrices in blocks of small numbers."),
    ] = None,
    dtype: Annotated[
        Literal["f32", "bf16", "f16"] | None, typer.Option("--dtype", help="Number format; default: the model's own.")
    ] = None,
    merge: Annotated[bool, typer.Option("--merge", help="Add an adapter to the weights of its base.")] = False,
) -> None:
    """Write a model for transformers, llama.cpp (GGUF) or ONNX runtimes."""
    from lmkit.ops import export as exporting

    exporting.export(model, out, to, quant, dtype, merge)
