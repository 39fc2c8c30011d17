"""`lmkit check`: what a model or a corpus holds that it should not."""

from pathlib import Path
from typing import Annotated

import typer

from lmkit.commands.app import app
from lmkit.commands.options import Encoding, Json, Pickle, Seed, Separator, Text


@app.command(epilog="Example: lmkit check runs/demo --memorised tokens")
def check(
    targets: Annotated[
        list[str],
        typer.Argument(metavar="MODEL|DATA...", help="A model, or a corpus: files, folders, globs or a token store."),
    ],
    memorised: Annotated[
        Path | None,
        typer.Option("--memorised", metavar="STORE", help="Model: training text of this store that it reproduces."),
    ] = None,
    against: Annotated[
        list[str] | None,
        typer.Option("--against", metavar="FILES", help="Corpus: these evaluation texts in it. Repeatable."),
    ] = None,
    personal: Annotated[bool, typer.Option("--personal", help="E-mail, telephone, IBAN, credit card, IP.")] = False,
    pairs: Annotated[
        str | None,
        typer.Option("--pairs", metavar="FILE", help="Model: bias by pairs of sentences, as CrowS-Pairs' csv."),
    ] = None,
    toxic: Annotated[
        Path | None, typer.Option("--toxic", metavar="WORDS", help="Words and phrases of this file, one a line.")
    ] = None,
    samples: Annotated[
        int, typer.Option("--samples", min=1, help="Model: most documents to try, or texts to write.")
    ] = 200,
    prompt_tokens: Annotated[
        int, typer.Option("--prompt-tokens", min=1, help="--memorised: tokens that the model is given.")
    ] = 32,
    max_tokens: Annotated[
        int, typer.Option("--max-tokens", min=1, help="Tokens that the model writes of each text.")
    ] = 32,
    seed: Seed = 0,
    text: Text = "text",
    against_text: Annotated[
        str, typer.Option("--against-text", help="Column or key of the text in the files of --against.")
    ] = "text",
    separator: Separator = None,
    encoding: Encoding = "utf-8",
    card: Annotated[bool, typer.Option("--card", help="Model: write the summaries into its README.md.")] = False,
    as_json: Json = False,
    allow_pickle: Pickle = False,
) -> None:
    """What a model repeats, or a corpus holds, that it should not: each check says what it cannot see."""
    from lmkit.ops import checking

    reading = checking.Reading(text, against_text, separator, encoding)
    writing = checking.Writing(samples, prompt_tokens, max_tokens, seed, allow_pickle)
    asked = checking.Asked(memorised, against or [], personal, pairs, toxic)
    checking.run_checks(targets, asked, reading, writing, as_json, card)
