"""The `lmkit` command: parse options, call one command, exit. Bodies import what they need, so `--help` and a typo in a
recipe never wait for torch."""

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from lmkit.errors import INTERRUPTED, DataError, UserError

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,  # rich help costs 0.1 s of imports
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Train, evaluate and sample Transformer language models.",
    epilog="Example: lmkit recipes",
)

Model = Annotated[str, typer.Argument(help="A run, or a Hugging Face folder.", show_default=False)]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="[KEY=VALUE]...", help="Recipe keys to change, like train.budget='10 min'."),
]
Json = Annotated[bool, typer.Option("--json", help="One JSON object a line, for machines.")]
Pickle = Annotated[
    bool, typer.Option("--allow-pickle", help="Load old .bin weights (weights only, nothing else runs).")
]
Text = Annotated[str, typer.Option("--text", help="Column or key of the text in .jsonl, .csv and .parquet.")]
Column = Annotated[str | None, typer.Option("--text", help="Column or key of the text; of pairs the sources.")]
Label = Annotated[str | None, typer.Option("--label", help="Column or key of the label.")]
Data = Annotated[list[str], typer.Option("--data", "-d", help="Files, folders or globs. Repeatable.")]
Target = Annotated[str | None, typer.Option("--target", help="Pairs: column, key or file ending of the target text.")]
Separator = Annotated[str | None, typer.Option("--separator", help="Text that ends a document inside .txt files.")]


@app.callback()
def common(
    version: Annotated[bool, typer.Option("--version", help="Print the version.", is_eager=True)] = False,
) -> None:
    if version:
        from lmkit import __version__

        print(__version__)
        raise typer.Exit


@app.command(epilog="Example: lmkit tokenize recipes/corpus/*.txt --out tokens --vocab-size 1000")
def tokenize(
    inputs: Annotated[list[str], typer.Argument(help="Files, folders, globs or hub:NAME. Also .gz and .zst.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for tokens and tokenizer.")],
    kind: Annotated[str, typer.Option("--kind", help="bpe, wordpiece, unigram, sentencepiece or bytes.")] = "bpe",
    vocab_size: Annotated[str, typer.Option("--vocab-size", help="Entries of a trained tokenizer.")] = "32k",
    tokenizer: Annotated[str | None, typer.Option("--tokenizer", help="Take this one: a file, folder or run.")] = None,
    family: Annotated[
        str, typer.Option("--family", help="Whose special tokens: nanochat, gpt2, llama, ...")
    ] = "nanochat",
    validation: Annotated[str, typer.Option("--validation", help="Share of documents held out.")] = "5%",
    text: Text = "text",
    target: Target = None,
    separator: Separator = None,
    pixels: Annotated[
        str | None, typer.Option("--pixels", help="Of images, how they become words: 'size=14 patch=1 colours=16'.")
    ] = None,
) -> None:
    """Train a tokenizer (or take one) and write token files for pretraining."""
    from lmkit.commands import tokenize as command

    data = {"train": inputs, "validation": validation, "text": text, "target": target}
    data["separator"] = separator
    command.run(data, {"type": kind, "vocab_size": vocab_size, "path": tokenizer}, family, out, pixels)


@app.command(epilog="Example: lmkit pretrain demo train.budget='5 steps' evaluate.tokens=2048 --out runs/short")
def pretrain(
    recipe: Annotated[str | None, typer.Argument(help="A .yaml file, or the name of a built-in recipe.")] = None,
    overrides: Overrides = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Run directory. Default: runs/RECIPE.")] = None,
    resume: Annotated[
        Path | None, typer.Option("--resume", metavar="RUN", help="Go on with this run, exactly.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would happen: sizes, memory, time.")] = False,
) -> None:
    """Train a model from scratch."""
    if resume is not None:
        if recipe or out or dry_run:
            raise UserError(
                "--resume goes on with a run as it is\n  → leave out the recipe, its changes, --out and --dry-run"
            )
        from lmkit.commands import pretrain as command

        raise typer.Exit(command.resume(resume))
    if recipe is None:
        raise UserError("name a recipe, or a run after --resume\n  → `lmkit recipes` lists the built-in recipes")
    from lmkit.builtin import find_recipe
    from lmkit.config import load
    from lmkit.presets import expand
    from lmkit.recipe import Recipe

    path, changes = find_recipe(recipe, "pretrain"), tuple(overrides or ())
    load(Recipe, path, changes, expand)  # a mistake ends here, before torch is loaded
    from lmkit.commands import pretrain as command

    if dry_run:
        command.dry_run(path, changes)
    else:
        raise typer.Exit(command.start(path, changes, out))


@app.command(epilog="Example: lmkit finetune --task classify --model runs/bert-tiny --data reviews.csv")
def finetune(
    recipe: Annotated[
        str | None, typer.Argument(help="A .yaml file or the name of a built-in recipe; or leave it out.")
    ] = None,
    overrides: Overrides = None,
    task: Annotated[
        str | None, typer.Option("--task", help="classify, tag, qa, translate, summarize, chat, lm or answer.")
    ] = None,
    model: Annotated[str | None, typer.Option("--model", "-m", help="A run or a Hugging Face folder.")] = None,
    data: Annotated[list[str] | None, typer.Option("--data", "-d", help="Labelled files. Repeatable.")] = None,
    validation: Annotated[str | None, typer.Option("--validation", help="Files of their own, or a share: 10%.")] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Run directory. Default: runs/TASK-DATA.")] = None,
    resume: Annotated[Path | None, typer.Option("--resume", metavar="RUN", help="Go on with this run.")] = None,
) -> None:
    """Teach a trained model a task from labelled rows."""
    if resume is not None:
        if recipe or out or task or model or data:
            raise UserError("--resume goes on with a run as it is\n  → leave out everything else")
        from lmkit.commands import finetune as command

        raise typer.Exit(command.resume(resume))
    from lmkit.builtin import find_recipe

    changes = list(overrides or ())
    if recipe is not None and "=" in recipe:  # no recipe, only changes
        changes, recipe = [recipe, *changes], None
    path = None if recipe is None else find_recipe(str(recipe), "finetune")
    from lmkit.config import load
    from lmkit.finetune_recipe import FinetuneRecipe, expand, flags

    said = flags(task, model, data, validation)
    loaded = load(FinetuneRecipe, path, (*said, *changes), expand)  # a mistake ends here, before torch is loaded
    from lmkit.commands import finetune as command

    name = path.stem if path else f"{loaded.task.name}-{Path(str(data[0])).name.partition('.')[0] if data else 'run'}"
    raise typer.Exit(command.start(loaded, name, out))


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
    if kb is not None or (Path(model) / "answer.json").is_file():
        from lmkit.commands import answer

        answer.run(model, prompts, kb, max_tokens if "max_tokens" in given else None, as_json, allow_pickle, given)
        return
    from lmkit.generation.sampling import SamplingConfig

    config = SamplingConfig(
        max_tokens=max_tokens, temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p,
        repetition_penalty=repetition_penalty, seed=seed, stop=tuple(stop or ()),
    )  # fmt: skip
    if images:
        from lmkit.commands import draw

        draw.run(model, images, keep, n if "n" in given else draw.IMAGES, config, out, as_json, allow_pickle, given)
        return
    if idle := [f"--{k}" for k in ("keep", "out") if k in given]:
        raise UserError(f"{', '.join(idle)}: of drawings\n  → add --images")
    show = sys.stdout.isatty() if stream is None else stream
    if chat:
        from lmkit.commands import chat as talking

        talking.run(model, None if talks else prompts, system, config, n, as_json, show, allow_pickle)
        return
    from lmkit.commands import generate as command

    command.run(model, prompts, config, n, as_json, show, allow_pickle, given)


def _prompts(prompt: str | None, file: Path | None) -> list[str]:
    """One prompt from the command line or standard input, or a file's lines."""
    if file is not None and prompt is not None:
        raise UserError("give a prompt or --file, not both")
    try:
        if file is not None:
            return file.read_text(encoding="utf-8").splitlines()
        if prompt is None or prompt == "-":
            return [sys.stdin.buffer.read().decode("utf-8")]
    except UnicodeDecodeError as e:
        raise DataError(f"{file or 'standard input'}: not UTF-8 text (byte {e.start})") from None
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
    label: Label = None,
    target: Target = None,
    separator: Separator = None,
    as_json: Json = False,
    allow_pickle: Pickle = False,
) -> None:
    """How well a model predicts texts, masked tokens or targets, or solves what it was fine-tuned for."""
    from lmkit.commands import eval as command

    columns = {"text": text, "label": label, "target": target}
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
    pair: Annotated[str | None, typer.Option("--pair", help="Column of the second text of a pair.")] = None,
) -> None:
    """What a fine-tuned model says of each row, as JSON lines."""
    from lmkit.commands import predict as command

    command.run(model, data, out, {"text": text, "pair": pair}, task)


kb_app = typer.Typer(no_args_is_help=True, help="Knowledge bases: facts, triples and passages to answer from.")
app.add_typer(kb_app, name="kb")
Kb = Annotated[Path, typer.Argument(metavar="KB", help="A knowledge base.", show_default=False)]
Facts = Annotated[
    list[str],
    typer.Argument(
        help="Files, folders or globs: .csv, .tsv, .jsonl, .json, .parquet, .txt. Columns: subject, relation, object; "
        "question, answer; title, text; name, alias; relation, phrase.",
        show_default=False,
    ),
]


@kb_app.command(name="build", epilog="Example: lmkit kb build facts.sqlite countries.csv articles/*.txt")
def kb_build(out: Annotated[Path, typer.Argument(metavar="OUT", show_default=False)], sources: Facts) -> None:
    """Make a knowledge base of files."""
    from lmkit.commands import kb as command

    command.build(out, sources)


@kb_app.command(name="add", epilog="Example: lmkit kb add facts.sqlite more.jsonl")
def kb_add(kb: Kb, sources: Facts) -> None:
    """Put files in: known ones are passed over, changed ones replace what they were."""
    from lmkit.commands import kb as command

    command.add(kb, sources)


@kb_app.command(name="search", epilog="Example: lmkit kb search facts.sqlite 'What is the capital of Peru?'")
def kb_search(
    kb: Kb,
    query: Annotated[str, typer.Argument(help="A question, or words.", show_default=False)],
    k: Annotated[int, typer.Option("-k", help="How many of each.", min=1)] = 5,
    as_json: Json = False,
) -> None:
    """What would be looked up, and which passages would be read."""
    from lmkit.commands import kb as command

    command.search(kb, query, k, as_json)


@kb_app.command(name="stats", epilog="Example: lmkit kb stats facts.sqlite")
def kb_stats(kb: Kb, as_json: Json = False) -> None:
    """What is in a knowledge base: rows, relations, files."""
    from lmkit.commands import kb as command

    command.stats(kb, as_json)


@app.command(epilog="Example: lmkit runs runs")
def runs(
    folder: Annotated[Path, typer.Argument(help="Where to look.")] = Path("runs"),
    as_json: Json = False,
) -> None:
    """List runs: model, tokens, best score, state."""
    from lmkit.commands import runs as command

    command.run(folder, as_json)


@app.command(epilog="Example: lmkit recipes demo")
def recipes(
    name: Annotated[
        str | None, typer.Argument(help="A recipe to print; `keys`: every key there is; `families`: published sizes.")
    ] = None,
) -> None:
    """List the built-in recipes, print one, explain every key, or list families and sizes."""
    from lmkit.commands import recipes as command

    command.run(name)


def main() -> None:
    try:
        app()
    except UserError as e:
        print(f"lmkit: {e}", file=sys.stderr)
        raise SystemExit(e.exit_code) from None
    except KeyboardInterrupt:
        print("\nlmkit: interrupted", file=sys.stderr)
        raise SystemExit(INTERRUPTED) from None
    except BrokenPipeError:  # the reader left, as `| head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(0) from None
