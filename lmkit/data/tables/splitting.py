"""Cutting a table in two, and drawing rows from it: functions of the seed and the rows, the same on every machine."""

import hashlib
from collections import Counter
from typing import Any

from lmkit.base.errors import DataError
from lmkit.data.inputs import Problems
from lmkit.data.tables.labels import label_kind
from lmkit.data.tables.table import Row, Table, row_bytes
from lmkit.data.tables.task_tables import TABLES

NAMES = ("id", "title")  # roles that say which row it is, and not what is in it


def split(table: Table, share: float, seed: int, task: str, group: str | None = None) -> tuple[Table, Table]:
    """Returns the rows to train on and about `share` of the rows, held out; a share of 0 holds out none.

    Rows that read alike (`same_input`; for qa all of an article), or have the same in the column `group`, stay on one
    side. Of each class about `share` is held out, and at least one group of such rows on either side where it has two;
    what has the only words of a tag, or the only rows of one of several labels, is trained on. Raises DataError for
    rows that cannot be parted, all alike."""
    if share <= 0:
        return table, taken(table, [], Problems())
    groups = _shuffled_groups(table, seed, task, group)
    strata = _strata(table.rows, groups).values()
    chosen = [group for stratum in strata for group in _chosen(stratum, share)]
    held_out = {i for group in _learnable(table.rows, chosen) for i in group}
    return _parted(table, held_out or set(groups[0]))  # the second where every class has one group


def fold(table: Table, number: int, folds: int, seed: int, task: str, group: str | None = None) -> tuple[Table, Table]:
    """Returns the rows to train on, and those of fold `number` (from 1) of `folds`, held out.

    Each row is in one fold. What stays together is as for `split`; each class is dealt out evenly. Raises DataError
    where fewer rows than folds can be parted."""
    groups = _shuffled_groups(table, seed, task, group)
    if len(groups) < folds:
        raise DataError(
            f"cannot make {folds} folds: the {len(table.rows):,} rows are {len(groups)} groups that stay together"
            f" ({table.places[0]})\n  → fewer folds: data.fold=1/{len(groups)}"
        )
    held_out, sizes = set[int](), [0] * folds
    for stratum in _strata(table.rows, groups).values():
        own_sizes = [0] * folds
        for rows in sorted(stratum, key=len, reverse=True):
            smallest = min(range(folds), key=lambda i: (own_sizes[i], sizes[i]))
            own_sizes[smallest] += len(rows)
            sizes[smallest] += len(rows)
            if smallest == number - 1:
                held_out.update(rows)
    return _parted(table, held_out)


def _shuffled_groups(table: Table, seed: int, task: str, group: str | None) -> list[list[int]]:
    """Returns what `_groups` does in random order. Raises DataError for rows that cannot be parted, all alike."""
    groups = _groups(table, task, group)
    if len(groups) < 2:
        alike = "are about one text" if TABLES[task].by_article else "read the same"
        raise DataError(
            f"cannot hold out rows: all {len(table.rows):,} {alike}"
            f"{f' or share their {group}' if group else ''} ({table.places[0]})\n"
            "  → name files to validate on in data.validation, or set it to 0"
        )
    return sorted(groups, key=lambda group: _key(seed, table.rows[group[0]], group[0]))


def _parted(table: Table, held_out: set[int]) -> tuple[Table, Table]:
    train = [i for i in range(len(table.rows)) if i not in held_out]
    return taken(table, train, table.problems), taken(table, sorted(held_out), Problems())


def groups_held_out(table: Table, held_out: Table, group: str) -> str:
    """Returns how many of the values in the column `group` of a table are held out, with how many rows."""
    values = [[str(table.beside[place][group] or "") for place in part.places] for part in (table, held_out)]
    whole, apart = (len(set(column) - {""}) for column in values)
    without = f"; {values[0].count(''):,} rows have none and are held out by themselves" if "" in values[0] else ""
    return (
        f"data.group: {apart:,} of {whole:,} values of `{group}` are held out, {len(held_out.rows):,} of"
        f" {len(table.rows):,} rows{without}"
    )


def limit(table: Table, n: int, seed: int) -> Table:
    """Returns `n` rows drawn at random, in the order they had; all when there are no more, or `n` is 0."""
    if not 0 < n < len(table.rows):
        return table
    drawn = sorted(range(len(table.rows)), key=lambda i: _key(seed, table.rows[i], i))[:n]
    return taken(table, sorted(drawn), table.problems)


def same_input(row: Row, task: str) -> Any:
    """Returns what two rows that read alike share: a model that has seen one may know the other by heart."""
    # Conversations, many of which begin alike, have none of these roles.
    unread = (*NAMES, "references", TABLES[task].learnt)
    return {role: value for role, value in row.items() if role not in unread}


def _key(seed: int, value: Any, index: int) -> tuple[bytes, int]:
    """Returns keys for a random order of rows, in which equal rows keep the order of the table."""
    return hashlib.sha256(b"%d:" % seed + row_bytes(value)).digest(), index


def taken(table: Table, rows: list[int], problems: Problems) -> Table:
    """Returns a table of these rows, by their numbers."""
    taken, places = [table.rows[i] for i in rows], [table.places[i] for i in rows]
    return Table(taken, places, table.columns, table.format, problems, origins=table.origins)


def _groups(table: Table, task: str, group: str | None) -> list[list[int]]:
    """Returns the numbers of rows that stay together: those that read alike or are of one group, or, where shared texts
    make that a single one, those of one `group`; of questions those about articles of one title, or about texts that
    articles share, or about one text where that is a single group."""
    values = [table.beside[place][group] if group else None for place in table.places]
    named = [[("group", str(value))] if value not in (None, "") else [] for value in values]
    if not TABLES[task].by_article:
        inputs = [hashlib.sha256(row_bytes(same_input(row, task))).hexdigest() for row in table.rows]
        groups = _joined([[("input", digest), *keys] for digest, keys in zip(inputs, named, strict=True)])
        return groups if len(groups) > 1 or not group else _joined(named)
    titles = [[("title", row["title"])] if row["title"] else [] for row in table.rows]
    texts = [[("context", row["context"]), *keys] for row, keys in zip(table.rows, named, strict=True)]
    groups = _joined([[*keys, *title] for keys, title in zip(texts, titles, strict=True)])
    return groups if len(groups) > 1 else _joined(texts)


def _joined(keys: list[list[tuple[str, str]]]) -> list[list[int]]:
    """Returns the numbers of rows that share a key, also by way of others. keys: of each row."""
    first: dict[tuple[str, str], int] = {}  # row that a key was first seen in
    leader = list(range(len(keys)))
    for i, row_keys in enumerate(keys):
        leaders = {_leader(leader, first.setdefault(key, i)) for key in row_keys} | {i}
        for other in leaders:
            leader[other] = min(leaders)
    groups: dict[int, list[int]] = {}
    for i in range(len(keys)):
        groups.setdefault(_leader(leader, i), []).append(i)
    return list(groups.values())


def _leader(leader: list[int], row: int) -> int:
    while leader[row] != row:
        leader[row] = leader[leader[row]]
        row = leader[row]
    return row


def _strata(rows: list[Row], groups: list[list[int]]) -> dict[str, list[list[int]]]:
    """Returns the groups of each class, by their first rows; of several labels the rarest counts. Rows without labels,
    and with numbers for labels, are one class."""
    if label_kind(rows) == "regression":
        return {"": groups}
    labels = [label if isinstance(label := row.get("label", ""), list) else [label] for row in rows]
    counts = Counter(label for row in labels for label in row)
    strata: dict[str, list[list[int]]] = {}
    for group in groups:
        rarest = min(labels[group[0]], key=lambda label: (counts[label], label), default="")
        strata.setdefault(rarest, []).append(group)
    return strata


def _learnable(rows: list[Row], chosen: list[list[int]]) -> list[list[int]]:
    """Returns the chosen groups, without those that have a tag, or one of several labels, that no row left to train on
    has."""

    def names(i: int) -> list[str]:
        labels = rows[i].get("tags", rows[i].get("label"))
        return labels if isinstance(labels, list) else []

    held_out = {i for group in chosen for i in group}
    known = {name for i in range(len(rows)) if i not in held_out for name in names(i)}
    learnable = []
    for group in chosen:
        group_names = {name for i in group for name in names(i)}
        if group_names <= known:
            learnable.append(group)
        known |= group_names
    return learnable


def _chosen(groups: list[list[int]], share: float) -> list[list[int]]:
    """Returns those of shuffled groups to hold out: as near to `share` of the rows as they allow, one at least where
    there are two, and never all."""
    if len(groups) < 2:
        return []
    target = share * sum(map(len, groups))
    chosen: list[list[int]] = []
    taken = 0
    for group in groups:
        if abs(taken + len(group) - target) < abs(taken - target) and len(chosen) < len(groups) - 1:
            chosen.append(group)
            taken += len(group)
    return chosen or [min(groups, key=len)]
