"""The texts of a corpus, for commands that look at each of them once."""

from collections.abc import Iterator
from typing import Any

from lmkit.base.display import Meter, note
from lmkit.base.errors import DataError
from lmkit.data.documents import read_documents, unread_advice
from lmkit.data.encodings import settle_encodings
from lmkit.data.inputs import Problems, list_inputs
from lmkit.data.tokens.store import TokenStore, is_store
from lmkit.recipe import recipe_file as recipes
from lmkit.recipe.pretraining import DataConfig


def read_texts(
    patterns: list[str], column: str, problems: Problems, where: str, separator: str | None = None,
    encoding: str = "utf-8",
) -> Iterator[tuple[str, str]]:  # fmt: skip
    """Yields (place, text) of the documents of files, or of a token store. where: the command, for errors. Raises
    DataError where there are none."""
    if len(patterns) == 1 and is_store(patterns[0]):
        store = TokenStore(patterns[0])
        split = store.split("train")
        if not split.num_documents:
            raise DataError(f"{store.path}: holds no training document")
        with Meter("reading", split.num_documents) as meter:
            for number in range(split.num_documents):
                meter.update(number, f"{number:,} documents")
                yield f"{patterns[0]} document {number}", store.tokenizer.decode(split.document(number).tolist())
        return
    keys: dict[str, Any] = {"train": patterns, "text": column, "separator": separator, "encoding": encoding}
    config = recipes.build_recipe(DataConfig, keys, {}, where=where)
    inputs, number, before = settle_encodings(list_inputs(patterns, None, config)), 0, 0
    with Meter("reading", sum(item.size for item in inputs)) as meter:
        for item in inputs:
            for document in read_documents(item, config, problems):
                number += 1
                meter.update(before + item.done, f"{number:,} documents")
                yield f"{item.name}:{document.line}", document.text
            before += item.done
    if not number:
        raise DataError(f"{', '.join(patterns)}: there is no text to read{unread_advice(problems)}")


def note_problems(problems: Problems) -> None:
    """Notes what could not be read, by kind."""
    for kind, n in problems.counts.items():
        note(f"while reading: {n:,} {kind}, like {problems.examples[kind][0]}")
