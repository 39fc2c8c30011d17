"""Which column of a file is the text, which the label: by common names, or as the recipe says; never by a guess."""

import re

from lmkit.base.errors import DataError, UserError, did_you_mean
from lmkit.data.encodings import encoding_advice, encodings_of
from lmkit.data.lines import not_unicode
from lmkit.data.tables.task_tables import TABLES, Role, TaskTable
from lmkit.recipe.tasks import TableConfig

SHOWN = 30  # columns that an error lists


def trained_columns(task: str, config: TableConfig, chosen: dict[str, str]) -> dict[str, str]:
    """Returns the columns that a model was trained with, by the keys of `data` that name them. chosen: by role.

    "" stands for a second text that its rows did not have."""
    keys = {role.key: role.name for role in TABLES[task].roles if role.key}
    columns = {key: chosen[name] for key, name in keys.items() if ", " not in chosen.get(name, ", ")}
    if chosen and "pair" in keys and keys["pair"] not in chosen:
        columns["pair"] = ""
    return {key: getattr(config, key) for key in keys if getattr(config, key) is not None} | columns


def check_settings(task: str, config: TableConfig) -> None:
    """Raises UserError for a column that is named but that this task does not read."""
    roles = [role for role in TABLES[task].roles if role.key]
    for key in ("text", "pair", "label", "target"):
        if getattr(config, key) is not None and key not in {role.key for role in roles}:
            named = ", ".join(f"data.{role.key} ({role.noun or role.name})" for role in roles)
            raise UserError(f"data.{key} is set, and {task} reads no such column\n  allowed: {named}")


def choose_columns(
    where: str, columns: list[str], task: str, config: TableConfig, labelled: bool, header: bool
) -> dict[str, str]:
    """Returns the column of each role, in the file `where`. header: the columns are the first row of a file that may
    not have a header. A role whose column is named "" is not read.

    Raises DataError when a column named by the recipe is missing, and when a needed role has no column of a common name
    or any role has several."""
    if unreadable := next((column for column in columns if not_unicode(column) is not None), None):
        raise _not_utf8(where, unreadable)
    roles = _layout(TABLES[task], columns, config)
    roles = tuple(role for role in roles if not role.key or getattr(config, role.key) != "")
    named = {role.key: value for role in roles if role.key and (value := getattr(config, role.key)) is not None}
    chosen: dict[str, str] = {}
    for role in roles:
        if role.key in named:
            candidates = [named[role.key]]
        else:
            candidates = _candidates(role, [column for column in columns if column not in named.values()])
        if candidates and role.answer and "," in candidates[0] and candidates[0] not in columns:  # a column each
            candidates = [",".join(name.strip() for name in candidates[0].split(","))]
            missing = [name for name in candidates[0].split(",") if name not in columns]
        else:
            missing = [name for name in candidates[:1] if name not in columns]
        if missing:
            _check_header(where, columns, header)
            raise DataError(
                f"{where}: no column `{missing[0]}`{did_you_mean(missing[0], columns)}\n"
                f"  → say which one holds the {role.name} with data.{role.key}=NAME"
            )
        if len(candidates) > 1 or (not candidates and role.noun and (labelled or not role.answer)):
            _check_header(where, columns, header)
            raise _cannot_tell(where, columns, task, labelled)
        if candidates:
            chosen[role.name] = candidates[0]
    if doubled := [column for column in chosen.values() if columns.count(column) > 1]:
        raise DataError(
            f"{where}: {columns.count(doubled[0])} columns are called `{doubled[0]}`\n  → rename all but one"
        )
    return chosen


def _not_utf8(where: str, column: str) -> DataError:
    known = ", ".join(encodings_of(column)) or "nothing common"
    return DataError(
        f"{where}: the names of its columns are not UTF-8 (they can be read as {known})\n  → {encoding_advice(where)}"
    )


def _candidates(role: Role, columns: list[str]) -> list[str]:
    names = role.names.split()
    named_columns = list(dict.fromkeys(column for column in columns if column.strip().lower() in names))
    own = [column for column in named_columns if column.strip().lower() == names[0]]
    return own if len(own) == 1 else named_columns


def _layout(table: TaskTable, columns: list[str], config: TableConfig) -> tuple[Role, ...]:
    """Returns the roles of one file: conversations are lists of messages, or a prompt and a response."""
    if not table.messages or config.target:
        return table.roles
    if config.text is None:
        return table.messages if _candidates(table.messages[0], columns) else table.roles
    alone = config.text.lower() in table.messages[0].names.split() or not _candidates(table.roles[1], columns)
    return table.messages if alone else table.roles


def _cannot_tell(where: str, columns: list[str], task: str, labelled: bool) -> DataError:
    needed = [role for role in TABLES[task].roles if role.noun and (labelled or not role.answer)]
    nouns = [role.noun for role in needed]
    keys = " ".join(f"data.{role.key}=COLUMN" for role in needed)
    listed = " and ".join(([", ".join(nouns[:-1])] if nouns[1:] else []) + nouns[-1:])
    if TABLES[task].messages:
        listed, keys = f"messages, or {listed}", f"data.text=COLUMN (messages), or {keys}"
    more = f" and {len(columns) - SHOWN:,} more" if len(columns) > SHOWN else ""
    shown = ", ".join(column[:40] for column in columns[:SHOWN]) + more
    return DataError(
        f"{where}: cannot tell which columns to use (columns: {shown})\n  {task} needs {listed}\n  → {keys}"
    )


def _check_header(where: str, columns: list[str], header: bool) -> None:
    """Raises DataError when the first row looks like a row of data: with numbers or sentences."""
    if header and any(re.fullmatch(r"[-+.\d]+", column) or len(column.split()) > 6 for column in columns):
        shown = " | ".join(column if len(column) <= 40 else column[:40] + "…" for column in columns)
        raise DataError(
            f"{where}: the first row is no header: {shown}\n"
            "  → put a row with the names of the columns before it, like `text` and `label`"
        )
