"""The one reader of records: csv, tsv, Excel, JSON, Parquet, Arrow and datasets of the hub, as values by column."""

import csv
import io
import json
import re
import tempfile
import zipfile
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from lmkit.base.errors import DataError, UserError
from lmkit.base.files import sha256
from lmkit.data.hub import class_names, hub_records, named
from lmkit.data.inputs import Input, Problems
from lmkit.data.lines import BLOCK, BROKEN, MAX_RECORD, DamagedFile, guarded, read_blocks, read_bytes, read_lines

MAX_JSON = 2**31  # bytes of a .json file, which is read as one; what is packed can be much more than it seems
# keys under which an object that is a whole file holds its records
RECORDS = ("data", "rows", "records", "examples")
SPEAKER = {"role", "from"}  # keys of a message: a list of these is one conversation
LONE_QUOTE = re.compile(r'"(?!(?:[^"]|"")*"\Z)')  # a field that begins with a quotation mark and is not quoted

Record = tuple[int, dict[str, Any]]  # its line (csv, JSON lines) or its number, from 1; its values by column
Header = Callable[[str, list[str]], Collection[str]]


def read_records(item: Input, problems: Problems, header: Header | None = None) -> Iterator[Record]:
    """Yields the records of one input, in order. What cannot be read is counted in `problems`, with its place.

    header: is called before the first record with the place and the columns of csv, Excel, Parquet and Arrow; it
    returns the columns to read, and may raise. Records of JSON and the hub bring their own keys. Classes of Parquet,
    Arrow and the hub come by their names. Raises DataError for a file that changes meanwhile, for
    damaged JSON, and where the hub fails, and UserError where a library is missing."""
    read = {"csv": _csv, "xlsx": _xlsx, "jsonl": _jsonl, "json": _json, "parquet": _columnar, "arrow": _columnar,
            "hub": _hub}[item.kind]  # fmt: skip
    return guarded(item, read(item, problems, header or _all_columns), problems)


def _all_columns(where: str, columns: list[str]) -> list[str]:
    return columns


def with_nested(record: dict[str, Any], columns: Iterable[str]) -> dict[str, Any]:
    """Returns the record, and in it the value of each column like `body.text` that it holds as {"body": {"text": ...}}.

    A key that itself has the dot wins."""
    for column in columns:
        if column in record:
            continue
        value: Any = record
        for key in column.split("."):
            value = value.get(key) if isinstance(value, dict) else None
        if value is not None:
            record = record | {column: value}
    return record


def outer_column(column: str, names: Collection[str]) -> str:
    """Returns the column of a file that holds `column`: itself, or `body` for `body.text`."""
    outer = column.partition(".")[0]
    return outer if column not in names and outer in names else column


# ---------------------------------------------------------------- csv and Excel


def _csv(item: Input, problems: Problems, header: Header) -> Iterator[Record]:
    rows = _csv_rows(item, problems, csv.QUOTE_NONE if _quotes_are_text(item) else csv.QUOTE_MINIMAL)
    return _under_header(item, rows, header)


def _under_header(item: Input, rows: Iterator[tuple[int, list[str]]], header: Header) -> Iterator[Record]:
    """Yields a record for each row but the first, which names the columns. rows: each with its line."""
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


def _xlsx(item: Input, problems: Problems, header: Header) -> Iterator[Record]:
    return _under_header(item, _xlsx_rows(item, problems), header)


def _xlsx_rows(item: Input, problems: Problems) -> Iterator[tuple[int, list[str]]]:
    """Yields (row, fields) of the first sheet, as a CSV file of it would have them: text, "" for an empty cell.

    Other sheets with rows are counted."""
    try:
        from openpyxl import load_workbook
    except ImportError:
        raise UserError(f'{item.name}: .xlsx needs openpyxl\n  → pip install "lmkit[excel]"') from None
    content = io.BytesIO(b"".join(read_bytes(item)))
    try:
        first, *others = load_workbook(content, read_only=True, data_only=True).worksheets
        for sheet in others:
            if any(value is not None for row in sheet.iter_rows(values_only=True) for value in row):
                problems.add("sheets behind the first", f"{item.name} ({sheet.title})", lost=False)
        width = 0
        for number, row in enumerate(first.iter_rows(values_only=True), 1):
            fields = ["" if value is None else str(value) for value in row]
            width = width or max((at for at, field in enumerate(fields, 1) if field), default=0)
            if any(fields[width:]):
                problems.add(BROKEN, f"{item.name}:{number} (a field beyond the header of {width})")
            elif any(fields):
                yield number, (fields + [""] * width)[:width]
    except (zipfile.BadZipFile, KeyError, ValueError, ElementTree.ParseError) as e:
        raise DamagedFile(f"no .xlsx file: {e}") from e


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
    """Yields the objects of a list, which stands alone or in an object around it (`_inner_records`), or the one object
    that the file is. A file with an object a line is read as well, despite its name."""
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
        content = _inner_records(content)
    if not isinstance(content, list) or (content and not any(isinstance(value, dict) for value in content)):
        raise DataError(
            f"{item.name}: cannot read this JSON\n  allowed: an object, a list of objects, an object a line, or SQuAD"
        )
    yield from _objects(item, content, 1, problems)


def _inner_records(content: dict[str, Any]) -> list[Any]:
    """Returns the records of an object that is a whole file: those under `data` or the like, as SQuAD has them, or
    under its only key, unless they are the messages of a conversation; the rows of columns as pandas writes them,
    {"text": {"0": ...}}; else the object, which is one record."""
    columns = list(content.values())
    numbers = list(map(str, range(len(columns[0])))) if columns and isinstance(columns[0], dict) else []
    if numbers and all(isinstance(column, dict) and list(column) == numbers for column in columns):
        return [{name: column[number] for name, column in content.items()} for number in numbers]
    lists = [key for key, value in content.items() if isinstance(value, list) and value and isinstance(value[0], dict)]
    named = [key for key in lists if key in RECORDS]
    if len(named) == 1:
        return list(content[named[0]])
    alone = len(content) == len(lists) == 1 and not SPEAKER & content[lists[0]][0].keys()
    return list(content[lists[0]]) if alone else [content]


# ---------------------------------------------------------------- Parquet, Arrow and the hub


def _columnar(item: Input, problems: Problems, header: Header) -> Iterator[Record]:
    import pyarrow

    with tempfile.TemporaryFile() as unpacked:
        for block in read_bytes(item) if item.packing else ():
            unpacked.write(block)
        try:
            schema, total, batches = _opened(item.kind, unpacked if item.packing else item.name)
            columns = list(header(item.name, schema.names))
            classes = _class_names(schema, columns)
            row = 0
            for batch in batches(columns):
                for record in batch.to_pylist():
                    row += 1
                    yield row, record | {column: named(record[column], names) for column, names in classes.items()}
                item.done = item.size * row // total
        except (pyarrow.ArrowException, UnicodeDecodeError) as e:
            raise DamagedFile(str(e)) from e
    item.sha256 = item.sha256 or sha256(Path(item.name))


def _opened(kind: str, source: Any) -> tuple[Any, int, Callable[[list[str]], Iterable[Any]]]:
    """Returns the schema, the number of rows, and a function from columns to batches of rows.

    Arrow comes as a file, which is Feather's format too, or as a stream, which `datasets` saves."""
    import pyarrow.parquet

    if kind == "parquet":
        file = pyarrow.parquet.ParquetFile(source, pre_buffer=False, buffer_size=BLOCK)
        return file.schema_arrow, file.metadata.num_rows, lambda columns: file.iter_batches(512, columns=columns)
    stream = pyarrow.memory_map(source) if isinstance(source, str) else pyarrow.PythonFile(source)
    is_file = stream.read_at(6, 0) == b"ARROW1"
    stream.seek(0)
    table = (pyarrow.ipc.open_file if is_file else pyarrow.ipc.open_stream)(stream).read_all()
    return table.schema, table.num_rows, lambda columns: table.select(columns).to_batches(512)


def _class_names(schema: Any, columns: list[str]) -> dict[str, list[str]]:
    """Returns the names of classes by column, where `datasets` wrote the file."""
    written = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
    names = class_names((written.get("info") or {}).get("features") or {})
    return {column: names[column] for column in columns if column in names}


def _hub(item: Input, problems: Problems, header: Header) -> Iterator[Record]:
    return hub_records(item.name)
