"""`lmkit check`: what a model or a corpus holds that it should not."""

from pathlib import Path
from typing import Annotated, Any

import typer

from lmkit.commands.app import app
from lmkit.commands.options import Encoding, Json, MaxTokens, Pickle, Seed, Separator, Text


def _option(name: str, text: str, metavar: str | None = None, least: int | None = None) -> Any:
    return typer.Option(f"--{name}", help=text, metavar=metavar, min=least)


@app.command(epilog="Example: lmkit check runs/demo --memorised tokens")
def check(
    targets: Annotated[
        list[str],
        typer.Argument(metavar="MODEL|DATA...", help="A model, or a corpus: files, folders, globs or a token store."),
    ],
    memorised: Annotated[
        Path | None, _option("memorised", "Model: how much of this store it reproduces.", "STORE")
    ] = None,
    against: Annotated[
        list[str] | None, _option("against", "Corpus: evaluation texts in it. Repeatable.", "FILES")
    ] = None,
    personal: Annotated[bool, _option("personal", "E-mail, telephone, IBAN, credit card, IP.")] = False,
    pairs: Annotated[str | None, _option("pairs", "Model: bias by pairs, as CrowS-Pairs' csv, or BBQ.", "FILE")] = None,
    toxic: Annotated[
        Path | None, _option("toxic", "Words and phrases of this file, one a line; or a classifier's run.", "WORDS|RUN")
    ] = None,
    toxic_label: Annotated[
        str | None, _option("toxic-label", "Label of that classifier. Default: the second of two.", "LABEL")
    ] = None,
    samples: Annotated[int, _option("samples", "Model: most documents to try, or texts to write.", least=1)] = 200,
    prompt_tokens: Annotated[int, _option("prompt-tokens", "--memorised: tokens the model is given.", least=1)] = 32,
    max_tokens: MaxTokens = 32,
    seed: Seed = 0,
    text: Text = "text",
    against_text: Annotated[str, _option("against-text", "Column or key of the text in those files.")] = "text",
    separator: Separator = None,
    encoding: Encoding = "utf-8",
    card: Annotated[bool, _option("card", "Model: write the summaries into its README.md.")] = False,
    as_json: Json = False,
    allow_pickle: Pickle = False,
) -> None:
    """What a model repeats, or a corpus holds, that it should not: each check says what it cannot see."""
    from lmkit.ops import checking

    options = checking.Options(
        memorised, against, personal, pairs, toxic, toxic_label, samples, prompt_tokens, max_tokens, seed, text,
        against_text, separator, encoding, card,
    )  # fmt: skip
    checking.run_checks(targets, options, as_json, allow_pickle)
