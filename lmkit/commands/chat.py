"""`lmkit chat`: the assistant's answer to a message, or a conversation on a terminal."""

import sys
from typing import Annotated

import typer

from lmkit.base.errors import UserError
from lmkit.commands import options
from lmkit.commands.app import app
from lmkit.commands.options import read_prompts


@app.command(epilog="Example: lmkit chat runs/chat-tulu 'What is a llama?'")
def chat(
    model: options.Model,
    prompt: options.Prompt = None,
    file: options.PromptFile = None,
    data: Annotated[
        list[str] | None, typer.Option("--data", "-d", help="Files of conversations to answer. Repeatable.")
    ] = None,
    system: Annotated[str | None, typer.Option("--system", help="What the assistant is told first.")] = None,
    n: Annotated[int, typer.Option("-n", "--samples", help="Answers to each message.", min=1)] = 1,
    max_tokens: options.MaxTokens = 128,
    temperature: options.Temperature = 0.8,
    top_k: options.TopK = 0,
    top_p: options.TopP = 1.0,
    min_p: options.MinP = 0.0,
    repetition_penalty: options.Penalty = 1.0,
    seed: options.Seed = 0,
    stop: options.Stop = None,
    quant: options.Quant = None,
    stream: options.Stream = None,
    as_json: options.Json = False,
    allow_pickle: options.Pickle = False,
) -> None:
    """Answer messages, each as the first of a conversation; on a terminal and without a message, talk.

    With --data, a JSON line is printed for each conversation of the files, with the answer to its last turn."""
    if data and (prompt is not None or file or system is not None):
        raise UserError("--data holds whole conversations\n  → leave out the prompt, --file and --system")
    talks = prompt is None and file is None and sys.stdin.isatty()
    prompts = None if talks or data else read_prompts(prompt, file)
    from lmkit.generation.sampling import SamplingConfig
    from lmkit.ops import conversation

    config = SamplingConfig(
        max_tokens=max_tokens, temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p,
        repetition_penalty=repetition_penalty, seed=seed, stop=tuple(stop or ()),
    )  # fmt: skip
    show = sys.stdout.isatty() if stream is None else stream
    if data:
        conversation.answer_file(model, data, config, n, allow_pickle, quant)
    else:
        conversation.converse(model, prompts, system, config, n, as_json, show, allow_pickle, quant)
