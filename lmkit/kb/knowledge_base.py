"""A knowledge base in one SQLite file: finds triples by the names in a question, and passages by BM25.

    sources    the files it holds, by their sha256: adding one again does nothing, a changed one replaces its rows
    triples    (subject, relation, object); `key` stands for the folded subject (`lookup.key_of`)
    aliases    other names of subjects     phrases   other ways to say a relation
    passages   texts, and questions with their answers (`fact`); passage_index is their full-text index (FTS5, with
               Porter's stems), which keeps no second copy of them

A build is written beside its place and then renamed, and an addition is one transaction, so a process that is killed
leaves nothing."""

import hashlib
import json
import re
import sqlite3
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from lmkit.base.errors import DataError, StorageError, UserError
from lmkit.base.files import replacing
from lmkit.kb.lookup import (
    STOP,
    UNSPACED,
    UNSPACED_CHARACTER,
    Lookup,
    Matcher,
    Option,
    compounds,
    content,
    fold,
    key_of,
    proper_names,
    relation_words,
    same_compounds,
    spaced,
    tokens,
)
from lmkit.kb.sources import knowledge_files
from lmkit.kb.writing import APPLICATION, INDEXES, SCHEMA, VERSION, Added, fill_database

LONGEST_NAME = 24  # tokens of a name that are looked up: words, or characters of scripts without spaces
MOST_OBJECTS = 50  # objects in one answer; a longer list ends with an ellipsis
MOST_NAMESAKES = 20  # the most subjects of one alias
MOST_RELATIONS = 500  # the most relations of a subject that are read
MOST_WORDS = 64  # the most words of a question that are searched for
SEARCHED = 20  # passages among which facts are looked for

# Finds each relation of a subject by one step in the index, so that subjects with millions of triples are not slower.
RELATIONS_OF = f"""
WITH RECURSIVE of(r) AS (
    SELECT min(relation) FROM triples WHERE key = :key
    UNION ALL SELECT (SELECT min(relation) FROM triples WHERE key = :key AND relation > r) FROM of WHERE r IS NOT NULL)
SELECT r FROM of WHERE r IS NOT NULL LIMIT {MOST_RELATIONS}
"""


@dataclass(frozen=True)
class Passage:
    title: str
    text: str
    source: str  # file and line
    score: float  # BM25; larger is better
    fact: bool = False  # whether the title is a question and the text its answer


class KnowledgeBase:
    """An open knowledge base.

    Raises DataError for a file that is no knowledge base, and StorageError for one that cannot be read."""

    def __init__(self, path: Path | str):
        self.path = Path(path)
        if not self.path.is_file():
            raise DataError(f"{path}: no such knowledge base\n  → lmkit kb build {path} FILES")
        with told(self.path):
            self.db = _connect(self.path, "rw")
            named = [self.db.execute(f"PRAGMA {key}").fetchone()[0] for key in ("application_id", "user_version")]
        if named != [APPLICATION, VERSION]:
            what = (
                "a knowledge base of another version" if named[0] == APPLICATION else "no knowledge base, but SQLite's"
            )
            raise DataError(f"{path}: {what}\n  → build one: lmkit kb build OUT.sqlite FILES")
        self._wordings = lru_cache(1 << 16)(self._find_wordings)
        self._has_facts = bool(self.counts()["facts"])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, e: BaseException | None, trace: TracebackType | None) -> None:
        self.db.close()

    @property
    def fingerprint(self) -> str:
        """Returns the sha256 over the checksums of all files that it holds."""
        sums = self._all("SELECT sha256 FROM sources ORDER BY sha256")
        return hashlib.sha256("".join(s for (s,) in sums).encode()).hexdigest()

    def _all(self, sql: str, *values: Any) -> list[Any]:
        with told(self.path):
            return self.db.execute(sql, values).fetchall()

    # ---- look up

    def lookup(self, question: str, matcher: Matcher | None = None, most: int = 5) -> list[Lookup]:
        """Returns the `most` best answers out of triples and facts, best first."""
        options = self.options(question)
        scores = (matcher or Matcher()).scores(tokens(question), options)
        best = sorted(range(len(options)), key=lambda i: -scores[i])
        return [candidate(options[i], float(scores[i])) for i in best[:most]]

    def options(self, question: str) -> list[Option]:
        """Returns every relation of every subject that the question names, and facts with a similar question."""
        words = tokens(question)
        triples = [
            option
            for start, end in self._spans(words, compounds(question) + proper_names(question))
            for option in self._of_name(question, words, start, end)
        ]
        return triples + self._facts(question)

    def _spans(self, words: list[str], compounds: list[tuple[int, int]]) -> list[tuple[int, int]]:
        """Returns where the question has names of subjects, as (first word, last word + 1).

        Left out are names inside a longer name, names that begin or end inside `compounds` (what is written as one word
        or one name), and single function words."""
        inside = {i for first, end in compounds for i in range(first + 1, end)}
        taken: list[tuple[int, int]] = []
        for length in range(min(LONGEST_NAME, len(words)), 0, -1):
            for start in range(len(words) - length + 1):
                end = start + length
                if (length == 1 and words[start] in STOP) or any(a <= start and end <= b for a, b in taken):
                    continue
                if start in inside or end in inside:
                    continue
                key = key_of(" ".join(words[start:end]))
                known = (
                    "SELECT EXISTS(SELECT 1 FROM triples WHERE key=?1) OR EXISTS(SELECT 1 FROM aliases WHERE key=?1)"
                )
                if self._all(known, key)[0][0]:
                    taken.append((start, end))
        return sorted(taken)

    def _of_name(self, question: str, words: list[str], start: int, end: int) -> list[Option]:
        name = " ".join(words[start:end])
        named = f"SELECT name, subject FROM aliases WHERE key=? LIMIT {MOST_NAMESAKES}"
        aliases = {subject: alias for alias, subject in self._all(named, key_of(name)) if fold(alias) == name}
        subjects = {fold(subject): alias for subject, alias in aliases.items()} | {name: ""}
        rows = [(alias, *rest) for folded, alias in subjects.items() for rest in self._of_subject(folded)]
        shared = max(1, len({fold(subject) for _, subject, *_ in rows}))
        return [
            Option(
                start, end, subject, relation, objects, source, self._wordings(relation),
                exact=(alias or subject) in question, shared=shared,
            )
            for alias, subject, relation, objects, source in rows
        ]  # fmt: skip

    def _of_subject(self, folded: str) -> Iterator[tuple[str, str, tuple[str, ...], str]]:
        """Yields (subject, relation, objects, source of the first object) for each relation of a subject."""
        sql = f"""SELECT t.subject, r.name, t.object, s.file, t.line FROM triples t
            JOIN relations r ON r.id = t.relation JOIN sources s ON s.id = t.source
            WHERE t.key = ? AND t.relation = ? ORDER BY t.id LIMIT {MOST_OBJECTS + 1}"""
        key = key_of(folded)
        with told(self.path):
            relations = self.db.execute(RELATIONS_OF, {"key": key}).fetchall()
        for (relation,) in relations:
            rows = [row for row in self._all(sql, key, relation) if fold(row[0]) == folded]
            if rows:
                objects = tuple(dict.fromkeys(row[2] for row in rows))
                yield rows[0][0], rows[0][1], objects, _place(rows[0][3], rows[0][4])

    def _find_wordings(self, relation: str) -> tuple[frozenset[str], ...]:
        phrases = [content(tokens(p)) for (p,) in self._all("SELECT phrase FROM phrases WHERE relation=?", relation)]
        return (relation_words(relation), *phrases)

    def _facts(self, question: str) -> list[Option]:
        if not self._has_facts:
            return []
        question_words = content(tokens(question))
        options = []
        for fact in self.search(question, SEARCHED):
            fact_words = content(tokens(fact.title))
            if fact.fact and question_words & fact_words and same_compounds(question, fact.title):
                likeness = 2 * len(question_words & fact_words) / (len(question_words) + len(fact_words))
                options.append(Option(0, 0, fact.title, "answer", (fact.text,), fact.source, (), True, 1, likeness))
        return options

    def search(self, query: str, k: int = 5) -> list[Passage]:
        """Returns the `k` passages with the highest BM25 score (k1 = 1.2, b = 0.75, title and text as one), best
        first."""
        words = list(dict.fromkeys(_search_words(query)))
        words = [w for w in words if w.casefold() not in STOP] or words
        if not words or k < 1:
            return []
        either = " OR ".join(f'"{w}"' for w in words[:MOST_WORDS])  # quotes keep words from being operators
        sql = """SELECT p.title, p.text, s.file, p.line, found.score, p.fact FROM
            (SELECT rowid AS id, rank AS score FROM passage_index
             WHERE passage_index MATCH ? ORDER BY rank LIMIT ?) found
            JOIN passages p ON p.id = found.id JOIN sources s ON s.id = p.source ORDER BY found.score, p.id"""
        return [
            Passage(title, text, _place(file, line), -score, bool(fact))
            for title, text, file, line, score, fact in self._all(sql, either, k)
        ]

    # ---- count

    def counts(self) -> Counter[str]:
        """Returns the number of rows of each kind."""
        total = Counter[str]()
        for (kinds,) in self._all("SELECT kinds FROM sources"):
            total.update(json.loads(kinds))
        return total

    def stats(self) -> dict[str, Any]:
        """Returns counts, the most frequent relations, and the files. It reads the whole index."""
        relations = """SELECT name, count(*) FROM triples t JOIN relations r ON r.id = t.relation
            GROUP BY relation ORDER BY 2 DESC, 1 LIMIT 20"""
        files = self._all("SELECT file, rows, sha256 FROM sources ORDER BY file")
        return {
            "kb": str(self.path), "bytes": self.path.stat().st_size, "rows": dict(self.counts()),
            "subjects": self._all("SELECT count(DISTINCT key) FROM triples")[0][0],
            "relations": dict(self._all(relations)),
            "sources": [{"file": file, "rows": rows, "sha256": sha} for file, rows, sha in files],
        }  # fmt: skip

    # ---- write

    def add(self, patterns: Sequence[str], encoding: str = "utf-8") -> Added:
        """Adds files, in one transaction.

        Files that it already holds are left out, and the rows of a changed file replace its old rows. Raises DataError
        as `sources.read_rows` does; then nothing is changed."""
        items = knowledge_files(list(patterns), encoding)
        with told(self.path):
            self.db.execute("BEGIN IMMEDIATE")
            try:
                added = fill_database(self.db, items, "kb add")
                self.db.execute("COMMIT")
            except BaseException:
                if self.db.in_transaction:
                    self.db.execute("ROLLBACK")
                raise
        self._wordings.cache_clear()
        self._has_facts = bool(self.counts()["facts"])
        return added


def build_knowledge_base(path: Path, patterns: Sequence[str], encoding: str = "utf-8") -> Added:
    """Builds a new knowledge base out of files.

    Raises UserError where `path` exists already, StorageError where it cannot be written, and DataError as
    `KnowledgeBase.add` does, or where the files hold no rows."""
    if path.exists():
        raise UserError(f"{path}: is there already\n  → lmkit kb add {path} FILES, or build under another name")
    if not path.parent.is_dir():
        raise StorageError(f"{path.parent}: no such folder\n  → make it, or name another place")
    items = knowledge_files(list(patterns), encoding)
    with replacing(path) as part, told(path):
        db = _connect(part, "rw")
        try:  # nobody reads the file yet, and a broken build is deleted, so journal and flushing are not needed
            db.executescript("PRAGMA journal_mode=OFF; PRAGMA synchronous=OFF; PRAGMA locking_mode=EXCLUSIVE;" + SCHEMA)
            db.execute("BEGIN")
            added = fill_database(db, items, "kb build")
            db.execute("COMMIT")
            if not added.rows:
                places = added.problems.examples.items()
                raise DataError(
                    "".join(f"{added.problems.counts[kind]:,} {kind}, like {at[0]}\n" for kind, at in places)
                    + f"{path}: the files hold no rows\n  → repair them, or name others"
                )
            db.executescript(INDEXES + "INSERT INTO passage_index(passage_index) VALUES('optimize')")
        finally:
            db.close()
    return added


def _search_words(query: str) -> Iterator[str]:
    """Yields the words of a query; for scripts without spaces, each two neighbouring characters as a phrase."""
    for word in re.findall(r"[^\W_]+", spaced(query)):
        if not UNSPACED_CHARACTER.match(word):
            yield word
    for run in re.findall(f"[{UNSPACED}]+", query):
        yield from (f"{a} {b}" for a, b in pairwise(run)) if len(run) > 1 else [run]


def candidate(option: Option, score: float) -> Lookup:
    shown, objects = option.objects, option.objects[:MOST_OBJECTS]
    answer = ", ".join(objects) + (", …" if len(shown) > len(objects) else "")
    if option.likeness:
        return Lookup(answer, score, f"fact “{option.subject}”", option.source, objects)
    return Lookup(answer, score, f"triple ({option.subject}, {option.relation}, {answer})", option.source, objects)


def shown(text: str) -> str:
    """Returns the text on one line, without the control characters that could change a terminal."""
    return "".join(c if c.isprintable() else " " for c in " ".join(text.split()))


@contextmanager
def told(path: Path) -> Iterator[None]:
    """Raises SQLite's errors in a `with` block as StorageError and DataError."""
    try:
        yield
    except sqlite3.OperationalError as e:
        busy = "\n  → another process writes to it: wait for that" if "locked" in str(e) else ""
        raise StorageError(f"{path}: {e}{busy}") from e
    except sqlite3.DatabaseError as e:
        raise DataError(f"{path}: {e}\n  → it is damaged, or no knowledge base: lmkit kb build makes one") from e


def _connect(path: Path, mode: str) -> sqlite3.Connection:
    """Opens a database. mode: SQLite's; rw lets it roll back what a killed addition left, and falls back to reading
    where it may not write."""
    db = sqlite3.connect(f"{path.resolve().as_uri()}?mode={mode}", uri=True, isolation_level=None, timeout=30)
    db.execute("PRAGMA cache_size = -200000")
    db.create_function("spaced", 1, spaced, deterministic=True)
    return db


def _place(file: str, line: int) -> str:
    return f"{Path(file).name} line {line}"
