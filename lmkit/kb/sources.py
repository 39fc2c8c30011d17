"""Reads files of knowledge as a stream of rows, in bounded memory: triples, aliases, phrases, passages and facts."""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from lmkit.base.display import note
from lmkit.base.errors import DataError
from lmkit.data.encodings import settle_encodings
from lmkit.data.inputs import Input, Problems, list_files
from lmkit.data.lines import guarded, not_unicode, read_lines
from lmkit.data.records import read_records
from lmkit.kb.graphs import RDF, is_wikidata, label_of, read_entity, read_rdf
from lmkit.recipe.recipe_file import build_recipe
from lmkit.recipe.sources import SourcesConfig

ALLOWED = (
    ".csv, .tsv, .xlsx, .jsonl, .json, .parquet, .arrow, .feather, .txt, .gz or .zst of these; .ttl, .nt, .n3, .rdf,"
    " .owl, .jsonld"
)
PASSAGE = 2000  # characters; longer passages are cut at the end of a sentence
BORDER = re.compile(r"(?<=[.!?。])\s")
MISSING, UNDECODABLE, OTHER = "rows with an empty field", "undecodable rows", "records of another kind"


@dataclass(frozen=True)
class KnowledgeColumns:
    kind: str
    roles: dict[str, tuple[str, ...]]  # role -> names of columns, in lower case; the first that exists is used
    optional: str = ""  # a role that may be missing


def _layout(kind: str, optional: str = "", **roles: str) -> KnowledgeColumns:
    return KnowledgeColumns(kind, {role: tuple(names.split()) for role, names in roles.items()}, optional)


QUESTION, TITLE = "question query", "title heading"
LAYOUTS = (  # the first is used whose roles all have a column
    _layout("triples", subject="subject subj head head_entity s start source_entity",
            relation="relation predicate property rel p r edge", object="object obj tail tail_entity o end value"),
    _layout("passages", "title", title=TITLE, text="context passage paragraph"),  # lines of SQuAD
    _layout("facts", question=QUESTION, answer="answer answers response"),
    _layout("aliases", alias="alias aliases synonym", subject="name subject entity canonical"),
    _layout("phrases", relation="relation predicate property rel", phrase="phrase phrases wording"),
    _layout("passages", "title", title=TITLE, text="text passage content body abstract"),
)  # fmt: skip


class KnowledgeRow(NamedTuple):
    """A row of one kind. Its values are (subject, relation, object), (alias, subject), (relation, phrase), (title,
    text) or (question, answer)."""

    kind: str
    line: int
    values: tuple[str, ...]


def knowledge_files(patterns: list[str], encoding: str = "utf-8") -> list[Input]:
    """Returns the files that paths, folders and globs stand for, each once, sorted.

    Raises UserError for an encoding that is none, and DataError for a pattern that matches nothing and for kinds of
    files that cannot be read."""
    config = build_recipe(SourcesConfig, {"train": patterns, "encoding": encoding}, {}, where="lmkit kb")
    kind_of = lambda name: "rdf" if Path(name).suffix in RDF else Input(name).kind
    return settle_encodings(list_files(patterns, kind_of, ALLOWED, "is no kind of file that can be added", config))


def read_rows(item: Input, problems: Problems) -> Iterator[KnowledgeRow]:
    """Yields all rows of a file, and tells the user which columns are used. What cannot be used is counted in
    `problems`.

    Raises DataError where the columns fit no known layout, and for JSON that is damaged or of another shape."""
    if item.kind == "txt":
        yield from _paragraphs(item, problems)
        return
    if Path(item.name).suffix in RDF:
        yield from (KnowledgeRow(kind, 0, values) for kind, values in read_rdf(item.name))
        return
    if _is_wikidata_file(item):
        yield from _wikidata(item, problems)
        return
    chosen: dict[tuple[str, ...], tuple[KnowledgeColumns, list[int]] | None] = {}  # by columns: JSON may mix them
    for line, columns, values in _read_columns(item, problems):
        if columns not in chosen:
            layout = recognize_columns(columns)
            if layout is None and not chosen:
                raise _unknown(f"{item.name}:{line}", columns)
            if layout and layout not in chosen.values():
                named = zip(layout[0].roles, layout[1], strict=True)
                sources = ", ".join(f"{role} from `{columns[at]}`" for role, at in named if at >= 0)
                note(f"{item.name}: {layout[0].kind}: {sources}")
            chosen[columns] = layout
        layout = chosen[columns]
        if layout is None:
            problems.add(OTHER, f"{item.name}:{line} (columns: {', '.join(columns)})")
            continue
        kind, optional = layout[0].kind, layout[0].optional
        texts = [_texts(values[at]) if at >= 0 else [] for at in layout[1]]
        if optional:
            texts[0] = texts[0][:1] or [""]
        if not all(texts):
            problems.add(MISSING, f"{item.name}:{line}")
        elif any(not_unicode(text) is not None for group in texts for text in group if not text.isascii()):
            problems.add(UNDECODABLE, f"{item.name}:{line}")
        else:
            yield from _rows(kind, texts, line)


def _entities(item: Input, problems: Problems) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yields the entities of a file of Wikidata's JSON, each with its line."""
    for line, record in read_records(item, problems, lambda where, names: names):
        if is_wikidata(record):
            yield line, record
        else:
            problems.add(OTHER, f"{item.name}:{line}")


def _is_wikidata_file(item: Input) -> bool:
    """Says whether the first record of a file of JSON is an entity of Wikidata."""
    if item.kind not in ("json", "jsonl"):
        return False
    first = next(read_records(replace(item), Problems(), lambda where, names: names), None)
    return first is not None and is_wikidata(first[1])


def _wikidata(item: Input, problems: Problems) -> Iterator[KnowledgeRow]:
    """Yields the statements of the entities in a file, which is read twice: once for the names that ids stand for."""
    labels = {str(record["id"]): label_of(record) for _, record in _entities(replace(item), Problems())}
    for line, record in _entities(item, problems):
        yield from (KnowledgeRow(kind, line, values) for kind, values in read_entity(record, labels))


def _read_columns(item: Input, problems: Problems) -> Iterator[tuple[int, tuple[str, ...], list[Any]]]:
    """Yields (line, names of columns, their values) of each record; for SQuAD's articles, of each paragraph.

    Raises DataError for a header that fits no known layout, or that names a used column twice."""

    def header(where: str, names: list[str]) -> list[str]:
        layout = recognize_columns(names)
        if layout is None:
            raise _unknown(item.name, names)
        if repeated := [names[at] for at in layout[1] if names.count(names[at]) > 1]:
            raise DataError(
                f"{where}: {names.count(repeated[0])} columns are called `{repeated[0]}`\n  → rename all but one"
            )
        return list(dict.fromkeys(names))

    for line, record in read_records(item, problems, header):
        if not isinstance(record.get("paragraphs"), list):
            yield line, tuple(record), list(record.values())
            continue
        for paragraph in record["paragraphs"]:
            context = paragraph.get("context") if isinstance(paragraph, dict) else None
            yield line, ("title", "context"), [record.get("title"), context]


def recognize_columns(columns: Sequence[str]) -> tuple[KnowledgeColumns, list[int]] | None:
    """Returns the layout that the columns fit, and the place of each role's column, or None where they fit none.

    The place is -1 for an optional role without a column."""
    place_of = {column.strip().lower(): at for at, column in reversed(list(enumerate(columns)))}
    for layout in LAYOUTS:
        places = [next((place_of[name] for name in names if name in place_of), -1) for names in layout.roles.values()]
        if all(at >= 0 or role == layout.optional for at, role in zip(places, layout.roles, strict=True)):
            return layout, places
    return None


def _unknown(where: str, columns: Iterable[str]) -> DataError:
    return DataError(
        f"{where}: cannot tell what this holds (columns: {', '.join(columns)})\n"
        "  allowed: subject, relation, object; name, alias; relation, phrase; question, answer; title, text or text\n"
        "  → name the columns so; a table needs them in its first row"
    )


def _texts(value: Any) -> list[str]:
    """Returns the texts in a value: a text, a list, {"text": ...}, or lists of these. Numbers become texts."""
    if isinstance(value, str):
        return [value] if (value := value.strip()) else []
    if isinstance(value, dict):
        value = value.get("text", value.get("name"))
    if isinstance(value, list | tuple):
        return [text for v in value for text in _texts(v)]
    return [] if value is None else [str(value)]


def _rows(kind: str, texts: list[list[str]], line: int) -> Iterable[KnowledgeRow]:
    """Returns the rows of a record: one for each text where a role has several. texts: the texts of each role."""
    first, second = texts[0][0], texts[1]
    if kind == "triples":
        subject, relation = " ".join(first.split()), " ".join(second[0].split())
        return [KnowledgeRow(kind, line, (subject, relation, " ".join(text.split()))) for text in texts[2]]
    if kind == "passages":
        return _passages(first, "\n".join(second), line)
    if kind == "facts":
        return [KnowledgeRow(kind, line, (first, second[0]))]  # several answers are different spellings of one
    return [KnowledgeRow(kind, line, (one, other)) for one in texts[0] for other in second]


def _passages(title: str, text: str, line: int) -> Iterator[KnowledgeRow]:
    while len(text) > PASSAGE:
        borders = [m.end() for m in BORDER.finditer(text, PASSAGE // 4, PASSAGE)]
        end = borders[-1] if borders else text.rfind(" ", 1, PASSAGE) + 1 or PASSAGE
        yield KnowledgeRow("passages", line, (title, text[:end].strip()))
        text = text[end:]
    if text.strip():
        yield KnowledgeRow("passages", line, (title, text.strip()))


def _paragraphs(item: Input, problems: Problems) -> Iterator[KnowledgeRow]:
    """Yields the paragraphs of a text file, which are separated by blank lines, with the file's name as their title."""
    title, lines, start, size = Path(item.name.removesuffix(item.packing)).stem, list[str](), 1, 0

    def out() -> Iterator[KnowledgeRow]:
        text = " ".join(lines)
        if not_unicode(text) is not None:
            problems.add(UNDECODABLE, f"{item.name}:{start}")
        else:
            yield from _passages(title, text, start)

    for number, line in guarded(item, read_lines(item, problems), problems):
        text = (line or "").strip()
        if text and size < 100 * PASSAGE:  # limits the part of a paragraph that is in memory
            start = start if lines else number
            lines.append(text)
            size += len(text)
            continue
        yield from out()
        lines, start, size = [text] if text else [], number, len(text)
    yield from out()
