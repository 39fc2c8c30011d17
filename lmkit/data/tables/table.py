"""Labelled data for fine-tuning: rows of a task out of files of any format, and the count of what was left out."""

import hashlib
import json
import re
from bisect import bisect_left
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

from lmkit.base.errors import DataError, did_you_mean
from lmkit.data.documents import read_documents
from lmkit.data.encodings import encoding_advice, settle_encodings
from lmkit.data.inputs import Input, Problems, list_inputs
from lmkit.data.records import with_nested
from lmkit.data.tables.columns import check_settings, choose_columns
from lmkit.data.tables.formats import Source, list_sources, load_source
from lmkit.data.tables.labels import without_list_syntax
from lmkit.data.tables.rows import UNDECODABLE, Maker, Unfit, as_json, make_row
from lmkit.data.tables.spans import split_words
from lmkit.data.tables.task_tables import TABLES
from lmkit.recipe.pretraining import DataConfig
from lmkit.recipe.tasks import TableConfig

Row = dict[str, Any]
_encoder = json.JSONEncoder(sort_keys=True, default=as_json)


class Lost(NamedTuple):
    """A record to predict from that became no row."""

    before: int  # the number of rows that stand before it
    place: str
    reason: str


@dataclass(frozen=True)
class Table:
    """Rows by role. Of each task:

    classify:  text (or image: bytes of (height, width) or (height, width, channels)), label, and pair if there is one;
               a label is text, a list of texts or a float, all of one kind (`labels.settle_labels`)
    tag:       words, tags (as many), never in IOB1; text, where they were cut out of one
    qa:        id, title, context, question, answers: [{text, start}], empty where there is none
    translate, summarize:  source, target
    chat:      messages: [{role: system, user, assistant or tool, content, and what else templates may read}]; tools
    lm:        text
    answer:    question, answers: [text, ...]

    Rows to predict from may be without label, tags, answers, target, or turns of the assistant."""

    rows: list[Row]
    places: list[str]  # `file:line` of each row; the row of Parquet, JSON, hub and images, the id of a SQuAD question
    columns: dict[str, str]  # role -> column it came from; empty for formats without columns
    format: str
    problems: Problems  # what was left out, counted
    notes: tuple[str, ...] = ()  # how labels or tags were read, where that is not plain
    lost: tuple[Lost, ...] = ()  # in order; only of a table to predict from
    beside: dict[str, dict[str, Any]] = field(default_factory=dict)  # by place, lost ones too: columns asked for
    origins: dict[str, int] = field(default_factory=dict)  # the source of each place, where sources have weights

    def described(self, sources: list[str]) -> list[str]:
        """Returns what was read from where, and what was left out, a line each."""
        chosen = ", ".join(f"{role} from `{column}`" for role, column in self.columns.items())
        read = f"reads {', '.join(sources)} ({self.format}): {chosen or 'as it is'}; {len(self.rows):,} rows"
        counts, examples = self.problems.counts, self.problems.examples
        lines = [read, *(f"left out: {n:,} {kind}, like {examples[kind][0]}" for kind, n in counts.items())]
        if counts.get(UNDECODABLE, 0) > len(self.rows):
            lines.append(f"→ {encoding_advice(examples[UNDECODABLE][0])}")
        return lines + list(self.notes)

    @cached_property
    def fingerprint(self) -> str:
        """The sha256 of the rows."""
        digest = hashlib.sha256()
        for row in self.rows:
            digest.update(row_bytes(row))
        return digest.hexdigest()


def row_bytes(value: Any) -> bytes:
    """Returns a row, or a part of one, as bytes, which are the same for equal rows."""
    return _encoder.encode(value).encode()


def read_table(
    sources: list[str], task: str, config: TableConfig, labelled: bool = True, kind: str = "auto",
    known: Collection[str] = (), beside: Sequence[str] = (),
) -> Table:  # fmt: skip
    """Returns all rows of files, folders, globs and hub: names, in the order of their sorted names. Without `labelled`,
    what is to be predicted may be missing, .txt files hold a text a line, and records that cannot be read are `lost`.

    kind: what the labels of `classify` are (`task.kind`). known: the classes of a trained model. beside: columns to
    keep as they are, as is `data.group`.
    Raises UserError for a setting this task does not read, and DataError when sources or columns cannot be found, when
    a file is wrong as a whole, and when no row is left."""
    check_settings(task, config)
    problems, origins = Problems(), dict[str, int]()
    beside = [*beside, *filter(None, [config.group])]
    make, settle = TABLES[task].make_row, TABLES[task].settle
    if make is None:
        inputs = settle_encodings(list_inputs(sources, config=config))
        parts = [_documents(item, config, problems) for item in inputs]
    else:
        located = list_sources(sources, task, config, labelled)
        parts = [_part(source, task, make, config, labelled, problems, beside) for source in located]
        if config.weights:
            by_source = zip(located, parts, strict=True)
            origins = {place: source.item.source for source, part in by_source for place in part.places}
    rows = [row for part in parts for row in part.rows]
    places = [place for part in parts for place in part.places]
    notes = settle(rows, places, problems, kind, config.separator, known) if settle and labelled else []
    lost = _lost(parts)
    if not rows and not lost:
        raise _no_rows(sources, problems)
    columns: dict[str, str] = {}
    for part in parts:
        for role, column in part.columns.items():
            seen = columns.get(role, column)
            columns[role] = seen if column in seen.split(", ") else f"{seen}, {column}"
    formats = ", ".join(dict.fromkeys(part.format for part in parts))
    kept = {place: values for part in parts for place, values in part.beside.items()}
    return Table(rows, places, columns, formats, problems, tuple(notes), lost, kept, origins)


def _no_rows(sources: list[str], problems: Problems) -> DataError:
    counted = "".join(f"\n  {n:,} {kind}: {problems.examples[kind][0]}" for kind, n in problems.counts.items())
    advice = "repair the files, or name others"
    if UNDECODABLE in problems.counts:
        advice = encoding_advice(problems.examples[UNDECODABLE][0])
    return DataError(
        f"{', '.join(sources)}: no row is left{counted or chr(10) + '  the files hold no records'}\n  → {advice}"
    )


def _lost(parts: list[Table]) -> tuple[Lost, ...]:
    lost, rows = list[Lost](), 0
    for part in parts:
        lost += [record._replace(before=record.before + rows) for record in part.lost]
        rows += len(part.rows)
    return tuple(lost)


def _documents(item: Input, config: TableConfig, problems: Problems) -> Table:
    column = config.text or "text"
    documents = list(read_documents(item, DataConfig(train="", text=column), problems))
    columns = {} if item.kind == "txt" else {"text": column}
    places = [f"{item.name}:{document.line}" for document in documents]
    return Table([{"text": document.text} for document in documents], places, columns, item.kind, problems)


def _value(record: dict[str, Any], column: str) -> Any:
    """Returns what stands in a column; of several, `a,b`, what stands in each by its name."""
    if column in record or "," not in column:
        return record.get(column)
    return {name: record.get(name) for name in column.split(",")}


def _part(
    source: Source, task: str, make: Maker, config: TableConfig, labelled: bool, problems: Problems,
    beside: Sequence[str],
) -> Table:  # fmt: skip
    """Returns the rows of one source. Raises DataError for a column of `beside` that it does not have."""
    name, own = source.item.name, Problems(rows=None if labelled else [])
    records = load_source(source, task, config, labelled, own)
    chosen: dict[str, str] | None = None
    if records.columns:
        chosen = choose_columns(name, records.columns, task, config, labelled, header=records.format == "csv")
    whole = [(where, with_nested(values, beside)) for where, values in records.rows] if beside else []
    columns = list(dict.fromkeys([*(records.columns or ()), *(key for _, values in whole for key in values)]))
    if missing := [column for column in beside if column not in columns]:
        raise DataError(f"{name}: no column `{missing[0]}`{did_you_mean(missing[0], columns)}")
    kept = {where: {column: values.get(column) for column in beside} for where, values in whole}
    rows, places, unfit = [], [], list[tuple[int, int, str, str]]()
    for number, (where, values) in enumerate(records.rows):
        if chosen is not None:
            values = {role: _value(values, column) for role, column in chosen.items()}
        if config.words == "punctuation" and isinstance(text := without_list_syntax(values.get("words")), str):
            values = values | {"text": text, "words": [text[start:end] for start, end in split_words(text)]}
        try:
            rows.append(make_row(make, values, where, labelled, own))
            places.append(where)
        except Unfit as e:
            own.add(e.kind, where + e.detail, lost=False)
            unfit.append((number, len(rows), where, e.kind + e.detail))
    problems.merge(own)
    lost = [] if labelled else _in_order(name, [where for where, _ in records.rows], unfit, own.rows or [])
    return Table(rows, places, chosen or {}, records.format, problems, lost=tuple(lost), beside=kept)


def _in_order(
    name: str, records: list[str], unfit: list[tuple[int, int, str, str]], unread: list[tuple[str, str]]
) -> list[Lost]:
    """Returns what one source has lost, by place. records: the places of all that could be read. unfit: of these
    (number, rows before it, place, reason). unread: (reason, place) of what its reader left out."""
    line = re.compile(re.escape(name) + r":(\d+)")
    lines = [int(match[1]) if (match := line.match(place)) else 0 for place in records]
    by_position = [(number, Lost(before, place, reason)) for number, before, place, reason in unfit]
    for reason, place in unread:
        at = bisect_left(lines, int(match[1])) if (match := line.match(place)) else len(records)
        before = at - sum(number < at for number, *_ in unfit)
        detail = place.partition(" ")[2]
        spot = match[0] if match else name
        by_position.append((at - 0.5, Lost(before, spot, f"{reason} {detail}".strip())))  # type: ignore[arg-type]
    return [lost for _, lost in sorted(by_position, key=lambda item: item[0])]
