"""Parallel text: pairs of a source and its target, from two columns of a file or from two files line by line."""

from collections.abc import Iterator
from itertools import zip_longest
from typing import Any

from lmkit.base.errors import DataError
from lmkit.data.encodings import not_unicode
from lmkit.data.inputs import Document, Input, Problems
from lmkit.data.readers import MAX_CHARS, guarded, read_lines, read_records
from lmkit.recipe.pretraining import DataConfig

EMPTY, UNDECODABLE = "pairs with an empty side", "pairs with an undecodable side"
NO_TEXT, OVER_LONG = "pairs with a side that is no text", "over-long pairs (left out)"
ALONE = "lines whose other side could not be read"


def read_pairs(item: Input, config: DataConfig, problems: Problems) -> Iterator[Document]:
    """The pairs of one input, in order: documents with a `target`. Either both sides are text, or the pair is left out
    and counted in `problems` as `file:line`. Lines lose their ends, columns nothing.

    Raises DataError when two files of lines do not have equally many, and for whatever `read_documents` raises it."""
    assert config.target is not None
    records = _line_pairs(item, problems) if item.targets else read_records(item, config, problems)
    for pair in records:
        for text, file in zip((pair.text, pair.target), (item, item.targets or item), strict=True):
            if kind := _wrong(text):
                problems.add(kind, f"{file.name}:{pair.line}")
                break
        else:
            yield pair


def _wrong(text: Any) -> str | None:
    """What makes this side unfit; None if nothing does."""
    if not isinstance(text, str):
        return NO_TEXT
    if not text or text.isspace():
        return EMPTY
    if not_unicode(text) is not None:
        return UNDECODABLE
    return OVER_LONG if len(text) > MAX_CHARS else None  # its parts would have no counterparts


def _line_pairs(item: Input, problems: Problems) -> Iterator[Document]:
    """Both files are read to the end, so that a difference in length is found, and named with both lengths."""
    sides = [guarded(file, read_lines(file, problems), problems) for file in item.files]
    lengths = [0, 0]
    for number, (source, target) in enumerate(zip_longest(*sides), 1):
        if source and target:
            lengths = [number, number]
            if source[1] is not None and target[1] is not None:  # else too long, and counted by the reader
                yield Document(_bare(source[1]), number, target=_bare(target[1]))
        else:
            side = 0 if source else 1
            lengths[side] = number
            problems.add(ALONE, f"{item.files[side].name}:{number}")
    if all(file.whole for file in item.files) and lengths[0] != lengths[1]:
        listed = "".join(f"\n  {n:>11,} lines in {file.name}" for n, file in zip(lengths, item.files, strict=True))
        raise DataError(
            f"parallel files have as many lines as each other, and these do not:{listed}\n"
            "  → line 1 belongs to line 1 and so on: find the line that is missing, or take other files"
        )


def _bare(line: str) -> str:
    return line.removesuffix("\n").removesuffix("\r")
