"""`lmkit answer`: answers to questions, each with the source it is from."""

from pathlib import Path
from typing import Annotated

import typer

from lmkit.commands.app import app
from lmkit.commands.options import Json, Model, Pickle, Prompt, PromptFile, read_prompts


@app.command(epilog="Example: lmkit answer runs/demo 'What is the capital of Peru?' --kb facts.sqlite")
def answer(
    model: Model,
    prompt: Prompt = None,
    file: PromptFile = None,
    kb: Annotated[Path | None, typer.Option("--kb", help="A knowledge base. Default: that of the run.")] = None,
    max_tokens: Annotated[int | None, typer.Option("--max-tokens", help="Most tokens of its own words.")] = None,
    as_json: Json = False,
    allow_pickle: Pickle = False,
) -> None:
    """Answer questions from a knowledge base, else by the model."""
    questions = read_prompts(prompt, file)
    from lmkit.ops import answers

    answers.answer_questions(model, questions, kb, max_tokens, as_json, allow_pickle)
