"""Labelled data for fine-tuning: rows of a task out of files of any format, and the count of what was left out."""

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from lmkit.data.formats import Source, list_sources, load
from lmkit.data.inputs import Input, Problems, list_inputs
from lmkit.data.readers import read_documents
from lmkit.data.table_columns import check_settings, choose_columns
from lmkit.data.table_rows import Unfit, as_json, make_row, settle_labels
from lmkit.downstream import TableConfig
from lmkit.errors import DataError
from lmkit.recipe import DataConfig

Row = dict[str, Any]
_encoder = json.JSONEncoder(sort_keys=True, default=as_json)


@dataclass(frozen=True)
class Table:
    """Rows by role. Of each task:

    classify:  text (or image: bytes of (height, width) or (height, width, channels)), label, and pair if there is one;
               a label is text, a list of texts where the file has lists, or a float where it has broken numbers
    tag:       words, tags (as many)
    qa:        id, title, context, question, answers: [{text, start}], empty where there is none
    translate, summarize:  source, target
    chat:      messages: [{role: system, user, assistant or tool, content}]
    lm:        text
    answer:    question, answers: [text, ...]

    Rows to predict from may be without label, tags, answers, target, or turns of the assistant."""

    rows: list[Row]
    places: list[str]  # `file:line` of each row; the row of Parquet, JSON, hub and images, the id of a SQuAD question
    columns: dict[str, str]  # role -> column it came from; empty for formats without columns
    format: str
    problems: Problems  # what was left out, counted

    @cached_property
    def fingerprint(self) -> str:
        """sha256 over the rows."""
        digest = hashlib.sha256()
        for row in self.rows:
            digest.update(row_bytes(row))
        return digest.hexdigest()


def row_bytes(value: Any) -> bytes:
    """A row, or a part of one, in the same bytes wherever it is equal."""
    return _encoder.encode(value).encode()


def read_table(sources: list[str], task: str, config: TableConfig, labelled: bool = True) -> Table:
    """All rows of files, folders, globs and hub: names, in the order of their sorted names. Without `labelled`, what is
    to be predicted may be missing, and .txt files hold a text a line.

    Raises UserError for a setting this task does not read, and DataError when sources or columns cannot be found, when
    a file is wrong as a whole, and when no row is left."""
    check_settings(task, config)
    problems = Problems()
    if task == "lm":
        parts = [_documents(item, config, problems) for item in list_inputs(sources)]
    else:
        found = list_sources(sources, task, config, labelled)
        parts = [_part(source, task, config, labelled, problems) for source in found]
    rows = [row for part in parts for row in part.rows]
    if not rows:
        counted = "".join(f"\n  {n:,} {kind}: {problems.examples[kind][0]}" for kind, n in problems.counts.items())
        raise DataError(
            f"{', '.join(sources)}: no row is left{counted or chr(10) + '  the files hold no records'}\n"
            "  → repair the files, or name others"
        )
    if task == "classify":
        settle_labels(rows)
    columns: dict[str, str] = {}
    for part in parts:
        for role, column in part.columns.items():
            known = columns.get(role, column)
            columns[role] = known if column in known.split(", ") else f"{known}, {column}"
    places = [place for part in parts for place in part.places]
    return Table(rows, places, columns, ", ".join(dict.fromkeys(part.format for part in parts)), problems)


def _documents(item: Input, config: TableConfig, problems: Problems) -> Table:
    column = config.text or "text"
    documents = list(read_documents(item, DataConfig(train="", text=column), problems))
    columns = {} if item.kind == "txt" else {"text": column}
    places = [f"{item.name}:{document.line}" for document in documents]
    return Table([{"text": document.text} for document in documents], places, columns, item.kind, problems)


def _part(source: Source, task: str, config: TableConfig, labelled: bool, problems: Problems) -> Table:
    """The rows of one source."""
    records = load(source, task, config, labelled, problems)
    chosen: dict[str, str] | None = None
    if records.columns:
        chosen = choose_columns(
            source.item.name, records.columns, task, config, labelled, header=records.format == "csv"
        )
    rows, places = [], []
    for where, values in records.rows:
        if chosen is not None:
            values = {role: values.get(column) for role, column in chosen.items()}
        try:
            rows.append(make_row(task, values, where, labelled, problems))
            places.append(where)
        except Unfit as unfit:
            problems.add(str(unfit), where)
    return Table(rows, places, chosen or {}, records.format, problems)
