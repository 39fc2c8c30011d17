"""Files of text as a stream of documents, in bounded memory. What is left out is counted, with its file and line."""

import codecs
import csv
import gzip
import hashlib
import io
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import IO, Any, Literal, TypeVar

from lmkit.base.errors import DataError, did_you_mean
from lmkit.base.files import sha256
from lmkit.data import strict_json
from lmkit.data.encodings import not_unicode
from lmkit.data.hub import hub_records
from lmkit.data.inputs import Document, Input, Problems
from lmkit.recipe.pretraining import DataConfig

MAX_CHARS = 1_000_000  # a longer document is cut at a line end: memory stays bounded, and all cores have work
MAX_RECORD = 128 * 2**20  # bytes of one line of JSON, characters of one CSV field
BLOCK = 2**20

EMPTY, UNDECODABLE, BROKEN = "empty documents", "undecodable documents (not UTF-8)", "broken records"
NO_TEXT, BINARY, UNREADABLE = "records without text", "binary files", "unreadable files"
UNCUT = "files in which the separator does not stand (each is one document)"
OVER_LONG = "over-long documents (split)"

QUOTING: dict[bool, Literal[0, 3]] = {True: csv.QUOTE_MINIMAL, False: csv.QUOTE_NONE}
T = TypeVar("T")


def read_documents(item: Input, config: DataConfig, problems: Problems) -> Iterator[Document]:
    """The documents of one input, in order. Texts are as in the file, line ends too; only a BOM is taken off.

    Raises DataError when the key or column `config.text` is not there at all, when the file changes meanwhile, and when
    a hub dataset fails; all else that cannot be read is counted in `problems` as `file:line`."""
    for document in read_records(item, config, problems):
        yield from _checked(item, document, problems)


def read_records(item: Input, config: DataConfig, problems: Problems) -> Iterator[Document]:
    """The same unchecked: texts may be empty, undecodable or no strings. With `config.target`, pairs from two columns,
    for all kinds of files but plain text."""
    read = {"txt": _txt, "jsonl": _jsonl, "csv": _csv, "parquet": _parquet, "hub": _hub}[item.kind]
    return guarded(item, read(item, config, problems), problems)


def guarded(item: Input, read: Iterator[T], problems: Problems) -> Iterator[T]:
    """What `read` gives of this input. What cannot be read is counted, and a file that changes is a DataError."""
    item.sha256, item.done, item.whole = "", 0, False
    try:
        yield from read
        if item.kind != "hub":
            now = os.stat(item.name)
            if (now.st_size, now.st_mtime_ns) != (item.size, item.mtime):
                raise DataError(
                    f"{item.name} changed while it was read\n  → run the same command again when it is complete"
                )
        item.whole = True
    except _Binary:
        problems.add(BINARY, item.name)
    except (OSError, EOFError, _Damaged) as e:
        problems.add(UNREADABLE, f"{item.name} ({str(e).partition(chr(10))[0] or type(e).__name__})")


class _Damaged(Exception):
    """A packed or columnar file that its library cannot read on."""


class _Binary(Exception):
    """NUL bytes where text should be."""


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
            yield Document(piece, document.line, part, document.held_out)


def _cut(text: str) -> int:
    """Where to cut a text above MAX_CHARS: after the last line end before that, if there is one."""
    return text.rfind("\n", 0, MAX_CHARS) + 1 or MAX_CHARS


def _parts(text: str) -> Iterator[str]:
    while len(text) > MAX_CHARS:
        end = _cut(text)
        yield text[:end]
        text = text[end:]
    yield text


class _Raw(io.RawIOBase):
    """The bytes of a file, hashed and counted as they pass."""

    def __init__(self, item: Input):
        self.item, self.file, self.hash = item, io.FileIO(item.name), hashlib.sha256()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        n = self.file.readinto(buffer) or 0
        self.hash.update(memoryview(buffer)[:n])
        self.item.done += n
        return n

    def finish(self) -> None:
        while self.readinto(bytearray(BLOCK)):
            pass
        self.item.sha256 = self.hash.hexdigest()

    def close(self) -> None:
        self.file.close()
        super().close()


def read_blocks(item: Input) -> Iterator[bytes]:
    """The text, unpacked and in UTF-8, about a megabyte at a time. UTF-16 with a BOM is recoded."""
    decode = None
    blocks = read_bytes(item)
    for number, block in enumerate(blocks):
        if number == 0 and block.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            decode = codecs.getincrementaldecoder("utf-16")("surrogatepass").decode
        if decode:
            block = decode(block).encode(errors="surrogatepass")
        if number == 0 and b"\0" in block:  # UTF-32 too, whose BOM begins like that of UTF-16
            for _ in blocks:  # the rest is read for its checksum
                pass
            raise _Binary
        yield block.removeprefix(codecs.BOM_UTF8) if number == 0 else block
    if decode:
        yield decode(b"", final=True).encode(errors="surrogatepass")


def read_bytes(item: Input) -> Iterator[bytes]:
    """The bytes, unpacked. At the end `item.sha256` is that of the whole file as it is on disk."""
    with _Raw(item) as raw, io.BufferedReader(raw, BLOCK) as stream:
        yield from _unpacked(stream, item.packing)
        raw.finish()


def _unpacked(stream: IO[bytes], packing: str) -> Iterator[bytes]:
    """Blocks of a file's contents. Raises _Damaged or EOFError when a packed file is damaged or ends early."""
    import zlib

    import zstandard

    try:
        if packing == ".zst":
            yield from _unzstd(stream, zstandard.ZstdDecompressor())
            return
        source: Any = gzip.GzipFile(fileobj=stream) if packing == ".gz" else stream
        while block := source.read(BLOCK):
            yield block
    except (zlib.error, zstandard.ZstdError) as e:
        raise _Damaged(str(e)) from e


def _unzstd(stream: IO[bytes], engine: Any) -> Iterator[bytes]:
    """Frame after frame. The library's own reader takes a frame that ends early for the end of the file. Four kilobytes
    at a time, because they can unpack to 128 MB."""
    frame = None
    while packed := stream.read(4096):
        while packed:
            frame = frame or engine.decompressobj()
            if block := frame.decompress(packed):
                yield block
            packed = frame.unused_data if frame.eof else b""
            frame = None if frame.eof else frame
    if frame:
        raise EOFError("zstd frame ends early")


def read_lines(item: Input, problems: Problems) -> Iterator[tuple[int, str | None]]:
    """(line number, line with its end), decoded; bytes that are not UTF-8 become half surrogates, refused later. A line
    that is too long is counted and None."""
    number, held, size = 0, [b""], 0
    for block in read_blocks(item):
        *lines, rest = block.split(b"\n")
        for line in lines:
            number += 1
            if size + len(line) <= MAX_RECORD:
                yield number, (b"".join([*held, line]) + b"\n").decode(errors="surrogateescape")
            else:
                _too_long(item, number, problems)
                yield number, None
            held, size = [], 0
        size += len(rest)
        held = [*held, rest] if size <= MAX_RECORD else []
    if size > MAX_RECORD:
        _too_long(item, number + 1, problems)
        yield number + 1, None
    elif size:
        yield number + 1, b"".join(held).decode(errors="surrogateescape")


def _too_long(item: Input, number: int, problems: Problems) -> None:
    problems.add(BROKEN, f"{item.name}:{number} (a line above {MAX_RECORD:,} bytes)")


def _txt(item: Input, config: DataConfig, problems: Problems) -> Iterator[Document]:
    """Whole files, or what lies between separators (line ends beside a separator belong to it). With `item.tail`, what
    follows the first line end in the last share of the file is a document of its own, held out."""
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
        """The end of a document. What is blank after the last separator of a file is none."""
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


def _columns(config: DataConfig) -> list[str]:
    return [config.text] if config.target is None else [config.text, config.target]


def _document(values: Sequence[Any], line: int) -> Document:
    """Of the values of one record, in the order of `_columns`."""
    return Document(values[0], line, target=values[1] if len(values) > 1 else None)


def json_records(item: Input, problems: Problems) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line, object) of each line of JSON."""
    for number, line in read_lines(item, problems):
        if line is None or not line.strip():
            continue
        try:
            record = strict_json.loads(line.rstrip("\r\n"))
        except (ValueError, RecursionError) as e:
            problems.add(BROKEN, f"{item.name}:{number} ({strict_json.why(e)})")
            continue
        if isinstance(record, dict):
            yield number, record
        else:
            problems.add(BROKEN, f"{item.name}:{number} (not an object but {type(record).__name__})")


def _jsonl(item: Input, config: DataConfig, problems: Problems) -> Iterator[Document]:
    found, names = False, _columns(config)
    for number, record in json_records(item, problems):
        if absent := [name for name in names if name not in record]:
            if not found:
                _present(f"{item.name}:{number}", "key", config, list(record))
            problems.add(NO_TEXT, f"{item.name}:{number} (no key `{absent[0]}`)")
        else:
            found = True
            yield _document([record[name] for name in names], number)


def _present(where: str, what: str, config: DataConfig, there: list[str]) -> list[str]:
    """The columns, or keys, that are to be read. Raises DataError for a file without one of them."""
    names = _columns(config)
    for name, key, kind in zip(names, ("text", "target"), ("text", "target text"), strict=False):
        if name not in there:
            raise DataError(
                f"{where}: no {what} `{name}`{did_you_mean(name, there[:1000])}\n"
                f"  → say which one holds the {kind} with data.{key}=NAME"
            )
        if there.count(name) > 1:
            raise DataError(f"{where}: {there.count(name)} {what}s are called `{name}`\n  → rename all but one")
    return names


def csv_rows(item: Input, problems: Problems, quotes: bool = True) -> Iterator[tuple[int, list[str]]]:
    """(line, fields) of the header and of each row with as many fields. Without `quotes`, these are text."""
    csv.field_size_limit(MAX_RECORD)
    lines = (line for _, line in read_lines(item, problems) if line is not None)
    first = next(lines, "")
    tabs = Path(item.name.removesuffix(item.packing)).suffix == ".tsv"
    delimiter = "\t" if tabs else max(",;\t", key=first.count)
    rows = csv.reader(chain([first], lines), delimiter=delimiter, quoting=QUOTING[quotes], strict=True)
    width = 0
    while True:
        start = rows.line_num + 1
        try:
            row = next(rows)
        except StopIteration:
            return
        except csv.Error as e:
            problems.add(BROKEN, f"{item.name}:{start}-{rows.line_num} ({e})")
            continue
        width = width or len(row)
        if row and len(row) != width:
            problems.add(BROKEN, f"{item.name}:{start} ({len(row)} fields under a header of {width})")
        elif row:
            yield start, row


def _csv(item: Input, config: DataConfig, problems: Problems) -> Iterator[Document]:
    rows = csv_rows(item, problems)
    for start, header in rows:
        places = [header.index(name) for name in _present(f"{item.name}:{start}", "column", config, header)]
        yield from (_document([row[place] for place in places], line) for line, row in rows)


def _parquet(item: Input, config: DataConfig, problems: Problems) -> Iterator[Document]:
    for row, record in parquet_records(item, lambda schema: _present(item.name, "column", config, schema.names)):
        yield _document([record[name] for name in _columns(config)], row)


def parquet_records(item: Input, choose: Callable[[Any], list[str]]) -> Iterator[tuple[int, dict[str, Any]]]:
    """(row, record) with the columns that `choose` picks from the Arrow schema."""
    import pyarrow
    import pyarrow.parquet

    with tempfile.TemporaryFile() as unpacked:
        for block in read_bytes(item) if item.packing else ():
            unpacked.write(block)
        try:
            source = unpacked if item.packing else item.name
            file = pyarrow.parquet.ParquetFile(source, pre_buffer=False, buffer_size=BLOCK)
            row = 0
            for batch in file.iter_batches(512, columns=choose(file.schema_arrow)):
                for record in batch.to_pylist():
                    row += 1
                    yield row, record
                item.done = item.size * row // file.metadata.num_rows
        except (pyarrow.ArrowException, UnicodeDecodeError) as e:
            raise _Damaged(str(e)) from e
    item.sha256 = item.sha256 or sha256(Path(item.name))


def _hub(item: Input, config: DataConfig, problems: Problems) -> Iterator[Document]:
    digest = hashlib.sha256()
    for row, record in hub_records(item.name):
        values = [record[name] for name in _present(item.name, "column", config, list(record))]
        for value in values:
            digest.update(repr(value).encode(errors="surrogatepass"))
        yield _document(values, row)
    item.sha256 = digest.hexdigest()
