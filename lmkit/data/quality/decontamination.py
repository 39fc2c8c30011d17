"""Word n-grams as in GPT-3 (Brown et al. 2020, appendix C) and in the decontamination of lm-evaluation-harness, whose
normalisation this is; and those of the texts that a model will be scored on."""

import string
from collections.abc import Iterator
from typing import Any

from lmkit.base.errors import DataError
from lmkit.data.documents import read_documents
from lmkit.data.encodings import settle_encodings
from lmkit.data.inputs import Problems, list_inputs
from lmkit.data.records import read_records
from lmkit.recipe.pretraining import DataConfig

WORDS = 13
NORMALISED = str.maketrans(string.ascii_uppercase, string.ascii_lowercase, string.punctuation)


def ngrams(text: str, n: int = WORDS) -> Iterator[str]:
    """Yields the n-grams of the words of a text, in ASCII lower case and without ASCII punctuation."""
    words = text.translate(NORMALISED).split()
    return (" ".join(words[i : i + n]) for i in range(len(words) - n + 1))


def evaluation_ngrams(patterns: list[str], config: DataConfig, problems: Problems) -> set[str]:
    """Returns the n-grams of evaluation files: of each document, or of all texts of each record, one after the other.
    config: how files are read. Raises DataError where no text has enough words."""
    grams = set[str]()
    for item in settle_encodings(list_inputs(patterns, None, config)):
        if item.kind in ("txt", "html"):
            texts = (document.text for document in read_documents(item, config, problems))
        else:
            texts = (" ".join(strings(record)) for _, record in read_records(item, problems))
        for text in texts:
            grams.update(ngrams(text))
    if not grams:
        raise DataError(f"{', '.join(patterns)}: no text has {WORDS} words\n  → shorter texts cannot be looked for")
    return grams


def strings(value: Any) -> Iterator[str]:
    """Yields the texts in a record, or in what it holds, in order."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from strings(inner)
