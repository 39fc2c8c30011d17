"""Documents, and pairs of texts, out of files of any kind, in bounded memory. What is left out is counted."""

import codecs
import hashlib
from collections.abc import Iterator
from dataclasses import replace
from itertools import zip_longest
from typing import Any

from lmkit.base.errors import DataError, did_you_mean
from lmkit.data.encodings import encoding_advice
from lmkit.data.html import text_of_html
from lmkit.data.inputs import Document, Input, Problems
from lmkit.data.lines import guarded, not_unicode, read_blocks, read_lines
from lmkit.data.records import outer_column, read_records, with_nested
from lmkit.recipe.pretraining import DataConfig

MAX_CHARS = 1_000_000  # a longer document is cut at a line end: memory stays bounded, and all cores have work

EMPTY, UNDECODABLE, NO_TEXT = "empty documents", "undecodable documents (not UTF-8)", "records without text"
UNCUT = "files in which the separator does not stand (each is one document)"
OVER_LONG = "over-long documents (split)"

EMPTY_SIDE, UNDECODABLE_SIDE = "pairs with an empty side", "pairs with an undecodable side"
NO_TEXT_SIDE, OVER_LONG_SIDE = "pairs with a side that is no text", "over-long pairs (left out)"
ALONE = "lines whose other side could not be read"


def read_documents(
    item: Input, config: DataConfig, problems: Problems, beside: str | None = None
) -> Iterator[Document]:
    """Yields the documents of one input, in order. Texts are as in the file, line ends too; only a BOM is taken off.

    beside: a column whose value documents bring along. Raises DataError where files have none or the key or column
    `config.text` is not there at all, when the file changes meanwhile, and when a hub dataset fails; all else that
    cannot be read is counted in `problems` as `file:line`."""
    if item.kind in ("txt", "html"):
        if beside:
            raise DataError(f"{item.name}: text without columns, so it has no `{beside}`\n  → name files with columns")
        read = _txt if item.kind == "txt" else _html
        documents = guarded(item, read(item, config, problems), problems)
    else:
        documents = _from_columns(item, {"text": config.text}, problems, beside)
    for document in documents:
        yield from _checked(item, document, problems)


def read_pairs(item: Input, config: DataConfig, problems: Problems) -> Iterator[Document]:
    """Yields the pairs of one input, in order, as documents with a `target`. Either both sides are text, or the pair is
    left out and counted in `problems` as `file:line`. Lines lose their ends, columns nothing.

    Raises DataError when two files of lines do not have equally many, and for whatever `read_documents` raises it."""
    assert config.target is not None
    if item.targets:
        pairs = _line_pairs(item, problems)
    else:
        pairs = _from_columns(item, {"text": config.text, "target": config.target}, problems)
    for pair in pairs:
        for text, file in zip((pair.text, pair.target), (item, item.targets or item), strict=True):
            if reason := _unfit_side(text):
                problems.add(reason, f"{file.name}:{pair.line}")
                break
        else:
            yield pair


def unread_advice(problems: Problems) -> str:
    """Returns a line of advice where documents or pairs were left out because they are not UTF-8, else ""."""
    places = problems.examples.get(UNDECODABLE, problems.examples.get(UNDECODABLE_SIDE))
    return f"\n  → {encoding_advice(places[0])}" if places else ""


# ---------------------------------------------------------------- files with columns


def _from_columns(
    item: Input, columns: dict[str, str], problems: Problems, beside: str | None = None
) -> Iterator[Document]:
    """Yields a document for each record that has all columns.

    columns: the names of columns, by their key of the recipe's `data` section: `text` and, of pairs, `target`."""

    def header(where: str, names: list[str]) -> list[str]:
        outer = {key: outer_column(column, names) for key, column in columns.items()}
        _check_columns(where, "column", outer, names)
        along = [outer_column(beside, names)] if beside else []
        if missing := set(along) - set(names):
            raise DataError(f"{where}: no column `{beside}`{did_you_mean(missing.pop(), names[:1000])}")
        return list(dict.fromkeys([*outer.values(), *along]))

    digest, checked = hashlib.sha256(), False
    for line, record in read_records(item, problems, header):
        record = with_nested(record, [*columns.values(), *([beside] if beside else [])])
        if missing := next((column for column in columns.values() if column not in record), None):
            if not checked and (item.kind != "json" or line > 1):  # else it may be about the files beside it
                where = item.name if item.kind == "hub" else f"{item.name}:{line}"
                _check_columns(where, "column" if item.kind == "hub" else "key", columns, list(record))
            problems.add(NO_TEXT, f"{item.name}:{line} (no key `{missing}`)")
            continue
        checked = True
        text, target, *_ = [*(record[column] for column in columns.values()), None]
        if item.kind == "hub":
            for value in (record[column] for column in columns.values()):
                digest.update(repr(value).encode(errors="surrogatepass"))
        yield Document(text, line, target=target, beside=record.get(beside) if beside else None)
    if item.kind == "hub":
        item.sha256 = digest.hexdigest()


def _check_columns(where: str, noun: str, columns: dict[str, str], names: list[str]) -> None:
    """Raises DataError where a column, or key, that is to be read is not there, or there twice."""
    for key, column in columns.items():
        if column not in names:
            raise DataError(
                f"{where}: no {noun} `{column}`{did_you_mean(column, names[:1000])}\n"
                f"  → say which one holds the {'text' if key == 'text' else 'target text'} with data.{key}=NAME"
            )
        if names.count(column) > 1:
            raise DataError(f"{where}: {names.count(column)} {noun}s are called `{column}`\n  → rename all but one")


# ---------------------------------------------------------------- documents


def _checked(item: Input, document: Document, problems: Problems) -> Iterator[Document]:
    text, where = document.text, f"{item.name}:{document.line}"
    if not isinstance(text, str):
        problems.add(NO_TEXT, f"{where} ({type(text).__name__})")
    elif not text or text.isspace():
        problems.add(EMPTY, where)
    elif (wrong := not_unicode(text)) is not None:
        lines = text.count("\n", 0, wrong) if item.kind == "txt" else 0
        problems.add(UNDECODABLE, f"{item.name}:{document.line + lines}")
    elif len(text) <= MAX_CHARS:
        if document.part == 1:
            problems.add(OVER_LONG, where)
        yield document
    else:
        problems.add(OVER_LONG, where)
        for part, piece in enumerate(_parts(text)):
            yield replace(document, text=piece, part=part)


def _cut(text: str) -> int:
    """Returns where to cut a text above MAX_CHARS: after the last line end before that, if there is one."""
    return text.rfind("\n", 0, MAX_CHARS) + 1 or MAX_CHARS


def _parts(text: str) -> Iterator[str]:
    while len(text) > MAX_CHARS:
        end = _cut(text)
        yield text[:end]
        text = text[end:]
    yield text


def _txt(item: Input, config: DataConfig, problems: Problems) -> Iterator[Document]:
    """Yields the whole file, or what lies between separators; line ends beside a separator belong to it. With
    `item.tail`, what follows the first line end in the last share of the file is a document of its own, held out."""
    decode = codecs.getincrementaldecoder("utf-8")("surrogateescape").decode
    cutter = _Cutter(config.separator)
    seen, start = 0, int(item.size * (1 - item.tail))  # bytes of the file, which blocks of UTF-16 are not
    for block in read_blocks(item):
        at = 0
        if item.tail and not cutter.held_out and item.done > start:
            at = block.find(b"\n", max(start - seen, 0) * len(block) // (item.done - seen)) + 1
        if at:
            yield from cutter.feed(decode(block[:at]))
            yield from cutter.finish()
            cutter.held_out = True
        yield from cutter.feed(decode(block[at:]))
        seen = item.done
    yield from cutter.feed(decode(b"", final=True))
    yield from cutter.finish()
    if config.separator and cutter.documents == 1:
        problems.add(UNCUT, item.name, lost=False)


def _html(item: Input, config: DataConfig, problems: Problems) -> Iterator[Document]:
    """Yields the text of a page."""
    yield Document(text_of_html(b"".join(read_blocks(item)).decode(errors="surrogateescape")), 1)


class _Cutter:
    """Cuts a stream of text into documents, and those into parts of at most MAX_CHARS."""

    def __init__(self, separator: str | None):
        self.separator, self.text, self.line, self.part, self.documents, self.held_out = separator, "", 1, 0, 0, False

    def feed(self, text: str) -> Iterator[Document]:
        self.text += text
        if self.separator:
            *whole, rest = self.text.split(self.separator)
            for self.text in whole:
                yield from self.finish()
                self.line += self.separator.count("\n")
            self.text = rest
        while len(self.text) > MAX_CHARS + len(self.separator or ""):
            yield self._take(_cut(self.text), last=False)
            self.part += 1

    def finish(self) -> Iterator[Document]:
        """Ends a document. Blank text after the last separator of a file is no document."""
        if self.part or self.text.strip() or not self.documents:
            yield self._take(len(self.text), last=True)
        self.line += self.text.count("\n")
        self.text, self.part = "", 0
        self.documents += 1

    def _take(self, end: int, last: bool) -> Document:
        text, self.text = self.text[:end], self.text[end:]
        line, self.line = self.line, self.line + text.count("\n")
        if self.separator and self.part == 0:
            line += len(text) - len(text.lstrip("\n")) if text.startswith("\n") else 0
            text = text.lstrip("\r\n")
        if self.separator and last:
            text = text.rstrip("\r\n")
        return Document(text, line, self.part, self.held_out)


# ---------------------------------------------------------------- pairs


def _unfit_side(text: Any) -> str | None:
    """Returns what makes a side of a pair unfit; None where nothing does."""
    if not isinstance(text, str):
        return NO_TEXT_SIDE
    if not text or text.isspace():
        return EMPTY_SIDE
    if not_unicode(text) is not None:
        return UNDECODABLE_SIDE
    return OVER_LONG_SIDE if len(text) > MAX_CHARS else None  # its parts would have no counterparts


def _line_pairs(item: Input, problems: Problems) -> Iterator[Document]:
    """Yields the pairs of two files. Both are read to the end, so that an error can name the length of each."""
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
