"""Writes files into the tables of a knowledge base, in bounded memory."""

import json
import os
import sqlite3
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import islice
from pathlib import Path

from lmkit.base.display import Meter
from lmkit.base.files import sha256
from lmkit.data.inputs import Input, Problems
from lmkit.data.lines import UNREADABLE
from lmkit.kb.lookup import fold, key_of
from lmkit.kb.sources import KnowledgeRow, read_rows

APPLICATION, VERSION = 0x6C6D6B62, 2  # written into the file; the first is "lmkb"
BATCH = 20_000  # rows in memory at a time

SCHEMA = f"""
PRAGMA application_id = {APPLICATION}; PRAGMA user_version = {VERSION};
CREATE TABLE sources(id INTEGER PRIMARY KEY, file TEXT UNIQUE, sha256 TEXT, rows INTEGER, kinds TEXT);
CREATE TABLE relations(id INTEGER PRIMARY KEY, name TEXT UNIQUE);
CREATE TABLE triples(
    id INTEGER PRIMARY KEY, key INTEGER, subject TEXT, relation INTEGER, object TEXT, source INTEGER, line INTEGER);
CREATE TABLE aliases(key INTEGER, name TEXT, subject TEXT, source INTEGER);
CREATE TABLE phrases(relation TEXT, phrase TEXT, source INTEGER);
CREATE TABLE passages(id INTEGER PRIMARY KEY, title TEXT, text TEXT, fact INTEGER, source INTEGER, line INTEGER);
CREATE VIRTUAL TABLE passage_index USING fts5(
    title, text, content='passages', content_rowid='id', tokenize='porter unicode61 remove_diacritics 2');
"""
INDEXES = """
CREATE INDEX IF NOT EXISTS triples_by_name ON triples(key, relation);
CREATE INDEX IF NOT EXISTS aliases_by_name ON aliases(key);
"""


@dataclass
class Added:
    """What a build or an addition did."""

    rows: Counter[str] = field(default_factory=Counter)  # the number of new rows of each kind
    known: list[str] = field(default_factory=list)  # files that the knowledge base already held
    replaced: list[str] = field(default_factory=list)  # files that had changed since they were added
    problems: Problems = field(default_factory=Problems)


def fill_database(db: sqlite3.Connection, items: list[Input], title: str) -> Added:
    """Adds all rows of these files, inside the transaction that the caller began. title: that of the progress meter."""
    added = Added()
    relations: dict[str, int] = dict(db.execute("SELECT name, id FROM relations"))
    before = 0
    with Meter(title, sum(item.size for item in items)) as meter:
        for item in items:
            report = lambda n, item=item, before=before: meter.update(before + item.done, f"{n:,} rows")
            _add_file(db, item, added, relations, report)
            before += item.size
    return added


def _add_file(
    db: sqlite3.Connection, item: Input, added: Added, relations: dict[str, int], report: Callable[[int], None]
) -> None:
    name = os.fsencode(Path(item.name).resolve()).decode(errors="replace")
    try:
        digest = sha256(Path(item.name))
    except OSError as e:
        added.problems.add(UNREADABLE, f"{item.name} ({e.strerror})")
        return
    if db.execute("SELECT 1 FROM sources WHERE sha256 = ?", (digest,)).fetchone():
        added.known.append(item.name)
        return
    if old := db.execute("SELECT id FROM sources WHERE file = ?", (name,)).fetchone():
        _forget(db, old[0])
        added.replaced.append(item.name)
    source = db.execute("INSERT INTO sources(file, sha256) VALUES (?, ?)", (name, digest)).lastrowid
    (last,) = db.execute("SELECT coalesce(max(id), 0) FROM passages").fetchone()
    kinds, rows = Counter[str](), read_rows(item, added.problems)
    while batch := list(islice(rows, BATCH)):
        for kind, insert in INSERTS.items():
            if chosen := [row for row in batch if row.kind == kind]:
                insert(db, chosen, source, relations)
                kinds[kind] += len(chosen)
        report(sum((added.rows + kinds).values()))
    db.execute(
        "INSERT INTO passage_index(rowid, title, text) SELECT id, spaced(title), spaced(text) FROM passages"
        " WHERE id > ?", (last,)
    )  # fmt: skip
    written = (kinds.total(), json.dumps(kinds), source)
    db.execute("UPDATE sources SET rows = ?, kinds = ? WHERE id = ?", written)
    added.rows += kinds


def _forget(db: sqlite3.Connection, source: int) -> None:
    db.execute(
        "INSERT INTO passage_index(passage_index, rowid, title, text) "
        "SELECT 'delete', id, spaced(title), spaced(text) FROM passages WHERE source = ?", (source,)
    )  # fmt: skip
    for table in ("triples", "aliases", "phrases", "passages"):
        db.execute(f"DELETE FROM {table} WHERE source = ?", (source,))
    db.execute("DELETE FROM sources WHERE id = ?", (source,))


@lru_cache(1 << 16)
def _key(name: str) -> int:
    return key_of(fold(name))


def _triples(db: sqlite3.Connection, rows: list[KnowledgeRow], source: int | None, relations: dict[str, int]) -> None:
    for name in {row.values[1] for row in rows} - relations.keys():
        relations[name] = db.execute("INSERT INTO relations(name) VALUES (?)", (name,)).lastrowid or 0
    db.executemany(
        "INSERT INTO triples(key, subject, relation, object, source, line) VALUES (?, ?, ?, ?, ?, ?)",
        ((_key(s), s, relations[r], o, source, row.line) for row in rows for s, r, o in (row.values,)),
    )


def _aliases(db: sqlite3.Connection, rows: list[KnowledgeRow], source: int | None, relations: dict[str, int]) -> None:
    values = ((_key(row.values[0]), *row.values, source) for row in rows)
    db.executemany("INSERT INTO aliases(key, name, subject, source) VALUES (?, ?, ?, ?)", values)


def _phrases(db: sqlite3.Connection, rows: list[KnowledgeRow], source: int | None, relations: dict[str, int]) -> None:
    values = ((*row.values, source) for row in rows)
    db.executemany("INSERT INTO phrases(relation, phrase, source) VALUES (?, ?, ?)", values)


def _passages(db: sqlite3.Connection, rows: list[KnowledgeRow], source: int | None, relations: dict[str, int]) -> None:
    db.executemany(
        "INSERT INTO passages(title, text, fact, source, line) VALUES (?, ?, ?, ?, ?)",
        ((*row.values, int(row.kind == "facts"), source, row.line) for row in rows),
    )


INSERTS: dict[str, Callable[[sqlite3.Connection, list[KnowledgeRow], int | None, dict[str, int]], None]] = {
    "triples": _triples, "aliases": _aliases, "phrases": _phrases, "passages": _passages, "facts": _passages,
}  # fmt: skip
