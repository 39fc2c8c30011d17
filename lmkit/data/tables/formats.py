"""Files of labelled data: which format each source has, and its records by column, each with its place."""

import json
import os
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lmkit.base.display import note
from lmkit.base.errors import DataError
from lmkit.data import strict_json
from lmkit.data.hub import class_names, hub_records, named
from lmkit.data.inputs import KINDS, Input, Pairing, Problems, files_of, list_inputs, tell_again
from lmkit.data.parallel import read_pairs
from lmkit.data.readers import csv_rows, guarded, json_records, parquet_records, read_blocks, read_lines
from lmkit.data.tables.images import IMAGES, cifar_records, idx_records, image_files
from lmkit.data.tables.texts import (
    CONLLU,
    conll_records,
    folder_records,
    is_conll,
    label_folders,
    po_records,
    squad_records,
)
from lmkit.recipe.pretraining import DataConfig
from lmkit.recipe.tasks import TableConfig

Record = tuple[str, dict[str, Any]]  # its place, `file:line`, and its values

SUFFIXES = KINDS | {
    ".json": "json",
    ".po": "po",
    ".conll": "conll",
    ".conllu": "conll",
    ".iob": "conll",
    ".iob2": "conll",
    ".bio": "conll",
}
COLUMNS = ("csv", "jsonl", "json", "parquet", "hub")  # with columns that have to be found; other formats have roles
MORE = {"tag": ("conll",), "translate": ("po",)}  # what a task reads besides
ROLE_OF_LINES = {"classify": "text", "tag": "words", "translate": "source", "summarize": "source", "answer": "question"}
ALLOWED = {
    "classify": "; a folder with a sub-folder of .txt files for each label; MNIST's images in idx files, "
    "their labels beside them; CIFAR-10's .bin files",
    "tag": "; CoNLL columns in .conll, .conllu, .iob, .bio, .txt",
    "translate": "; .po; files of a sentence a line, with data.text and data.target the endings of their names",
    "summarize": "; files of a text a line, with data.text and data.target the endings of their names",
}
MOST_JSON = 2**31  # bytes of a .json file, which is read as one; what is packed can be much more than it seems
LONE_QUOTE = re.compile(r'"(?!(?:[^"]|"")*"\Z)')  # a field that begins with a quotation mark and is not quoted


@dataclass(frozen=True)
class Source:
    """One file, one folder of labels, or one dataset of the hub."""

    item: Input
    format: str


@dataclass(frozen=True)
class Records:
    format: str
    rows: list[Record]  # values by column, or by role when there are no `columns`
    columns: list[str] | None = None


def list_sources(patterns: list[str], task: str, config: TableConfig, labelled: bool) -> list[Source]:
    """What paths, folders, globs and hub: names stand for, sorted, each file once.

    Raises DataError for whatever gives nothing, files that `task` cannot read, pipes and devices, and for either side
    of parallel text without the other."""
    pairing = None
    if task in ("translate", "summarize") and config.text and config.target and labelled:
        pairing = Pairing(config.text, config.target)
    allowed = ".csv, .tsv, .jsonl, .json, .parquet, .gz or .zst of these, hub:NAME" + ALLOWED.get(task, "")

    def format_of(name: str) -> str:
        return _format(name, task, config, labelled, pairing)

    found: dict[str, Source] = {}  # real path -> source
    lines, again = list[str](), list[str]()

    def add(name: str, source: Source) -> None:
        if found.setdefault(os.path.realpath(name), source) is not source:
            again.append(name)

    for pattern in patterns:
        if pattern.startswith("hub:"):
            found[pattern] = Source(Input(pattern), "hub")
            continue
        folders, images = _special(pattern, format_of) if task == "classify" else ([], [])
        if folders:
            add(pattern, Source(Input(pattern), "folder"))
        for name in images or ([] if folders else files_of(pattern, lambda n: bool(format_of(n)), allowed)):
            kind = format_of(name)
            if not kind:
                raise DataError(
                    f"{name}: `{Path(name).suffix or 'no suffix'}` is no kind of file that {task} reads\n"
                    f"  allowed: {allowed}"
                )
            if kind == "lines":
                lines.append(name)
            else:
                add(name, Source(_looked_at(name), kind))
    for item in list_inputs(lines, pairing):
        found.setdefault(os.path.realpath(item.name), Source(item, "lines"))
    tell_again(again)
    return sorted(found.values(), key=lambda source: source.item.name)


def _special(folder: str, format_of: Callable[[str], str]) -> tuple[list[str], list[str]]:
    """The sub-folders of labels, or the files of images, if this is a folder with such and without tables."""
    if not os.path.isdir(folder):
        return [], []
    images, beside = image_files(folder), sorted(entry.name for entry in os.scandir(folder) if entry.is_file())
    tables = [name for name in beside if format_of(os.path.join(folder, name)) in COLUMNS]
    labels = [] if images or tables else label_folders(folder)
    if labels and beside:
        note(f"{folder}: {len(beside)} files beside the folders of labels left alone ({', '.join(beside[:6])})")
    return labels, images


def _format(name: str, task: str, config: TableConfig, labelled: bool, pairing: Pairing | None) -> str:
    """The format of a file by its name; "" when the task cannot read it."""
    bare = name.removesuffix(Input(name).packing)
    if pairing and (pairing.target_of(name) or pairing.is_target(name)):
        return "lines"
    if task == "classify" and (match := IMAGES.search(bare)):
        return "idx" if match["idx"] else "cifar10"
    kind = SUFFIXES.get(Path(bare).suffix, "")
    if not labelled and task in ROLE_OF_LINES and (kind == "txt" or (config.text and bare.endswith(f".{config.text}"))):
        return "texts"
    if kind == "txt" and task == "tag":
        return "conll"
    return kind if kind in (*COLUMNS, *MORE.get(task, ())) else ""


def _looked_at(name: str) -> Input:
    item = Input(name)
    item.look()
    return item


def load(source: Source, task: str, config: TableConfig, labelled: bool, problems: Problems) -> Records:
    """All of a source. What cannot be read is counted in `problems`; raises DataError for files that are damaged in
    ways that leave nothing to trust, and whatever `lmkit.data.readers` raises."""
    item = source.item
    if source.format == "texts" and task == "tag" and is_conll(item):
        return load(Source(item, "conll"), task, config, labelled, problems)
    of_columns: dict[str, Callable[[], Records]] = {
        "csv": lambda: _csv(item, problems),
        "jsonl": lambda: _jsonl(item, problems),
        "json": lambda: _json(item, task, problems),
        "parquet": lambda: _parquet(item, problems),
        "hub": lambda: _of_objects("hub", ((f"{item.name}:{n}", record) for n, record in hub_records(item.name))),
    }
    if source.format in of_columns:
        return of_columns[source.format]()
    of_roles: dict[str, Callable[[], Iterable[Record]]] = {
        "lines": lambda: _lines(item, config, problems),
        "texts": lambda: guarded(item, _texts(item, ROLE_OF_LINES.get(task, ""), problems), problems),
        "folder": lambda: folder_records(item.name, problems),
        "conll": lambda: guarded(item, conll_records(item, labelled, problems), problems),
        "po": lambda: guarded(item, po_records(item, problems), problems),
        "idx": lambda: guarded(item, idx_records(item, labelled), problems),
        "cifar10": lambda: guarded(item, cifar_records(item), problems),
    }
    rows = list(of_roles[source.format]())
    if source.format == "conll" and rows and CONLLU[0] in rows[0][1]:
        return Records("CoNLL-U", rows, list(CONLLU))
    return Records(source.format, rows)


def _of_objects(name: str, records: Iterable[Record]) -> Records:
    """The columns are all keys of all objects: an optional one may be missing from the first. Pairs that datasets of
    the hub keep as {"translation": {"en": ..., "de": ...}} are taken out of it."""
    rows = [(where, _flat(record)) for where, record in records]
    return Records(name, rows, list(dict.fromkeys(key for _, record in rows for key in record)))


def _flat(record: dict[str, Any]) -> dict[str, Any]:
    inner = record.get("translation")
    return {k: v for k, v in record.items() if k != "translation"} | inner if isinstance(inner, dict) else record


def _csv(item: Input, problems: Problems) -> Records:
    """In tab-separated files quotation marks are often just text (GLUE's are such): when every line has the right
    number of fields without quoting, and a field begins with a mark that cannot be quoting."""
    rows = None
    if Path(item.name.removesuffix(item.packing)).suffix == ".tsv":
        counted = Problems()
        rows = list(guarded(item, csv_rows(item, counted, quotes=False), counted))
        if counted.counts or not any(LONE_QUOTE.match(field) for _, row in rows for field in row):
            rows = None
    if rows is None:
        rows = list(guarded(item, csv_rows(item, problems), problems))
    header = rows[0][1] if rows else []
    return Records(
        "csv", [(f"{item.name}:{n}", dict(zip(header, row, strict=True))) for n, row in rows[1:]], columns=header
    )


def _jsonl(item: Input, problems: Problems) -> Records:
    records = guarded(item, json_records(item, problems), problems)
    return _of_objects("jsonl", ((f"{item.name}:{n}", record) for n, record in records))


def _json(item: Input, task: str, problems: Problems) -> Records:
    """A list of objects, alone or under `data`; SQuAD's articles; or, despite the name, an object a line."""
    blocks, size = [], 0
    for block in guarded(item, read_blocks(item), problems):
        blocks.append(block)
        size += len(block)
        if size > MOST_JSON:
            raise DataError(f"{item.name}: above {MOST_JSON:,} bytes\n  → make it an object a line (.jsonl)")
    text = b"".join(blocks).decode(errors="surrogateescape")
    if not item.whole:  # unreadable, and counted
        return Records("json", [], [])
    try:
        content = strict_json.loads(text)
    except RecursionError as e:
        raise DataError(f"{item.name}: nested too deeply to be read") from e
    except ValueError as e:
        if str(e).startswith("Extra data"):
            return _jsonl(item, problems)
        raise DataError(f"{item.name}: {e}\n  → is the file complete?") from e
    if isinstance(content, dict) and isinstance(content.get("data"), list):
        content = content["data"]
    if not isinstance(content, list) or not all(isinstance(record, dict) for record in content):
        raise DataError(f"{item.name}: cannot read this JSON\n  allowed: a list of objects, an object a line, or SQuAD")
    if content and all("paragraphs" in record for record in content):
        if task not in ("qa", "answer"):
            raise DataError(f"{item.name} holds questions and answers (SQuAD)\n  → task.name=qa or task.name=answer")
        return Records("squad", list(squad_records(item.name, content, problems)))
    return _of_objects("json", ((f"{item.name}:{n}", record) for n, record in enumerate(content, 1)))


def _parquet(item: Input, problems: Problems) -> Records:
    columns: list[str] = []
    names: dict[str, list[str]] = {}

    def choose(schema: Any) -> list[str]:
        """All columns; and the names of classes, where `datasets` wrote the file."""
        columns.extend(schema.names)
        written = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
        names.update(class_names((written.get("info") or {}).get("features") or {}))
        return columns

    records = _of_objects(
        "parquet",
        (
            (f"{item.name}:{n}", record | {column: named(record.get(column), names[column]) for column in names})
            for n, record in guarded(item, parquet_records(item, choose), problems)
        ),
    )
    return Records("parquet", records.rows, records.columns or columns)


def _lines(item: Input, config: TableConfig, problems: Problems) -> Iterator[Record]:
    pairs = read_pairs(item, DataConfig(train="", text=config.text or "", target=config.target), problems)
    return ((f"{item.name}:{pair.line}", {"source": pair.text, "target": pair.target}) for pair in pairs)


def _texts(item: Input, role: str, problems: Problems) -> Iterator[Record]:
    """A text a line, to predict from."""
    for number, line in read_lines(item, problems):
        if line is not None:
            yield f"{item.name}:{number}", {role: line.rstrip("\r\n")}
