"""What several commands share: their options, and where prompts come from."""

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import IO, Annotated, Any

import typer

from lmkit.base.errors import DataError, UserError

Model = Annotated[str, typer.Argument(help="A run, a Hugging Face folder or a GGUF file.", show_default=False)]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="[KEY=VALUE]...", help="Recipe keys to change, like train.budget='10 min'."),
]
JsonLines = Annotated[
    bool, typer.Option("--json", help="Print each row of metrics.jsonl, and all else to standard error.")
]
Processes = Annotated[
    int | None, typer.Option("--processes", min=1, help="Processes on this machine that share the work.")
]
Restarts = Annotated[
    int, typer.Option("--max-restarts", min=0, help="With --processes: start all again if one fails, so often.")
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what would happen: sizes, memory, time.")]
PrintRecipe = Annotated[bool, typer.Option("--print-recipe", help="Print the recipe with every default, and stop.")]
Json = Annotated[bool, typer.Option("--json", help="One JSON object a line, for machines.")]
Pickle = Annotated[
    bool, typer.Option("--allow-pickle", help="Load old .bin weights (weights only, nothing else runs).")
]
Text = Annotated[str, typer.Option("--text", help="Column or key of the text, as of .jsonl and .csv.")]
Encoding = Annotated[str, typer.Option("--encoding", help="Of text, CSV and JSON: cp1252, gbk, ...; auto: by bytes.")]
OwnEncoding = Annotated[
    str | None, typer.Option("--encoding", help="As cp1252; auto: by bytes. Default: that of training.")
]
TextFiles = Annotated[
    list[str] | None, typer.Option("--text-files", metavar=".END", help="Read files named so as text. Repeatable.")
]
Column = Annotated[str | None, typer.Option("--text", help="Column or key of the text; of pairs the sources.")]
Pair = Annotated[str | None, typer.Option("--pair", help="Column of the second text of a pair.")]
Label = Annotated[str | None, typer.Option("--label", help="Column or key of the label.")]
Data = Annotated[list[str], typer.Option("--data", "-d", help="Files, folders or globs. Repeatable.")]
Task = Annotated[str | None, typer.Option("--task", help="translate or summarize, for models without a run.")]
Target = Annotated[str | None, typer.Option("--target", help="Pairs: column, key or file ending of the target text.")]
Labels = Annotated[list[str] | None, typer.Option("--labels", metavar="OLD=NEW", help="Rename a label. Repeatable.")]
Separator = Annotated[str | None, typer.Option("--separator", help="Text that ends a document inside .txt files.")]


def _named_path(path: str) -> Path:
    if not path:
        raise typer.BadParameter("the name is empty\n  → is a variable of the shell not set?")
    return Path(path)


def task_changes(labels: list[str] | None, **others: Any) -> dict[str, Any]:
    """Returns what options say of the task's settings. Raises UserError for a label without its new name."""
    names = {old: new for old, _, new in (label.partition("=") for label in labels or ())}
    if not all(names) or not all(names.values()):
        raise UserError(f"--labels {' '.join(labels or ())}: not OLD=NEW\n  → --labels LABEL_0=negative")
    return {key: value for key, value in ({"labels": names or None} | others).items() if value is not None}


@contextmanager
def rows_as_json(wanted: bool) -> Iterator[list[Callable[[dict[str, Any]], None]]]:
    """Yields listeners for a run of training: where `wanted`, one that prints each row of metrics.jsonl, while all that
    is for people goes to standard error."""
    if not wanted:
        yield []
        return
    out = sys.stdout
    with redirect_stdout(sys.stderr):
        yield [lambda row: print(json.dumps(row), file=out, flush=True)]


def run_folder(default: str) -> Any:
    """Returns the option that names a run directory. default: the directory where it is left out."""
    return typer.Option("--out", "-o", metavar="PATH", parser=_named_path, help=f"Run directory. Default: {default}.")


# Of the commands that write: generate, chat, fill, draw, answer.
Prompt = Annotated[str | None, typer.Argument(help="The text to read; '-' or nothing reads standard input.")]
PromptFile = Annotated[Path | None, typer.Option("--file", "-f", help="Prompts, one a line.")]
MaxTokens = Annotated[int, typer.Option("--max-tokens", help="Most tokens to add.")]
Temperature = Annotated[float, typer.Option("--temperature", "-t", help="0 always takes the likeliest token.")]
TopK = Annotated[int, typer.Option("--top-k", help="Only the K likeliest tokens; 0: all. For masks: how many to list.")]
TopP = Annotated[float, typer.Option("--top-p", help="Only the likeliest tokens that make up this share.")]
MinP = Annotated[float, typer.Option("--min-p", help="Only tokens this likely, relative to the likeliest.")]
Penalty = Annotated[float, typer.Option("--repetition-penalty", help="Above 1 avoids repeats.")]
SourceLang = Annotated[str | None, typer.Option("--source-lang", help="Language of the prompt, as the model names it.")]
TargetLang = Annotated[str | None, typer.Option("--target-lang", help="Language to write, for models with several.")]
Seed = Annotated[int, typer.Option("--seed", help="Same seed, same text.")]
MinTokens = Annotated[int, typer.Option("--min-tokens", help="Fewest tokens before a text may end.", min=0)]
NoRepeatNgram = Annotated[
    int, typer.Option("--no-repeat-ngram", help="Never repeat a sequence of so many tokens; 0: off.", min=0)
]
TypicalP = Annotated[float, typer.Option("--typical-p", help="Only tokens of about the expected surprise, this share.")]
PresencePenalty = Annotated[float, typer.Option("--presence-penalty", help="Above 0 avoids tokens that are written.")]
FrequencyPenalty = Annotated[
    float, typer.Option("--frequency-penalty", help="Above 0 avoids tokens for each time that they are written.")
]
LogitBias = Annotated[
    list[str] | None, typer.Option("--logit-bias", help="ID=NUMBER, added to the logit of a token. Repeatable.")
]
Logprobs = Annotated[
    int, typer.Option("--logprobs", help="With --json: so many likeliest tokens at each place.", min=0)
]
Choices = Annotated[str | None, typer.Option("--choices", help="Write one of these, with commas between: yes,no.")]
Regex = Annotated[str | None, typer.Option("--regex", help="Write what matches this regular expression.")]
JsonSchema = Annotated[
    Path | None, typer.Option("--json-schema", help="Write JSON that the JSON schema in this file allows.")
]
Quant = Annotated[str | None, typer.Option("--quant", help="int8: weights of 8 bits, faster on a CPU.")]
Speculate = Annotated[
    str | None,
    typer.Option(
        "--speculate", help="`lookup`, or a small model of the same tokens: guesses, for the same text sooner."
    ),
]
StopIds = Annotated[
    list[int] | None, typer.Option("--stop-ids", help="Ids of more tokens that end a text. Repeatable.", min=0)
]
ControlTokens = Annotated[
    bool, typer.Option("--control-tokens", help="Names of control tokens in a decoder's prompt stand for them.")
]
Beam = Annotated[int, typer.Option("--beam", help="Search with so many hypotheses, draw nothing.", min=1)]
TaskBeam = Annotated[
    int | None, typer.Option("--beam", help="Hypotheses kept while writing, over those of the model's task.", min=1)
]
LengthPenalty = Annotated[float, typer.Option("--length-penalty", help="With --beam: above 1 prefers longer texts.")]
Stop = Annotated[list[str] | None, typer.Option("--stop", help="End before this text. Repeatable.")]
Stream = Annotated[bool | None, typer.Option("--stream/--no-stream", help="Print as it is written.")]


MOST_BYTES = 2**28


def read_prompts(prompt: str | None, file: Path | None) -> list[str]:
    """Returns one prompt from the command line or standard input, or a file's lines.

    Raises UserError for both, DataError for a file that holds none, that cannot be read, or is no UTF-8 text."""
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


def _text(stream: IO[bytes], where: Path | str) -> str:
    """Returns the text of a stream. Raises DataError for more than prompts can be, as devices give it without end."""
    content = stream.read(MOST_BYTES + 1)
    if len(content) > MOST_BYTES:
        raise DataError(f"{where}: above {MOST_BYTES:,} bytes of prompts\n  → give them in parts")
    return content.decode("utf-8-sig")


def token_and_bias(text: str) -> tuple[int, float]:
    """Returns the token's id and the number of `ID=NUMBER`. Raises UserError."""
    token, _, bias = text.partition("=")
    try:
        return int(token), float(bias)
    except ValueError:
        raise UserError(f"--logit-bias {text!r} is not ID=NUMBER\n  → for example --logit-bias 50256=-100") from None
