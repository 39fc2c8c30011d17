"""Formats of text that say themselves what is what: folders of labels, CoNLL columns, SQuAD, gettext."""

import os
import re
from collections import Counter
from collections.abc import Iterator
from typing import Any

from lmkit.data.inputs import Input, Problems
from lmkit.data.readers import BROKEN, guarded, read_lines
from lmkit.errors import DataError

Record = tuple[str, dict[str, Any]]
UNLABELLED = "files without a label (in `unsup`)"
TEXTS = (".txt", ".txt.gz", ".txt.zst")
SPLITS = {"train", "test", "dev", "val", "valid", "validation"}


def label_folders(folder: str) -> list[str]:
    """The sub-folders of labels, sorted; none when `folder` is a file, or holds no texts in sub-folders.

    Raises DataError when the sub-folders are splits and not labels."""
    if not os.path.isdir(folder):
        return []
    names = sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and not entry.name.startswith("."))
    labels = [name for name in names if next(_texts_in(os.path.join(folder, name)), None)]
    if splits := [name for name in labels if name.lower() in SPLITS]:
        raise DataError(
            f"{folder} holds splits, and the folders of labels inside them: {', '.join(splits)}\n"
            f"  → name one of them: {os.path.join(folder, splits[0])}"
        )
    return labels


def _texts_in(folder: str) -> Iterator[str]:
    for here, folders, files in os.walk(folder):
        folders.sort()
        yield from (os.path.join(here, name) for name in sorted(files) if name.endswith(TEXTS))


def folder_records(folder: str, problems: Problems) -> Iterator[Record]:
    """Each .txt file is a text, and the sub-folder it is in its label (IMDB, Maas et al. 2011)."""
    for label in label_folders(folder):
        for name in _texts_in(os.path.join(folder, label)):
            if label == "unsup":
                problems.add(UNLABELLED, name)
                continue
            item = Input(name)
            item.look()
            lines = [line for _, line in guarded(item, read_lines(item, problems), problems)]
            if item.whole:
                yield f"{name}:1", {"text": "".join(line or "" for line in lines), "label": label}


def conll_records(item: Input, labelled: bool, problems: Problems) -> Iterator[Record]:
    """A word a line, its tag in the last column, a blank line after each sentence. Columns lie between tabs, in files
    that have any, else between spaces. Lines of comments (with a #, and no tag that other lines have) are counted.

    Raises DataError for a line with another number of columns than most have."""
    lines = [(number, (line or "").rstrip("\r\n")) for number, line in read_lines(item, problems)]
    tab = "\t" if any("\t" in line for _, line in lines if not line.startswith("#")) else None
    rows = [(number, line.split(tab) if line.strip() else []) for number, line in lines]
    sure = [cells for _, cells in rows if cells and not cells[0].startswith(("#", "-DOCSTART-"))]
    width = Counter(map(len, sure)).most_common(1)[0][0] if sure else 2
    known = {cells[-1] for cells in sure}
    if width < 2 and labelled:
        number = next(number for number, cells in rows if len(cells) == width)
        raise DataError(
            f"{item.name}:{number}: a word without a tag\n  allowed: a word and its tag a line, between tabs"
        )
    start, words, tags = 0, list[str](), list[str]()
    for number, cells in [*rows, (0, [])]:
        if cells and cells[0].startswith("-DOCSTART-"):
            continue
        if not cells:
            if words:
                yield f"{item.name}:{start}", {"words": words} | ({"tags": tags} if width > 1 else {})
            words, tags = [], []
        elif cells[0].startswith("#") and (len(cells) != width or cells[-1] not in known):
            problems.add("lines of comments", f"{item.name}:{number}")
        elif len(cells) == width and cells[0].strip() and cells[-1].strip():
            start = start if words else number
            words.append(cells[0].strip())
            tags.append(cells[-1].strip())
        else:
            raise DataError(
                f"{item.name}:{number}: {len(cells)} columns, where most lines have {width}\n"
                "  → each line has a word first and its tag last; a blank line ends a sentence"
            )


def squad_records(name: str, articles: list[dict[str, Any]], problems: Problems) -> Iterator[Record]:
    """The questions of SQuAD 1.1 and 2.0, with answers as datasets of the hub have them. Their place is their id."""
    for number, article in enumerate(articles, 1):
        try:
            for paragraph in article["paragraphs"]:
                for question in paragraph["qas"]:
                    answers = [] if question.get("is_impossible") else question.get("answers", [])
                    yield (
                        f"{name}:{question.get('id', number)}",
                        {
                            "id": question.get("id"),
                            "title": article.get("title"),
                            "context": paragraph["context"],
                            "question": question["question"],
                            "answers": answers,
                        },
                    )
        except (KeyError, TypeError, AttributeError) as e:
            problems.add(BROKEN, f"{name} (article {number}: {type(e).__name__} {e})")


ESCAPES = {"n": "\n", "t": "\t", "r": "\r"}  # any other character stands for itself
PO_LINE = re.compile(r'(?:(msgctxt|msgid|msgid_plural|msgstr|msgstr\[\d+\])\s*)?"((?:[^"\\]|\\.)*)"\s*')


def po_records(item: Input, problems: Problems) -> Iterator[Record]:
    """The translated messages of gettext: the first form of plurals; fuzzy, empty and obsolete ones are counted."""
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


def _message(item: Input, line: int, entry: dict[str, str], fuzzy: bool, problems: Problems) -> Iterator[Record]:
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
