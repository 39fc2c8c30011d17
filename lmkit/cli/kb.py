"""`lmkit kb`: knowledge bases."""

from pathlib import Path
from typing import Annotated

import typer

from lmkit.cli.app import Json, app

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
