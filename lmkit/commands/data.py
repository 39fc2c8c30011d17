"""`lmkit data`: a look at texts and rows before, and after, a model has read them."""

import json
import sys
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lmkit.base.errors import CONTROL, UserError
from lmkit.base.units import brief
from lmkit.commands.app import app
from lmkit.commands.options import Column, Encoding, Json, Label, Pair, Separator, Target

if TYPE_CHECKING:
    from lmkit.base.display import MarkedText

data_app = typer.Typer(help="Look at data: rows, numbers, tokens, documents of a store, and what a step of a run read.")
app.add_typer(data_app, name="data")

Files = Annotated[list[str], typer.Argument(metavar="DATA...", help="Files, folders, globs, or a token store.")]
Task = Annotated[str | None, typer.Option("--task", help="Read rows for this task, as classify; else texts.")]
MOST_PLACES = 20  # of a step, that are listed
Number = Annotated[int, typer.Option("--number", "-n", min=1, help="How many are shown.")]


@data_app.command(name="show", epilog="Example: lmkit data show mails.csv --task classify")
def data_show(
    files: Files, task: Task = None,
    model: Annotated[
        str | None, typer.Option("--model", "-m", help="Show rows as this model reads them; what is learnt is marked.")
    ] = None,
    number: Number = 3, text: Column = None, pair: Pair = None, label: Label = None, target: Target = None,
    separator: Separator = None, encoding: Encoding = "utf-8", as_json: Json = False,
) -> None:  # fmt: skip
    """Show documents, or the rows of a table as a task reads them."""
    from lmkit.base.display import note
    from lmkit.ops import data_views

    if task is None:
        if model:
            raise UserError("--model shows rows of a task\n  → --task NAME")
        for place, content in islice(data_views.texts(files, text, separator, encoding), number):
            print(json.dumps({"place": place, "text": content}) if as_json else f"{place}\n  {brief(content, 500)}")
        return
    columns = {"text": text, "pair": pair, "label": label, "target": target, "separator": separator,
               "encoding": encoding}  # fmt: skip
    table = data_views.table_of(files, task, columns)
    for line in table.described(files):
        note(line)
    if model:
        for pieces in data_views.examples_of(table, task, model, number):
            _print_marked(pieces)
        return
    for place, row in islice(zip(table.places, table.rows, strict=True), number):
        if as_json:
            print(json.dumps({"place": place} | row, default=str, ensure_ascii=False))
        else:
            print("\n  ".join([place, *(f"{role}: {brief(str(value), 500)}" for role, value in row.items())]))


@data_app.command(name="search", epilog="Example: lmkit data search 'lorem ipsum' corpus/")
def data_search(
    pattern: Annotated[str, typer.Argument(help="A regular expression of Python.")],
    files: Files, number: Number = 20, text: Column = None, separator: Separator = None,
    encoding: Encoding = "utf-8", as_json: Json = False,
) -> None:  # fmt: skip
    """Show the texts in which a regular expression finds something, with what stands around it."""
    from lmkit.ops import data_views

    documents = data_views.texts(files, text, separator, encoding)
    count = 0
    for place, pieces in data_views.matches(documents, pattern, number):
        count += 1
        if as_json:
            print(json.dumps({"place": place, "match": pieces[1][0]}, ensure_ascii=False))
        else:
            _print_marked([(f"{place}: ", False), *pieces])
    if not count:
        raise UserError(f"nothing in {', '.join(files)} matches {pattern!r}")


@data_app.command(name="stats", epilog="Example: lmkit data stats mails.csv --task classify")
def data_stats(
    files: Files, task: Task = None, text: Column = None, pair: Pair = None, label: Label = None,
    target: Target = None, separator: Separator = None, encoding: Encoding = "utf-8", as_json: Json = False,
) -> None:  # fmt: skip
    """Count: lengths, words, doubles and scripts of texts; classes, doubles and contradictions of rows."""
    from lmkit.data.tables.report import report
    from lmkit.ops import data_views

    if task is not None:
        columns = {"text": text, "pair": pair, "label": label, "target": target, "separator": separator,
                   "encoding": encoding}  # fmt: skip
        table = data_views.table_of(files, task, columns)
        lines = [*table.described(files), *report(table, None, task, one_class=True)]
        print(json.dumps({"lines": lines}, ensure_ascii=False) if as_json else "\n".join(lines))
        return
    facts = data_views.text_numbers(data_views.texts(files, text, separator, encoding))
    if as_json:
        print(json.dumps(facts))
        return
    unspaced = f", and {facts['unspaced']:,} characters without blanks between words" if facts["unspaced"] else ""
    print(f"{facts['texts']:,} texts, {facts['characters']:,} characters, {facts['words']:,} words{unspaced}")
    lengths = ", ".join(f"{n:,} ({share})" for share, n in facts["lengths"].items())
    print(f"characters a text, by the share of texts that are no longer: {lengths}")
    print(f"longest: {facts['longest']['place']}, {facts['longest']['characters']:,} characters")
    print(f"doubled: {facts['doubled']:,} texts repeat an earlier one word for word")
    print("letters: " + ", ".join(f"{name} {share:.1%}" for name, share in list(facts["scripts"].items())[:8]))


@data_app.command(name="tokens", epilog="Example: lmkit data tokens runs/demo 'It was a fine morning'")
def data_tokens(
    tokenizer: Annotated[str, typer.Argument(help="A run, a folder, or a file of a tokenizer.")],
    text: Annotated[str | None, typer.Argument(help="The text; '-' or nothing reads standard input.")] = None,
    as_json: Json = False,
) -> None:
    """Show the tokens of a text, and how many bytes a token holds in each script."""
    from lmkit.base.runs import model_folder
    from lmkit.ops.data_views import bytes_per_token
    from lmkit.text.tokenizer import token_texts
    from lmkit.text.tokenizer_files import load_tokenizer

    path = Path(tokenizer)
    words = load_tokenizer(model_folder(path) if (path / "recipe.yaml").exists() else path)
    content = sys.stdin.read() if text in (None, "-") else str(text)
    ids = words.encode(content)
    pieces, scripts = token_texts(words, ids), bytes_per_token(words, content)
    if as_json:
        print(json.dumps({"ids": ids, "tokens": pieces, "scripts": scripts}, ensure_ascii=False))
        return
    _print_tokens(pieces)
    print(f"{len(ids):,} tokens, {len(content.encode()):,} bytes")
    for name, facts in scripts.items():
        print(f"  {name:<12} {facts['bytes']:>9,} bytes {facts['tokens']:>9,} tokens "
              f"{facts['bytes_per_token']:6.2f} bytes a token")  # fmt: skip


@data_app.command(name="store", epilog="Example: lmkit data store tokens 17")
def data_store(
    store: Annotated[Path, typer.Argument(help="A folder of `lmkit tokenize`.")],
    document: Annotated[int | None, typer.Argument(help="Its number, from 0; without it the card is shown.")] = None,
    split: Annotated[str, typer.Option("--split", help="train or validation.")] = "train",
    as_json: Json = False,
) -> None:
    """Show a document of a token store, or what the store holds."""
    from lmkit.data.tokens.store import TokenStore, card_lines
    from lmkit.ops.data_views import document_of

    opened = TokenStore(store)
    if split not in ("train", "validation"):
        raise UserError(f"--split {split}: not known\n  allowed: train, validation")
    if document is None:
        print("\n".join(card_lines(opened)))
        return
    ids = document_of(store, split, document)
    content = opened.tokenizer.decode(ids, skip_special=False)
    if as_json:
        print(json.dumps({"document": document, "split": split, "ids": ids, "text": content}, ensure_ascii=False))
    else:
        print(f"{content.translate(CONTROL) if sys.stdout.isatty() else content}\n({len(ids):,} tokens)")


@data_app.command(name="run", epilog="Example: lmkit data run runs/demo 120")
def data_run(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run directory.")],
    step: Annotated[int, typer.Argument(help="A step, from 1, as events.jsonl names it.")],
    number: Number = 3,
    as_json: Json = False,
) -> None:
    """Show the rows that a step of a run read, and the documents, or lines of a table, that they come from."""
    from lmkit.ops.data_views import rows_of_step

    rows, places = rows_of_step(run, step)
    if as_json:
        texts = ["".join(text for text, _ in pieces) for pieces in rows]
        print(json.dumps({"step": step, "rows": texts, "from": places}, ensure_ascii=False))
        return
    for pieces in rows[:number]:
        _print_marked(pieces)
    more = f", of which {number:,} are shown" if len(rows) > number else ""
    print(f"step {step:,}: {len(rows):,} rows{more}, from {len(places):,} places")
    print("".join(f"  {place}\n" for place in places[:MOST_PLACES]), end="")
    if len(places) > MOST_PLACES:
        print(f"  and {len(places) - MOST_PLACES:,} more (--json lists all)")


def _print_marked(pieces: "list[MarkedText]") -> None:
    """Prints a line in which parts are marked: in colour on a terminal, else with »«."""
    from rich.text import Text

    console = _console()
    if console.is_terminal and not console.no_color:
        parts = ((text.translate(CONTROL), "bold green" if marked else "") for text, marked in pieces)
        console.print(Text.assemble(*parts))
    else:
        print("".join(f"»{text}«" if marked else text for text, marked in pieces))


def _print_tokens(pieces: list[str]) -> None:
    """Prints tokens: on a terminal in two colours by turns, else with a bar between them."""
    from rich.text import Text

    console = _console()
    if console.is_terminal and not console.no_color:
        styles = ("black on bright_cyan", "black on bright_yellow")
        console.print(Text.assemble(*((p.translate(CONTROL), styles[i % 2]) for i, p in enumerate(pieces))))
    else:
        print("|".join(piece.replace("\n", "\\n") for piece in pieces))


def _console() -> Any:
    from rich.console import Console

    return Console(soft_wrap=True, highlight=False)
