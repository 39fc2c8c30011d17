"""What labels mean: classes, several classes a row, or numbers. Report, split and training share one rule, because they
go by the types it leaves: text, lists of text, floats. Tags of words have theirs: IOB1 becomes IOB2."""

import ast
import json
import math
import re
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from typing import Any, Literal

from lmkit.base.errors import DataError
from lmkit.base.units import brief
from lmkit.data.inputs import Problems

Kind = Literal["single", "multi", "regression"]
SEPARATORS = ("|", ";", ",")  # that people write between labels of one cell
SEPARATOR = "|"  # between the labels of one cell, unless `data.separator` says otherwise
MANY = 20  # more different numbers than this, some of them with a fraction, are measurements and no classes
ODD = 0.1  # up to this share of labels may be of another sort than the others: these rows are left out and counted
NO_LABEL = "rows without a label"
ODD_ONES = {"single": "rows whose label is a list", "multi": "rows whose label is no list like those of others",
            "regression": "rows whose label is no number"}  # fmt: skip
NO_VALUE = frozenset(("nan", "na", "n/a", "<na>", "null", "none"))  # pandas reads these as no value in a column
BITS = {"0": 0, "0.0": 0, "false": 0, "1": 1, "1.0": 1, "true": 1}
BRACKETED = re.compile(r"[\[({].*[\])}]", re.DOTALL)
SHOWN = 5  # pairs of classes that are named as alike
NUMPY_TEXTS = re.compile(r"""['"]\s+['"]""")
QUOTED = r"""'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*\""""
NUMPY_LIST = re.compile(rf"\[\s*(?:{QUOTED})(?:\s+(?:{QUOTED}))*\s*\]", re.DOTALL)
WHOLE = re.compile(r"([-+]?\d+)\.0+")
BEFORE = re.compile(r"[BIESLUM]-.+")
BEHIND = re.compile(r"(?P<kind>.+)[-_](?P<letter>[BIESLUM])")
UNDERSCORED = re.compile(r"(?P<letter>[BIESLUM])_(?P<kind>.+)")
# numbers as people write them, with decimal commas, groups of thousands or signs, which may also be something else
WRITTEN = re.compile(
    r"[-+]?[$€£]? ?(\d{1,3}(,\d{3})+(\.\d+)?|\d{1,3}(\.\d{3})+,\d+|\d+,\d+|\d+(\.\d+)? ?[%€]|[$€£] ?[\d.]+)"
)


def settle_labels(
    rows: list[dict[str, Any]], places: list[str], problems: Problems, kind: str, separator: str | None,
    known: Collection[str] = (),
) -> list[str]:  # fmt: skip
    """Makes each `label` text (one class), a list of text (several) or a float (a number), and drops rows without one.

    kind: `task.kind`. separator: `data.separator`. known: the classes of a trained model, whose spelling wins. Returns
    what people should know. Raises DataError for labels of which over a tenth are of another sort than the others, for
    unreadable lists, and for numbers written as people read them."""
    labels = [without_list_syntax(row["label"]) for row in rows]
    if kind == "single":  # as of columns of 0 and 1 of which one is 1
        labels = [label[0] if isinstance(label, list) and len(label) == 1 else label for label in labels]
    named = [label for label in labels if label not in ("", None) and str(label).lower() not in NO_VALUE]
    if _mostly(named, is_number) or _mostly(named, _is_list):
        labels = [None if str(label).lower() in NO_VALUE else label for label in labels]
    given = [(label, place) for label, place in zip(labels, places, strict=True) if label not in ("", None)]
    settled = _kind(given, kind, separator)
    lists = [label for label, _ in given if isinstance(label, list)]
    between = None if kind == "auto" and separator is None else separator or SEPARATOR  # None: only lists are several
    vector_length = _vector_length(lists) if settled == "multi" else 0
    notes = _notes(given, settled, kind)
    if vector_length:
        notes.append(f"labels are vectors of {vector_length} zeros and ones: a class is named by its position")
    if separator and given and not lists and not any(separator in str(label) for label, _ in given):
        notes.append(f"no label holds data.separator={separator!r}: each row has one label, or none")
    kept_rows, kept_places = [], []
    for row, place, label in zip(rows, places, labels, strict=True):
        value = _settled(label, settled, between, vector_length, known)
        if value is None:
            problems.add(NO_LABEL if label in ("", None, []) else ODD_ONES[settled], place)
        else:
            kept_rows.append(row | {"label": value})
            kept_places.append(place)
    rows[:], places[:] = kept_rows, kept_places
    return notes


def label_kind(rows: Sequence[dict[str, Any]]) -> Kind:
    """Returns the kind of labels that `settle_labels` made."""
    label = next((row["label"] for row in rows if "label" in row), "")
    return "multi" if isinstance(label, list) else "regression" if isinstance(label, float) else "single"


def is_number(value: Any) -> bool:
    """Returns whether it is a finite number, or text that spells one."""
    try:
        return not isinstance(value, bool) and math.isfinite(float(value))
    except (TypeError, ValueError, OverflowError):
        return False


def class_name(value: Any) -> str:
    """Returns the name of a class: 3, 3.0, "3" and "3.0" are one, as pandas writes whole numbers beside blanks as
    floats."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    text = str(value).strip()
    return match[1] if (match := WHOLE.fullmatch(text)) else text


def without_list_syntax(value: Any) -> Any:
    """Returns a list where a cell spells one as JSON, Python or NumPy do, None for an object, and anything else as it
    is."""
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
        if NUMPY_LIST.fullmatch(value):
            return [ast.literal_eval(text) for text in re.findall(QUOTED, value)]
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


def _mostly(labels: Sequence[Any], sort: Callable[[Any], bool]) -> bool:
    return bool(labels) and sum(map(sort, labels)) >= (1 - ODD) * len(labels)


def _is_list(label: Any) -> bool:
    return isinstance(label, list)


def _is_broken_list(label: Any) -> bool:
    return isinstance(label, str) and label[0] in "[({" and ("," in label or NUMPY_TEXTS.search(label) is not None)


def _kind(given: list[tuple[Any, str]], kind: str, separator: str | None) -> Kind:
    """Returns what the labels are, where those of a tenth of the rows or fewer may be of another sort."""
    few = ODD * len(given)
    listed = [item for item in given if isinstance(item[0], list)]
    broken = [item for item in given if _is_broken_list(item[0])]
    bracketed = sum(isinstance(label, str) and BRACKETED.fullmatch(label) is not None for label, _ in given)
    if len(broken) > few and bracketed + len(listed) + few >= len(given):
        raise DataError(
            f"{broken[0][1]}: cannot read the list of labels {brief(broken[0][0])}\n"
            "  allowed: lists as JSON or Python write them, or texts with data.separator between them"
        )
    if kind == "multi" or (kind == "auto" and separator is not None):
        return "multi"
    if len(listed) > few and kind != "auto":
        place = listed[0][1]
        raise DataError(f"{place}: a list of labels, which task.kind={kind} does not take\n  → task.kind=multi")
    single = [item for item in given if not isinstance(item[0], list)]
    if min(len(listed), len(single)) > few:
        rarer, what = (single, "no list") if len(single) <= len(listed) else (listed, "a list")
        label, place = rarer[0]
        raise DataError(
            f"{place}: the label {brief(json.dumps(label))} is {what}, unlike {len(given) - len(rarer):,} others\n"
            "  → give every row a list, of one label too, or none"
        )
    if len(listed) > len(single):
        return "multi"
    return "single" if kind == "single" or (kind == "auto" and not _are_measurements(single)) else _regression(single)


def _are_measurements(given: list[tuple[Any, str]]) -> bool:
    """Returns whether labels are numbers of many different values, some of them with a fraction.

    Raises DataError where over a tenth of the rows, and under half of them, have another label."""
    numbers = [label for label, _ in given if is_number(label) or WRITTEN.fullmatch(str(label))]
    fractions = any(_is_fraction(label) or not is_number(label) for label in numbers)
    if len(set(numbers)) <= MANY or not fractions or 2 * len(numbers) < len(given):
        return False
    if len(given) - len(numbers) > ODD * len(given):
        label, place = next(item for item in given if item[0] not in numbers)
        raise DataError(
            f"{place}: the label {brief(label)} is no number, as {len(numbers):,} of {len(given):,} labels are\n"
            "  → task.kind=regression leaves out the rows without a number; task.kind=single makes each a class"
        )
    return True


def _regression(given: list[tuple[Any, str]]) -> Kind:
    """Settles labels that are numbers. Raises DataError for numbers written as people read them, like 1,000: if these
    were left out, the large ones might be missing."""
    for label, place in given:
        if not is_number(label) and WRITTEN.fullmatch(str(label)):
            raise DataError(
                f"{place}: the label {brief(label)} is not written as a number is\n"
                "  allowed: digits with a point before the fraction and nothing else, like 1234.5\n"
                "  → write it so; if these are names, task.kind=single; if it holds several labels, data.separator"
            )
    return "regression"


def _notes(given: list[tuple[Any, str]], settled: Kind, kind: str) -> list[str]:
    """Returns what the labels were taken for where nobody said it, and what may have been meant instead."""
    labels = [label for label, _ in given if not isinstance(label, list)]
    if kind != "auto" or settled == "multi":
        return []
    values = {float(label) for label in labels if is_number(label)} if _mostly(labels, is_number) else set()
    if settled == "regression":
        return [f"labels are numbers of {len(values):,} different values: a regression (task.kind=single: classes)"]
    notes = _alike(labels)
    if len(values) > 2:
        notes.append(f"labels are numbers of {len(values):,} different values: classes (task.kind=regression: numbers)")
    for separator in SEPARATORS:
        joined = {label for label in labels if isinstance(label, str) and separator in label}
        parts = {part.strip() for label in joined for part in label.split(separator)}
        others = {str(label) for label in labels} - joined
        if len(joined) > 1 and len(parts | others) < len(joined | others):
            notes.append(
                f"{len(joined):,} of the classes are several joined by {separator}, like {brief(min(joined))}: "
                f"data.separator='{separator}' takes them apart"
            )
    return notes


def _alike(labels: list[Any]) -> list[str]:
    """Returns classes that are most likely spelt in two ways: Yes and yes, True and 1, 1e3 and 1000."""
    spellings: dict[Any, set[str]] = {}
    for name in {class_name(label) for label in labels}:
        folded = " ".join(name.casefold().split())
        key = BITS.get(folded, float(folded) if is_number(folded) else folded)
        spellings.setdefault(key, set()).add(name)
    return [
        f"{' and '.join(map(brief, sorted(names)))} are different classes: write them alike if they are one"
        for names in spellings.values() if len(names) > 1
    ][:SHOWN]  # fmt: skip


def _vector_length(lists: list[list[Any]]) -> int:
    """Returns the number of classes where lists of 0 and 1 say of each class whether it holds, 0 for lists of names.
    All but a tenth of such lists are equally long, of two or more.

    Raises DataError for lists of numbers that are neither such vectors nor whole numbers that name classes."""
    lists = [values for values in lists if values]
    few = ODD * len(lists)
    bits = [values for values in lists if all(str(value).lower() in BITS for value in values)]
    sizes = Counter(map(len, bits)).most_common()
    if sizes and sizes[0][0] > 1 and sizes[0][1] >= len(lists) - few:
        return sizes[0][0]
    fractions = [value for values in lists for value in values if _is_fraction(value)]
    if len(fractions) > few:
        raise DataError(
            f"lists of labels hold the number {fractions[0]}\n  allowed: names of classes, or a 0 or 1 for each"
        )
    if len(sizes) > 1 and len(bits) >= len(lists) - few and any(len(set(map(str, row))) < len(row) for row in bits):
        low, high = min(sizes)[0], max(sizes)[0]
        raise DataError(f"lists of zeros and ones differ in length: {low} to {high}\n  → one number a class")
    return 0


def _is_fraction(value: Any) -> bool:
    return is_number(value) and float(value) % 1 != 0


def _settled(label: Any, kind: Kind, separator: str | None, vector_length: int, known: Collection[str]) -> Any:
    """Returns the label in its final type; None for none. separator: between several; None: they have to be lists."""
    if label is None or (kind == "single" and isinstance(label, list)):
        return None
    if kind == "regression":
        return float(label) if is_number(label) else None
    if kind == "single":
        return (str(label) if str(label) in known else class_name(label)) or None
    if not isinstance(label, list):
        if label and (separator is None or _is_broken_list(label)):
            return None
        label = [part for part in str(label).split(separator) if part.strip()]
    if any(part is None or part == "" or isinstance(part, (list, dict)) or part != part for part in label):
        return None
    if vector_length and label:
        bits = [BITS.get(str(bit).lower()) for bit in label]
        return None if len(bits) != vector_length or None in bits else [str(n) for n, bit in enumerate(bits) if bit]
    if any(isinstance(part, float) and _is_fraction(part) for part in label):
        return None
    return list(dict.fromkeys(part if part in known else class_name(part) for part in label))


# ---------------------------------------------------------------- tags


def as_iob2(tags: Sequence[str]) -> list[str]:
    """Returns tags in IOB1, or with I- alone, as IOB2, in which every entity begins with B- (Tjong Kim Sang and
    Veenstra 1999)."""
    before = ["O", *tags]
    return [
        f"B{tag[1:]}" if tag[:2] == "I-" and not (last[:2] in ("B-", "I-") and last[2:] == tag[2:]) else tag
        for last, tag in zip(before, tags, strict=False)
    ]


def with_prefixes(tags: Sequence[str]) -> tuple[str, ...]:
    """Returns different tags with their prefixes in front, `B-PER`, where all but O write them as `PER-B` or `B_PER`;
    else the tags as they are. One tag must begin entities, so that other tags with a letter at an end stay words."""
    named = [tag for tag in tags if tag != "O"]
    for pattern in () if all(map(BEFORE.fullmatch, named)) else (BEHIND, UNDERSCORED):
        parts = {tag: match for tag in named if (match := pattern.fullmatch(tag))}
        if len(parts) == len(set(named)) and any(match["letter"] in "BSU" for match in parts.values()):
            return tuple(f"{parts[tag]['letter']}-{parts[tag]['kind']}" if tag in parts else tag for tag in tags)
    return tuple(tags)


def settle_tags(rows: list[dict[str, Any]], places: list[str], *_: Any) -> list[str]:
    """Puts prefixes in front (`with_prefixes`) and turns IOB1 into IOB2, in place. It is IOB1 where I- begins entities,
    and B- only what follows one of its type.

    Returns what people should know: also how many I- begin an entity where B- does as well, which is no scheme. Raises
    DataError for words that are no sentences."""
    if len(rows) > 1 and all(len(row["words"]) == 1 for row in rows):
        raise DataError(
            f"{places[0]}: each of the {len(rows):,} rows holds a single word\n"
            "  → the words of a sentence belong into one row; in CoNLL files a blank line ends a sentence"
        )
    written = sorted({tag for row in rows for tag in row["tags"]})
    prefixed = dict(zip(written, with_prefixes(written), strict=True))
    notes = []
    if renamed := [f"{old} as {new}" for old, new in prefixed.items() if old != new]:
        notes.append(
            f"tags are entities whose prefix is not in front with a hyphen: {renamed[0]}, and all others alike"
        )
        for row in rows:
            row["tags"] = [prefixed[tag] for tag in row["tags"]]
    begun = changed = 0  # entities that begin with B- where IOB1 has I-, and the other way round
    for row in rows:
        for last, tag, new in zip(["O", *row["tags"]], row["tags"], as_iob2(row["tags"]), strict=False):
            begun += tag[:2] == "B-" and last[2:] != tag[2:]
            changed += tag != new
    if not changed or any(tag != "O" and tag[:2] not in ("B-", "I-") for row in rows for tag in row["tags"]):
        return notes
    if begun:
        mixed = f"{changed:,} entities begin with I- and {begun:,} with B-: only those with B- are found (strict IOB2)"
        return [*notes, mixed]
    for row in rows:
        row["tags"] = as_iob2(row["tags"])
    converted = f"tags are IOB1: {changed:,} entities that begin with I- now begin with B- (IOB2), as scores count them"
    return [*notes, converted]
