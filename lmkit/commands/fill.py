"""`lmkit fill`: the likeliest tokens for each mask of a text."""

from typing import Annotated

import typer

from lmkit.commands.app import app
from lmkit.commands.options import Json, Model, Pickle, Prompt, PromptFile, read_prompts


@app.command(epilog="Example: lmkit fill runs/bert-tiny 'It was a [MASK] day.'")
def fill(
    model: Model,
    prompt: Prompt = None,
    file: PromptFile = None,
    top_k: Annotated[int, typer.Option("--top-k", help="How many tokens to list for each mask.", min=1)] = 5,
    as_json: Json = False,
    allow_pickle: Pickle = False,
) -> None:
    """Fill in the masks of a text (BERT and its kin), written as the model's tokenizer names them: [MASK], <mask>."""
    prompts = read_prompts(prompt, file)
    from lmkit.ops import writing

    writing.write_filled(model, prompts, top_k, as_json, allow_pickle)
