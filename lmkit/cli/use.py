"""`lmkit generate`, `eval`, `predict`."""

import sys
from pathlib import Path
from typing import IO, Annotated

import typer

from lmkit.base.errors import DataError, UserError
from lmkit.cli.app import Column, Data, Json, Label, Model, Pair, Pickle, Separator, Target, app

MOST_BYTES = 2**28


@app.command(epilog="Example: lmkit generate runs/demo 'It was' --max-tokens 20 --temperature 0.7 --seed 1")
def generate(
    context: typer.Context,
    model: Model,
    prompt: Annotated[
        str | None, typer.Argument(help="Text to go on from, or to read; '-' or nothing reads standard input.")
    ] = None,
    file: Annotated[Path | None, typer.Option("--file", "-f", help="Prompts, one a line.")] = None,
    n: Annotated[int, typer.Option("-n", "--samples", help="Continuations of each prompt; images to draw.", min=1)] = 1,
    max_tokens: Annotated[int, typer.Option("--max-tokens", help="Most tokens to add.")] = 128,
    temperature: Annotated[
        float, typer.Option("--temperature", "-t", help="0 always takes the likeliest token.")
    ] = 0.8,
    top_k: Annotated[
        int, typer.Option("--top-k", help="Only the K likeliest tokens; 0: all. For masks: how many to list.")
    ] = 0,
    top_p: Annotated[float, typer.Option("--top-p", help="Only the likeliest tokens that make up this share.")] = 1.0,
    min_p: Annotated[float, typer.Option("--min-p", help="Only tokens this likely, relative to the likeliest.")] = 0.0,
    repetition_penalty: Annotated[float, typer.Option("--repetition-penalty", help="Above 1 avoids repeats.")] = 1.0,
    seed: Annotated[int, typer.Option("--seed", help="Same seed, same text.")] = 0,
    stop: Annotated[list[str] | None, typer.Option("--stop", help="End before this text. Repeatable.")] = None,
    stream: Annotated[bool | None, typer.Option("--stream/--no-stream", help="Print as it is written.")] = None,
    chat: Annotated[
        bool, typer.Option("--chat", help="Answer the prompt as a message; without one, on a terminal, talk.")
    ] = False,
    system: Annotated[
        str | None, typer.Option("--system", help="With --chat: what the assistant is told first.")
    ] = None,
    kb: Annotated[
        Path | None, typer.Option("--kb", help="Answer questions from this knowledge base, else by the model.")
    ] = None,
    images: Annotated[
        list[str] | None, typer.Option("--images", help="Draw continuations of some of these images. Repeatable.")
    ] = None,
    keep: Annotated[
        str, typer.Option("--keep", help="With --images: share of each that the model goes on from.")
    ] = "50%",
    out: Annotated[Path, typer.Option("--out", "-o", help="With --images: the PNG.")] = Path("drawn.png"),
    as_json: Json = False,
    allow_pickle: Pickle = False,
) -> None:
    """Continue a text; write one from another (T5, BART, Marian); fill in the masks of one (BERT and its kin); draw.

    Masks and gaps are written as the model's tokenizer names them: [MASK], <mask>, for T5 <extra_id_0>, <extra_id_1>.
    """
    if system is not None and not chat:
        raise UserError("--system is the first message of a conversation\n  → add --chat")
    talks = chat and prompt is None and file is None and sys.stdin.isatty()
    prompts = [] if talks or images else _prompts(prompt, file)
    given = [k for k in context.params if (s := context.get_parameter_source(k)) and s.name == "COMMANDLINE"]
    from lmkit.generation.sampling import SamplingConfig
    from lmkit.recipe.task_settings import settings_of

    config = SamplingConfig(
        max_tokens=max_tokens, temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p,
        repetition_penalty=repetition_penalty, seed=seed, stop=tuple(stop or ()),
    )  # fmt: skip
    idle = [] if images else [f"--{k}" for k in ("keep", "out") if k in given]
    if idle:
        raise UserError(f"{', '.join(idle)}: of drawings\n  → add --images")
    settings = None if kb else settings_of(model)
    if kb is not None or (settings and settings.task.name == "answer"):
        from lmkit.commands import answer

        answer.run(model, prompts, kb, max_tokens if "max_tokens" in given else None, as_json, allow_pickle, given)
        return
    if images:
        from lmkit.commands import draw

        draw.run(model, images, keep, n if "n" in given else draw.IMAGES, config, out, as_json, allow_pickle, given)
        return
    show = sys.stdout.isatty() if stream is None else stream
    if chat:
        from lmkit.commands import chat as talking

        talking.run(model, None if talks else prompts, system, config, n, as_json, show, allow_pickle)
        return
    from lmkit.commands import generate as command

    command.run(model, prompts, config, n, as_json, show, allow_pickle, given)


def _text(stream: IO[bytes], where: Path | str) -> str:
    """Raises DataError for more than prompts can be, as devices give it without end."""
    content = stream.read(MOST_BYTES + 1)
    if len(content) > MOST_BYTES:
        raise DataError(f"{where}: above {MOST_BYTES:,} bytes of prompts\n  → give them in parts")
    return content.decode("utf-8-sig")


def _prompts(prompt: str | None, file: Path | None) -> list[str]:
    """One prompt from the command line or standard input, or a file's lines."""
    if file is not None and prompt is not None:
        raise UserError("give a prompt or --file, not both")
    where = file or "standard input"
    try:
        if file is not None:
            with file.open("rb") as stream:
                text = _text(stream, where)
            lines = text.removesuffix("\n").split("\n") if text else []  # a line ends where a reader of files sees it
            if not lines:
                raise DataError(f"{file}: holds no prompt\n  → write one a line")
            return [line.removesuffix("\r") for line in lines]
        if prompt is None or prompt == "-":
            return [_text(sys.stdin.buffer, where)]
    except UnicodeDecodeError as e:
        raise DataError(f"{where}: not UTF-8 text (byte {e.start})") from None
    except OSError as e:
        raise DataError(f"{file}: cannot be read: {e.strerror}") from None
    return [prompt]


@app.command(
    name="eval", epilog="Example: lmkit eval runs/demo --data recipes/corpus/austen-emma.txt --separator $'\\f'"
)
def evaluate(
    models: Annotated[
        list[str], typer.Argument(metavar="MODEL [OTHER]", help="Runs or Hugging Face folders; two are compared.")
    ],
    data: Data,
    task: Annotated[
        str | None, typer.Option("--task", help="translate or summarize, for models without a run.")
    ] = None,
    stride: Annotated[
        int | None, typer.Option("--stride", help="Decoders: tokens between windows. Default: the context.")
    ] = None,
    pll_tokens: Annotated[
        int | None,
        typer.Option("--pll-tokens", min=0, help="Encoders: most tokens of the pseudo-perplexity. Default: 2000."),
    ] = None,
    text: Column = None,
    pair: Pair = None,
    label: Label = None,
    target: Target = None,
    separator: Separator = None,
    as_json: Json = False,
    allow_pickle: Pickle = False,
) -> None:
    """How well a model predicts texts, masked tokens or targets, or solves what it was fine-tuned for."""
    from lmkit.commands import eval as command

    columns = {"text": text, "pair": pair, "label": label, "target": target}
    command.start(
        models, data, task, columns, as_json, allow_pickle, stride=stride, pll_tokens=pll_tokens, separator=separator
    )


@app.command(epilog="Example: lmkit predict runs/classify-reviews --data new.csv --out predictions.jsonl")
def predict(
    model: Model,
    data: Data,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="File of JSON lines; else standard output.")] = None,
    task: Annotated[
        str | None, typer.Option("--task", help="translate or summarize, for models without a run.")
    ] = None,
    text: Column = None,
    pair: Pair = None,
) -> None:
    """What a fine-tuned model says of each row, as JSON lines."""
    from lmkit.commands import predict as command

    command.run(model, data, out, {"text": text, "pair": pair}, task)
