"""Files of labelled data: which format each source has, and its records by column, each with its place."""

import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lmkit.base.display import note
from lmkit.base.errors import DataError
from lmkit.data.documents import read_pairs
from lmkit.data.encodings import settle_encodings
from lmkit.data.inputs import KINDS, Input, Pairing, Problems, list_files, list_inputs, number_sources
from lmkit.data.lines import guarded, read_lines
from lmkit.data.records import read_records, with_nested
from lmkit.data.tables.images import IMAGES, cifar_records, idx_records, image_files
from lmkit.data.tables.spans import has_spans, span_row
from lmkit.data.tables.task_tables import TABLES, TaskTable
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

PlacedRecord = tuple[str, dict[str, Any]]  # its place, `file:line`, and its values

SUFFIXES = KINDS | {".po": "po"} | dict.fromkeys((".conll", ".conllu", ".iob", ".iob2", ".bio"), "conll")
COLUMNS = ("csv", "xlsx", "jsonl", "json", "parquet", "arrow", "hub")  # that have to be found; others have roles


@dataclass(frozen=True)
class Source:
    """One file, one folder of labels, or one dataset of the hub."""

    item: Input
    format: str


@dataclass(frozen=True)
class Records:
    format: str
    rows: list[PlacedRecord]  # values by column, or by role when there are no `columns`
    columns: list[str] | None = None


def list_sources(patterns: list[str], task: str, config: TableConfig, labelled: bool) -> list[Source]:
    """Returns the sources that paths, folders, globs and hub: names stand for, sorted, each file once; with weights by
    the pattern that each stands for.

    Raises DataError for whatever gives nothing, files that `task` cannot read, pipes and devices, and for either side
    of parallel text without the other."""
    if config.weights:
        alone = config.model_copy(update={"weights": ()})
        groups = [list_sources([pattern], task, alone, labelled) for pattern in patterns]
        number_sources([[source.item for source in group] for group in groups])
        return [source for group in groups for source in group]
    table, pairing = TABLES[task], None
    if "lines" in table.formats and config.text and config.target and labelled:
        pairing = Pairing(config.text, config.target)
    allowed = ".csv, .tsv, .xlsx, .jsonl, .json, .parquet, .arrow, .feather, .gz or .zst of these, hub:NAME"
    allowed += table.allowed

    def format_of(name: str) -> str:
        return _format(name, table, config, labelled, pairing)

    sources, patterns_of_files = list[Source](), list[str]()
    for pattern in patterns:
        folders, images = _special(pattern, format_of, config) if "folder" in table.formats else ([], [])
        if folders:
            sources.append(Source(Input(pattern), "folder"))
        patterns_of_files += images or ([] if folders else [pattern])
    files = list_files(patterns_of_files, format_of, allowed, f"is no kind of file that {task} reads", config)
    lines = [item.name for item in files if format_of(item.name) == "lines"]
    sources += [Source(item, format_of(item.name)) for item in files if item.name not in lines]
    sources += [Source(item, "lines") for item in list_inputs(lines, pairing, config)]
    settle_encodings([source.item for source in sources if source.format != "folder"])
    return sorted(sources, key=lambda source: source.item.name)


def _special(folder: str, format_of: Callable[[str], str], config: TableConfig) -> tuple[list[str], list[str]]:
    """Returns the sub-folders of labels, or the files of images, if this is a folder with such and without tables."""
    if not os.path.isdir(folder):
        return [], []
    images, beside = image_files(folder), sorted(entry.name for entry in os.scandir(folder) if entry.is_file())
    tables = [name for name in beside if format_of(os.path.join(folder, name)) in COLUMNS]
    labels = [] if images or tables else label_folders(folder, config)
    if labels and beside:
        note(f"{folder}: {len(beside)} files beside the folders of labels left alone ({', '.join(beside[:6])})")
    return labels, images


def _format(name: str, table: TaskTable, config: TableConfig, labelled: bool, pairing: Pairing | None) -> str:
    """Returns the format of a file by its name; "" when the task cannot read it."""
    if name.startswith("hub:"):
        return "hub"
    bare = name.removesuffix(Input(name).packing)
    if pairing and (pairing.target_of(name) or pairing.is_target(name)):
        return "lines"
    if "idx" in table.formats and (match := IMAGES.search(bare)):
        return "idx" if match["idx"] else "cifar10"
    suffix = Path(bare).suffix
    kind = "txt" if suffix in config.text_files else SUFFIXES.get(suffix, "")
    if not labelled and table.lines and (kind == "txt" or (config.text and bare.endswith(f".{config.text}"))):
        return "texts"
    if kind == "txt" and "conll" in table.formats:
        return "conll"
    return kind if kind in (*COLUMNS, *table.formats) else ""


def load_source(source: Source, task: str, config: TableConfig, labelled: bool, problems: Problems) -> Records:
    """Returns all records of a source. What cannot be read is counted in `problems`. Raises DataError for files that
    are damaged in ways that leave nothing to trust, and whatever `lmkit.data.records` raises."""
    item = source.item
    if source.format in COLUMNS:
        return _load_columns(source, task, config, labelled, problems)
    if source.format == "texts" and "conll" in TABLES[task].formats and is_conll(item):
        source = Source(item, "conll")
    of_roles: dict[str, Callable[[], Iterable[PlacedRecord]]] = {
        "lines": lambda: _lines(item, config, problems),
        "texts": lambda: guarded(item, _texts(item, TABLES[task].lines, problems), problems),
        "folder": lambda: folder_records(item.name, config, problems),
        "conll": lambda: guarded(item, conll_records(item, labelled, problems), problems),
        "po": lambda: guarded(item, po_records(item, problems), problems),
        "idx": lambda: guarded(item, idx_records(item, labelled), problems),
        "cifar10": lambda: guarded(item, cifar_records(item), problems),
    }
    rows = list(of_roles[source.format]())
    if source.format == "conll" and rows and CONLLU[0] in rows[0][1]:
        return Records("CoNLL-U", rows, list(CONLLU))
    return Records(source.format, rows)


def _load_columns(source: Source, task: str, config: TableConfig, labelled: bool, problems: Problems) -> Records:
    """Returns the records of a file with columns: those of the header, or all keys of all objects, since an optional
    key may be missing from the first. Pairs that datasets of the hub keep as {"translation": {"en": ..., "de": ...}}
    are taken out of it."""
    item, columns = source.item, list[str]()

    def header(where: str, names: list[str]) -> list[str]:
        columns.extend(names)
        return names

    records = list(read_records(item, problems, header))
    if source.format == "json" and records and all("paragraphs" in record for _, record in records):
        if "squad" not in TABLES[task].formats:
            raise DataError(f"{item.name} holds questions and answers (SQuAD)\n  → task.name=qa or task.name=answer")
        return Records("squad", list(squad_records(item.name, [article for _, article in records], problems)))
    text = config.text or "text"
    if "spans" in TABLES[task].formats and any(has_spans(record, text, config.label) for _, record in records):
        label = config.label if labelled else ""
        return Records("texts with spans", [
            (where := f"{item.name}:{number}", span_row(record, text, label, where, problems))
            for number, record in records
        ])  # fmt: skip
    named = [column for column in (config.text, config.pair, config.label, config.target) if column]
    rows = [(f"{item.name}:{number}", with_nested(_flat(record), named)) for number, record in records]
    if source.format not in ("csv", "xlsx"):
        columns = list(dict.fromkeys(key for _, record in rows for key in record)) or columns
    return Records(source.format, rows, columns)


def _flat(record: dict[str, Any]) -> dict[str, Any]:
    inner = record.get("translation")
    return {k: v for k, v in record.items() if k != "translation"} | inner if isinstance(inner, dict) else record


def _lines(item: Input, config: TableConfig, problems: Problems) -> Iterator[PlacedRecord]:
    pairs = read_pairs(item, DataConfig(train="", text=config.text or "", target=config.target), problems)
    return ((f"{item.name}:{pair.line}", {"source": pair.text, "target": pair.target}) for pair in pairs)


def _texts(item: Input, role: str, problems: Problems) -> Iterator[PlacedRecord]:
    """Yields a text for each line, to predict from."""
    for number, line in read_lines(item, problems):
        if line is not None:
            yield f"{item.name}:{number}", {role: line.rstrip("\r\n")}
