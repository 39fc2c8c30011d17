"""Formats of text that say themselves what is what: folders of labels, CoNLL columns, SQuAD, gettext."""

import os
import re
from collections import Counter
from collections.abc import Iterator
from typing import Any

from lmkit.base.errors import DataError
from lmkit.data.encodings import settle_encodings
from lmkit.data.html import text_of_html
from lmkit.data.inputs import Input, Problems
from lmkit.data.lines import BROKEN, guarded, read_lines
from lmkit.recipe.tasks import TableConfig

PlacedRecord = tuple[str, dict[str, Any]]
UNLABELLED = "files without a label (in `unsup`)"
TEXTS = (".txt", ".txt.gz", ".txt.zst")
SPLITS = {"train", "test", "dev", "val", "valid", "validation"}


def label_folders(folder: str, config: TableConfig) -> list[str]:
    """Returns the sub-folders of labels, sorted; none when `folder` is a file, or holds no texts in sub-folders.

    Raises DataError when the sub-folders are splits and not labels."""
    if not os.path.isdir(folder):
        return []
    names = sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and not entry.name.startswith("."))
    labels = [name for name in names if next(_texts_in(os.path.join(folder, name), config), None)]
    if splits := [name for name in labels if name.lower() in SPLITS]:
        raise DataError(
            f"{folder} holds splits, and the folders of labels inside them: {', '.join(splits)}\n"
            f"  → name one of them: {os.path.join(folder, splits[0])}"
        )
    return labels


def _texts_in(folder: str, config: TableConfig) -> Iterator[str]:
    for here, folders, files in os.walk(folder):
        folders.sort()
        yield from (os.path.join(here, name) for name in sorted(files) if name.endswith((*TEXTS, *config.text_files)))


def folder_records(folder: str, config: TableConfig, problems: Problems) -> Iterator[PlacedRecord]:
    """Yields a text for each file of text, with the sub-folder it is in as its label (IMDB, Maas et al. 2011)."""
    labels = {name: label for label in label_folders(folder, config) for name in
              _texts_in(os.path.join(folder, label), config)}  # fmt: skip
    for unlabelled in [name for name, label in labels.items() if label == "unsup"]:
        problems.add(UNLABELLED, unlabelled)
        del labels[unlabelled]
    for item in settle_encodings([Input(name, encoding=config.encoding) for name in labels]):
        item.look()
        lines = [line for _, line in guarded(item, read_lines(item, problems), problems)]
        if item.whole:
            text = "".join(line or "" for line in lines)
            is_page = item.name.endswith((".html", ".htm"))
            yield f"{item.name}:1", {"text": text_of_html(text) if is_page else text, "label": labels[item.name]}


METADATA = re.compile(r"# +(?:[\w.:-]+ *=|(?:newdoc|newpar)\b)")  # of CoNLL-U, where it stands before a sentence
COMMENTS, RAGGED = "lines of comments", "sentences with a line of another number of columns"
CONLLU = ("id", "form", "lemma", "upos", "xpos", "feats", "head", "deprel", "deps", "misc")
NEVER_BLANK = frozenset(("upos", "xpos", "head", "deprel"))  # `_` there: it was not annotated


def conll_records(item: Input, labelled: bool, problems: Problems) -> Iterator[PlacedRecord]:
    """Yields sentences out of a word a line, its tag in the last column, and a blank line after each. Columns lie
    between tabs, in files that have any, else between spaces. CoNLL-U gives its columns by their names, as lists.

    A line with # is a comment only before a sentence, where it is metadata or has another number of columns. Sentences
    with any other line of another number of columns are counted. Raises DataError where no line has a tag."""
    lines = [(number, (line or "").rstrip("\r\n")) for number, line in read_lines(item, problems)]
    tabs = any("\t" in line for _, line in lines if not line.startswith("#"))
    rows = [(number, line, _cells(line, tabs)) for number, line in lines]
    sure = [cells for _, line, cells in rows
            if cells and not cells[0].startswith(("#", "-DOCSTART-")) and tabs == ("\t" in line)]  # fmt: skip
    width = Counter(map(len, sure)).most_common(1)[0][0] if sure else 1 + labelled
    known = {cells[-1] for cells in sure}
    universal = tabs and width == len(CONLLU) and all(re.fullmatch(r"\d+([-.]\d+)?", cells[0]) for cells in sure)
    if width < 2 and labelled:
        number = next(number for number, _, cells in rows if len(cells) == width)
        raise DataError(
            f"{item.name}:{number}: a word without a tag\n  allowed: a word and its tag a line, between tabs"
        )
    start, sentence, ragged = 0, list[list[str]](), 0
    for number, line, cells in [*rows, (0, "", [])]:
        if tabs and "\t" not in line and len(spaced := _cells(line, False)) == width and spaced[-1] in known:
            cells = spaced
        if not cells:
            if ragged:
                problems.add(RAGGED, f"{item.name}:{start} (line {ragged})")
            elif sentence:
                yield f"{item.name}:{start}", _conllu(sentence) if universal else _tagged(sentence)
            start, sentence, ragged = 0, [], 0
        elif cells[0].startswith("-DOCSTART-"):
            continue
        elif line.startswith("#") and not start and _is_comment(line, cells, width, known, tabs):
            problems.add(COMMENTS, f"{item.name}:{number}", lost=False)
        elif universal and not cells[0].isdigit() and len(cells) == width:
            kind = "ranges of CoNLL-U, whose words are read" if "-" in cells[0] else "empty nodes of CoNLL-U"
            problems.add(kind, f"{item.name}:{number}", lost=False)
        elif len(cells) == width and cells[0] and cells[-1]:
            start = start or number
            sentence.append(cells)
        else:
            start, ragged = start or number, ragged or number


def is_conll(item: Input) -> bool:
    """Returns whether a file of plain text to predict from holds a word a line: its lines have one number of columns,
    and blank lines between them or tags of entities at their ends. Sentences a line are seldom all of one length."""
    ignored = Problems()
    lines = [(line or "").rstrip("\r\n") for _, line in guarded(item, read_lines(item, ignored), ignored)]
    rows = [_cells(line, "\t" in line) for line in lines if not line.startswith(("# ", "-DOCSTART-"))]
    words = [cells for cells in rows if cells]
    blank = [] in rows[: max((i for i, cells in enumerate(rows) if cells), default=0)]
    tagged = all(len(cells) > 1 and re.fullmatch(r"O|[BIESLUM]-.+", cells[-1]) for cells in words)
    return len(words) > 1 and len(set(map(len, words))) == 1 and (blank or tagged)


def _is_comment(line: str, cells: list[str], width: int, known: set[str], tabs: bool) -> bool:
    """Returns whether a line with # before a sentence is a comment: metadata, too many or too few columns, or `# words`
    and no tag among them."""
    if len(cells) != width or METADATA.match(line):
        return True
    return width > 1 and not tabs and cells[0] == "#" and cells[-1] not in known


def _cells(line: str, tabs: bool) -> list[str]:
    """Returns the columns of a line; a blank one has none. U+00A0 and U+3000 are no separators, but parts of words."""
    if not line.strip(" \t"):
        return []
    return [cell.strip(" ") for cell in line.split("\t")] if tabs else re.split("[ \t]+", line.strip(" \t"))


def _tagged(sentence: list[list[str]]) -> dict[str, Any]:
    words = {"words": [cells[0] for cells in sentence]}
    return words | {"tags": [cells[-1] for cells in sentence]} if len(sentence[0]) > 1 else words


def _conllu(sentence: list[list[str]]) -> dict[str, Any]:
    columns = dict(zip(CONLLU, map(list, zip(*sentence, strict=True)), strict=True))
    return {name: None if name in NEVER_BLANK and "_" in values else values
            for name, values in columns.items()}  # fmt: skip


def squad_records(name: str, articles: list[dict[str, Any]], problems: Problems) -> Iterator[PlacedRecord]:
    """Yields the questions of SQuAD 1.1 and 2.0, with answers as datasets of the hub have them. Their place is their
    id."""
    for number, article in enumerate(articles, 1):
        paragraphs = article["paragraphs"]
        for position, paragraph in enumerate(paragraphs if isinstance(paragraphs, list) else [None], 1):
            questions = paragraph.get("qas") if isinstance(paragraph, dict) else None
            for question in questions if isinstance(questions, list) else [None]:
                if not isinstance(question, dict) or "question" not in question or "context" not in paragraph:
                    where = f"article {number}, paragraph {position}"
                    problems.add(BROKEN, f"{name} ({where}: a question or its text is missing)")
                    continue
                values = {key: question.get(key) for key in ("id", "question")} | {"title": article.get("title")}
                answers = [] if question.get("is_impossible") else question.get("answers", [])
                yield (
                    f"{name}:{question.get('id', number)}",
                    values | {"context": paragraph["context"], "answers": answers},
                )


ESCAPES = {"n": "\n", "t": "\t", "r": "\r"}  # any other character stands for itself
PO_LINE = re.compile(r'(?:(msgctxt|msgid|msgid_plural|msgstr|msgstr\[\d+\])\s*)?"((?:[^"\\]|\\.)*)"\s*')


def po_records(item: Input, problems: Problems) -> Iterator[PlacedRecord]:
    """Yields the translated messages of gettext, of plurals the first form; fuzzy, empty and obsolete ones are
    counted."""
    entry: dict[str, str] = {}
    start, fuzzy, field = 0, False, ""
    for number, line in [*read_lines(item, problems), (0, "")]:
        line = (line or "").strip()
        if line.startswith("#~"):
            if line.startswith("#~ msgid "):
                problems.add("obsolete messages", f"{item.name}:{number}")
            continue
        match = PO_LINE.fullmatch(line)
        begins = match is not None and match[1] in ("msgctxt", "msgid")
        ends = field.startswith("msgstr") and (line.startswith("#") or not line)
        if "msgid" in entry and (begins or ends or not number):
            yield from _message(item, start, entry, fuzzy, problems)
            entry, fuzzy, field = {}, False, ""
        if match and (match[1] or field):
            field = match[1] or field
            start = start if entry else number
            entry[field] = entry.get(field, "") + _unescaped(match[2])
        elif line.startswith("#,"):
            fuzzy = fuzzy or "fuzzy" in line
        elif line and not line.startswith("#"):
            problems.add(BROKEN, f"{item.name}:{number}")


def _unescaped(text: str) -> str:
    return re.sub(r"\\(.)", lambda match: ESCAPES.get(match[1], match[1]), text)


def _message(item: Input, line: int, entry: dict[str, str], fuzzy: bool, problems: Problems) -> Iterator[PlacedRecord]:
    where, source = f"{item.name}:{line}", entry.get("msgid", "")
    target = entry.get("msgstr", entry.get("msgstr[0]", ""))
    if not source:  # the header
        return
    if fuzzy:
        problems.add("fuzzy messages", where)
    elif not target:
        problems.add("messages without a translation", where)
    else:
        yield where, {"source": source, "target": target}
