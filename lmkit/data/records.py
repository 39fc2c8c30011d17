"""The one reader of records: csv, tsv, JSON lines, JSON, Parquet and datasets of the hub, as values by column."""

import csv
import json
import re
import tempfile
from collections.abc import Callable, Collection, Iterator
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

from lmkit.base.errors import DataError
from lmkit.base.files import sha256
from lmkit.data.hub import class_names, hub_records, named
from lmkit.data.inputs import Input, Problems
from lmkit.data.lines import BLOCK, BROKEN, MAX_RECORD, DamagedFile, guarded, read_blocks, read_bytes, read_lines

MAX_JSON = 2**31  # bytes of a .json file, which is read as one; what is packed can be much more than it seems
LONE_QUOTE = re.compile(r'"(?!(?:[^"]|"")*"\Z)')  # a field that begins with a quotation mark and is not quoted

Record = tuple[int, dict[str, Any]]  # its line (csv, JSON lines) or its number, from 1; its values by column
Header = Callable[[str, list[str]], Collection[str]]


def read_records(item: Input, problems: Problems, header: Header | None = None) -> Iterator[Record]:
    """Yields the records of one input, in order. What cannot be read is counted in `problems`, with its place.

    header: is called before the first record with the place and the columns of csv and Parquet; it returns the columns
    to read, and may raise. Records of JSON and the hub bring their own keys. Classes of Parquet and the hub come by
    their names. Raises DataError for a file that changes meanwhile, for damaged JSON, and where the hub fails."""
    read = {"csv": _csv, "jsonl": _jsonl, "json": _json, "parquet": _parquet, "hub": _hub}[item.kind]
    return guarded(item, read(item, problems, header or _all_columns), problems)


def _all_columns(where: str, columns: list[str]) -> list[str]:
    return columns


# ---------------------------------------------------------------- csv


def _csv(item: Input, problems: Problems, header: Header) -> Iterator[Record]:
    rows = _csv_rows(item, problems, csv.QUOTE_NONE if _quotes_are_text(item) else csv.QUOTE_MINIMAL)
    start, columns = next(rows, (0, []))
    if not columns:
        return
    first = {column: place for place, column in reversed(list(enumerate(columns)))}
    places = [(column, first[column]) for column in header(f"{item.name}:{start}", columns)]
    for line, row in rows:
        yield line, {column: row[place] for column, place in places}


def _csv_rows(item: Input, problems: Problems, quoting: Any) -> Iterator[tuple[int, list[str]]]:
    """Yields (line, fields) of the header, and of each row with as many fields. quoting: one of the csv module's
    constants."""
    csv.field_size_limit(MAX_RECORD)
    lines = (line for _, line in read_lines(item, problems) if line is not None)
    first = next(lines, "")
    delimiter = "\t" if _is_tsv(item) else max(",;\t", key=first.count)
    rows = csv.reader(chain([first], lines), delimiter=delimiter, quoting=quoting, strict=True)
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


def _is_tsv(item: Input) -> bool:
    return Path(item.name.removesuffix(item.packing)).suffix == ".tsv"


def _quotes_are_text(item: Input) -> bool:
    """Tells whether quotation marks of a tab-separated file are text, as GLUE's are: all rows are as wide without
    quoting, and some field begins with a mark that cannot be quoting. Reads the file, as far as it must."""
    if not _is_tsv(item):
        return False
    copy, unread, lone_quotes = replace(item), Problems(), False
    for _, row in guarded(copy, _csv_rows(copy, unread, csv.QUOTE_NONE), unread):
        if unread.counts:
            return False
        lone_quotes = lone_quotes or any(LONE_QUOTE.match(field) for field in row)
    return lone_quotes and not unread.counts


# ---------------------------------------------------------------- JSON


def parse_json(text: str | bytes) -> Any:
    """Parses JSON in which nothing is lost. Raises ValueError as `json.loads` does, and where a key stands twice, since
    all but its last value would be lost."""
    return json.loads(text, object_pairs_hook=_unrepeated)


def _unrepeated(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"key `{next(key for key in keys if keys.count(key) > 1)}` stands twice")
    return values


def _reason(error: Exception) -> str:
    """Returns what is wrong with a line of JSON."""
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg}, column {error.colno}"
    return "nested too deeply" if isinstance(error, RecursionError) else str(error).partition(";")[0]


def _jsonl(item: Input, problems: Problems, header: Header) -> Iterator[Record]:
    for number, line in read_lines(item, problems):
        if line is None or not line.strip():
            continue
        try:
            content = parse_json(line.rstrip("\r\n"))
        except (ValueError, RecursionError) as e:
            problems.add(BROKEN, f"{item.name}:{number} ({_reason(e)})")
            continue
        yield from _objects(item, [content], number, problems)


def _objects(item: Input, contents: list[Any], first: int, problems: Problems) -> Iterator[Record]:
    for number, content in enumerate(contents, first):
        if isinstance(content, dict):
            yield number, content
        else:
            problems.add(BROKEN, f"{item.name}:{number} (not an object but {type(content).__name__})")


def _json(item: Input, problems: Problems, header: Header) -> Iterator[Record]:
    """Yields the objects of a list, which stands alone or under `data`, as SQuAD's articles do. A file with an object a
    line is read as well, despite its name."""
    blocks, size = [], 0
    for block in read_blocks(item):
        blocks.append(block)
        size += len(block)
        if size > MAX_JSON:
            raise DataError(f"{item.name}: above {MAX_JSON:,} bytes\n  → make it an object a line (.jsonl)")
    try:
        content = parse_json(b"".join(blocks).decode(errors="surrogateescape"))
    except RecursionError as e:
        raise DataError(f"{item.name}: nested too deeply to be read") from e
    except ValueError as e:
        if str(e).startswith("Extra data"):
            yield from _jsonl(item, problems, header)
            return
        raise DataError(f"{item.name}: {e}\n  → is the file complete?") from e
    if isinstance(content, dict):
        content = content.get("data")
    if not isinstance(content, list) or (content and not any(isinstance(value, dict) for value in content)):
        raise DataError(f"{item.name}: cannot read this JSON\n  allowed: a list of objects, an object a line, or SQuAD")
    yield from _objects(item, content, 1, problems)


# ---------------------------------------------------------------- Parquet and the hub


def _parquet(item: Input, problems: Problems, header: Header) -> Iterator[Record]:
    import pyarrow
    import pyarrow.parquet

    with tempfile.TemporaryFile() as unpacked:
        for block in read_bytes(item) if item.packing else ():
            unpacked.write(block)
        try:
            source = unpacked if item.packing else item.name
            file = pyarrow.parquet.ParquetFile(source, pre_buffer=False, buffer_size=BLOCK)
            columns = list(header(item.name, file.schema_arrow.names))
            classes = _class_names(file.schema_arrow, columns)
            row = 0
            for batch in file.iter_batches(512, columns=columns):
                for record in batch.to_pylist():
                    row += 1
                    yield row, record | {column: named(record[column], names) for column, names in classes.items()}
                item.done = item.size * row // file.metadata.num_rows
        except (pyarrow.ArrowException, UnicodeDecodeError) as e:
            raise DamagedFile(str(e)) from e
    item.sha256 = item.sha256 or sha256(Path(item.name))


def _class_names(schema: Any, columns: list[str]) -> dict[str, list[str]]:
    """Returns the names of classes by column, where `datasets` wrote the file."""
    written = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
    names = class_names((written.get("info") or {}).get("features") or {})
    return {column: names[column] for column in columns if column in names}


def _hub(item: Input, problems: Problems, header: Header) -> Iterator[Record]:
    return hub_records(item.name)
