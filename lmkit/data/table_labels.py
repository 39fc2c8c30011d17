"""What labels mean: classes, several classes a row, or numbers. Report, split and training share one rule, because they
go by the types it leaves: text, lists of text, floats. Tags of words have theirs: IOB1 becomes IOB2."""

import ast
import json
import math
import re
from collections.abc import Collection, Sequence
from typing import Any, Literal

from lmkit.data.inputs import Problems
from lmkit.errors import DataError
from lmkit.units import brief

Kind = Literal["single", "multi", "regression"]
SEPARATOR = "|"  # between the labels of one cell, unless `data.separator` says otherwise
MANY = 20  # more different numbers than this, some of them with a fraction, are measurements and no classes
NO_LABEL, NO_NUMBER = "rows without a label", "rows whose label is no number"
NO_VALUE = frozenset(("nan", "na", "n/a", "<na>", "null", "none"))  # pandas reads these as no value in a column
BITS = {"0": 0, "0.0": 0, "false": 0, "1": 1, "1.0": 1, "true": 1}
BRACKETED = re.compile(r"[\[({].*[\])}]", re.DOTALL)
NUMPY_TEXTS = re.compile(r"""['"]\s+['"]""")
WHOLE = re.compile(r"([-+]?\d+)\.0+")


def settle_labels(
    rows: list[dict[str, Any]], places: list[str], problems: Problems, kind: str, separator: str | None,
    known: Collection[str] = (),
) -> list[str]:  # fmt: skip
    """Make each `label` text (one class), a list of text (several) or a float (a number), and drop rows without one.

    kind: `task.kind`. separator: `data.separator`. known: the classes of a trained model, whose spelling wins. Returns
    what people should know. Raises DataError for labels that mix lists with single ones, and for unreadable lists."""
    labels = [without_list_syntax(row["label"]) for row in rows]
    named = [label for label in labels if label not in ("", None) and str(label).lower() not in NO_VALUE]
    numbers = bool(named) and all(map(is_number, named))
    if numbers or (named and all(isinstance(label, list) for label in named)):
        labels = [None if str(label).lower() in NO_VALUE else label for label in labels]
    given = [(label, place) for label, place in zip(labels, places, strict=True) if label not in ("", None)]
    settled = _kind(given, numbers, kind, separator)
    notes = _notes(given, settled, numbers and kind == "auto")
    lists = [label for label, _ in given if isinstance(label, list)]
    vectors = settled == "multi" and _are_vectors(lists)
    if vectors:
        notes.append(f"labels are vectors of {max(map(len, lists))} zeros and ones: a class is named by its position")
    kept_rows, kept_places = [], []
    for row, place, label in zip(rows, places, labels, strict=True):
        value = _settled(label, settled, separator or SEPARATOR, vectors, known)
        if value is None:
            blank = label in ("", None) or settled != "regression"
            problems.add(NO_LABEL if blank else NO_NUMBER, place)
        else:
            kept_rows.append(row | {"label": value})
            kept_places.append(place)
    rows[:], places[:] = kept_rows, kept_places
    return notes


def label_kind(rows: Sequence[dict[str, Any]]) -> Kind:
    """The kind of labels that `settle_labels` left."""
    label = next((row["label"] for row in rows if "label" in row), "")
    return "multi" if isinstance(label, list) else "regression" if isinstance(label, float) else "single"


def is_number(value: Any) -> bool:
    """Whether it is a finite number, or text that spells one."""
    try:
        return not isinstance(value, bool) and math.isfinite(float(value))
    except (TypeError, ValueError, OverflowError):
        return False


def class_name(value: Any) -> str:
    """The name of a class: 3, 3.0, "3" and "3.0" are one, as pandas writes whole numbers beside blanks as floats."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    text = str(value).strip()
    return match[1] if (match := WHOLE.fullmatch(text)) else text


def without_list_syntax(value: Any) -> Any:
    """A list where a cell spells one as JSON, Python or NumPy do; anything else as it is. None for an object."""
    if isinstance(value, tuple):
        return list(value)
    if not isinstance(value, str) or not BRACKETED.fullmatch(value):
        return [] if value == "set()" else value
    parsed: Any = value
    try:
        parsed = json.loads(value)
    except (ValueError, RecursionError):
        if re.fullmatch(r"\[\s*([-+]?\d+\.?\d*\s*)*\]", value):  # NumPy's
            return [float(number) for number in value[1:-1].split()]
        if not NUMPY_TEXTS.search(value):  # which Python would join into one
            try:
                parsed = ast.literal_eval(value)
            except (ValueError, SyntaxError, RecursionError, MemoryError, TypeError):
                parsed = value
    if isinstance(parsed, dict):
        return None
    if isinstance(parsed, set):
        return sorted(parsed, key=str)
    return list(parsed) if isinstance(parsed, (list, tuple)) else value


def _kind(given: list[tuple[Any, str]], numbers: bool, kind: str, separator: str | None) -> Kind:
    listed = next((place for label, place in given if isinstance(label, list)), None)
    bracketed = [(label, place) for label, place in given if isinstance(label, str) and BRACKETED.fullmatch(label)]
    unread = [item for item in bracketed if "," in item[0] or NUMPY_TEXTS.search(item[0])]
    if unread and len(bracketed) + sum(isinstance(label, list) for label, _ in given) == len(given):
        label, place = unread[0]
        raise DataError(
            f"{place}: cannot read the list of labels {brief(label)}\n"
            "  allowed: lists as JSON or Python write them, or texts with data.separator between them"
        )
    if kind == "multi" or (kind == "auto" and separator is not None):
        return "multi"
    if listed and kind != "auto":
        raise DataError(f"{listed}: a list of labels, which task.kind={kind} does not take\n  → task.kind=multi")
    if listed and not all(isinstance(label, list) for label, _ in given):
        raise DataError(
            f"{listed}: a list of labels, where other rows have one\n  → give every row a list, of one label too"
        )
    if listed:
        return "multi"
    if kind != "auto":
        return "regression" if kind == "regression" else "single"
    values = {float(label) for label, _ in given if is_number(label)} if numbers else set()
    return "regression" if len(values) > MANY and any(value % 1 for value in values) else "single"


def _notes(given: list[tuple[Any, str]], kind: Kind, found: bool) -> list[str]:
    """found: the labels are numbers, and nobody said what these stand for."""
    values = {float(label) for label, _ in given if is_number(label)} if found and kind != "multi" else set()
    if kind == "regression" and values:
        return [f"labels are numbers of {len(values):,} different values: a regression (task.kind=single: classes)"]
    if len(values) > 2:
        return [f"labels are numbers of {len(values):,} different values: classes (task.kind=regression: numbers)"]
    return []


def _are_vectors(lists: list[list[Any]]) -> bool:
    """Whether lists of 0 and 1 say of each class whether it holds: they are equally long, of two or more.

    Raises DataError for lists of numbers that are neither such vectors nor whole numbers that name classes."""
    lists = [values for values in lists if values]
    elements = [value for values in lists for value in values]
    if broken := [value for value in elements if is_number(value) and float(value) % 1]:
        raise DataError(
            f"lists of labels hold the number {broken[0]}\n  allowed: names of classes, or a 0 or 1 for each"
        )
    if not elements or not all(str(value).lower() in BITS for value in elements):
        return False
    sizes = {len(values) for values in lists}
    if len(sizes) == 1:
        return max(sizes) > 1
    if any(len({str(value) for value in values}) < len(values) for values in lists):
        raise DataError(
            f"lists of zeros and ones differ in length: {min(sizes)} to {max(sizes)}\n  → one number a class"
        )
    return False


def _settled(label: Any, kind: Kind, separator: str, vectors: bool, known: Collection[str]) -> Any:
    """The label in its final type; None for none."""
    if label is None:
        return None
    if kind == "regression":
        return float(label) if is_number(label) else None
    if kind == "single":
        return (str(label) if str(label) in known else class_name(label)) or None
    if not isinstance(label, list):
        label = [part for part in str(label).split(separator) if part.strip()]
    if any(part is None or part == "" or isinstance(part, (list, dict)) or part != part for part in label):
        return None
    if vectors:
        return [str(position) for position, bit in enumerate(label) if BITS[str(bit).lower()]]
    return list(dict.fromkeys(part if part in known else class_name(part) for part in label))


# ---------------------------------------------------------------- tags


def as_iob2(tags: Sequence[str]) -> list[str]:
    """Tags in IOB1, or with I- alone, in IOB2: every entity begins with B- (Tjong Kim Sang and Veenstra 1999)."""
    before = ["O", *tags]
    return [
        f"B{tag[1:]}" if tag[:2] == "I-" and not (last[:2] in ("B-", "I-") and last[2:] == tag[2:]) else tag
        for last, tag in zip(before, tags, strict=False)
    ]


def settle_tags(rows: list[dict[str, Any]]) -> list[str]:
    """Turn IOB1 into IOB2, in place. It is IOB1 where I- begins entities, and B- only what follows one of its type.

    Returns what people should know: also how many I- begin an entity where B- does as well, which is no scheme."""
    begun = changed = 0  # entities that begin with B- where IOB1 has I-, and the other way round
    for row in rows:
        for last, tag, new in zip(["O", *row["tags"]], row["tags"], as_iob2(row["tags"]), strict=False):
            begun += tag[:2] == "B-" and last[2:] != tag[2:]
            changed += tag != new
    if not changed or any(tag != "O" and tag[:2] not in ("B-", "I-") for row in rows for tag in row["tags"]):
        return []
    if begun:
        return [f"{changed:,} entities begin with I- and {begun:,} with B-: only those with B- are found (strict IOB2)"]
    for row in rows:
        row["tags"] = as_iob2(row["tags"])
    return [f"tags are IOB1: {changed:,} entities that begin with I- now begin with B- (IOB2), as scores count them"]
