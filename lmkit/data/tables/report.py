"""What people should know about their data before a model learns from it: lines of plain text."""

from collections import Counter

from lmkit.base.errors import DataError
from lmkit.base.units import brief
from lmkit.data.tables.labels import label_kind
from lmkit.data.tables.splitting import NAMES, same_input
from lmkit.data.tables.table import Row, Table, row_bytes
from lmkit.data.tables.task_tables import TABLES

SHOWN, SMALLEST = 20, 5  # classes listed, the largest and the smallest
UNEVEN = 3  # times the share a class would have if all were even
NOUNS = {"label": ("label", "classes"), "tags": ("tag", "tags")}  # of roles that are counted: one of them, and several
MOSTLY = 0.75  # of all rows in one class is uneven, however few classes there are


def report(
    train: Table,
    held_out: Table | None,
    task: str,
    lengths: list[int] | None = None,
    limit: int | None = None,
    cut: int = 0,
    one_class: bool = False,
) -> list[str]:
    """Returns lines about the rows, the classes, and `lengths` of the training rows in tokens, of which `limit` are
    read: as they are, or as they were cut, then with how many; rows that are doubled, contradict each other, or stand
    in both parts; labels that only the held-out part has. Where nothing is parted yet (`held_out` is None), also how
    long what is to be written is.

    Raises DataError when all rows have one label, unless `one_class` says that this is meant."""
    others = held_out.rows if held_out else []
    lines = [f"{len(train.rows):,} rows" + (f", and {len(others):,} held out" if others else "")]
    table = TABLES[task]
    if table.learnt in NOUNS:
        lines += _classes(train, others, table.learnt, one_class)
    if table.learnt == "answers" and (without := sum(not row.get("answers") for row in train.rows)):
        lines.append(f"{_share(without, len(train.rows))} of the questions have no answer")
    if table.learnt == "target":
        lines += _sides(train.rows, table.length_ratio)
    if held_out is None and (table.learnt == "target" or table.messages):
        lines += _written(train.rows)
    if lengths:
        lines += _lengths(lengths, limit, len(train.rows), cut)
    return lines + _doubles(train.rows, others, task, "" if held_out is None else "training ")


def _share(n: int, of: int) -> str:
    return f"{n:,} ({n / max(of, 1):.1%})"


def _labels(row: Row, role: str) -> list[str]:
    labels = row.get(role, [])
    return labels if isinstance(labels, list) else [str(labels)]


def _classes(train: Table, others: list[Row], role: str, one_class: bool) -> list[str]:
    singular, plural = NOUNS[role]
    if label_kind(train.rows) == "regression":
        values = [row["label"] for row in train.rows]
        mean = sum(values) / len(values)
        return [f"labels are numbers from {min(values):g} to {max(values):g}, {mean:.3g} on average"]
    counts = Counter(label for row in train.rows for label in _labels(row, role))
    several = any(isinstance(row.get("label"), list) for row in train.rows)
    of = len(train.rows) if several else counts.total()
    if len(counts) < 2 and not one_class and not several:
        raise DataError(
            f"all rows have the same {singular}: {brief(next(iter(counts), 'none'))}\n"
            f"  {len(train.rows):,} rows; the first: {train.places[0] if train.places else 'none'}\n"
            "  → take rows of other labels too, or name another column with data.label=COLUMN"
        )
    ordered = [(brief(label), n) for label, n in sorted(counts.items(), key=lambda item: (-item[1], item[0]))]
    width = max((len(label) for label, _ in ordered), default=0)
    listed = [f"  {label:{width}}  {n:>9,}  {n / of:6.1%}" for label, n in ordered]
    if len(listed) > SHOWN + 1:
        listed[SHOWN - SMALLEST : -SMALLEST] = [f"  ... {len(listed) - SHOWN:,} more, and the smallest:"]
    lines = [f"{len(counts):,} {plural}:", *listed]
    if role == "label" and not several and ordered and ordered[0][1] / of > min(UNEVEN / len(counts), MOSTLY):
        lines.append(
            "classes are uneven: reporting macro-F1 beside accuracy; data balance with task.class_weights=true"
        )
    unknown = Counter(label for row in others for label in _labels(row, role) if label not in counts)
    if unknown:
        named = ", ".join(f"{brief(label)} ({n:,})" for label, n in unknown.most_common(SHOWN))
        more = f" and {len(unknown) - SHOWN:,} more" if len(unknown) > SHOWN else ""
        lines.append(f"{len(unknown):,} labels of the held-out rows are in no training row: {named}{more}")
    return lines


def _sides(rows: list[Row], ratio: int) -> list[str]:
    """Counts pairs from which most likely nothing is learnt; they are kept. ratio: of sizes, that is told; 0: none."""
    same = sum(row["source"].strip() == row["target"].strip() for row in rows)
    sizes = [sorted((len(row["source"]), len(row["target"]))) for row in rows]
    uneven = sum(long > ratio * short for short, long in sizes) if ratio else 0
    lines = [f"{_share(same, len(rows))} pairs have the same text on both sides"] if same else []
    return lines + ([f"{_share(uneven, len(rows))} pairs have one side over {ratio} times as long"] if uneven else [])


def _written(rows: list[Row]) -> list[str]:
    """Tells how long conversations, or sources and targets, are, and how many of these repeat an earlier one."""
    if any("messages" in row for row in rows):
        parts = {"messages a conversation": [len(row["messages"]) for row in rows]}
        answers = [m["content"] for row in rows for m in row["messages"] if m["role"] == "assistant"]
        parts["characters an answer"] = [len(answer) for answer in answers if isinstance(answer, str)]
        return [f"{name}: {_spread(sizes)}" for name, sizes in parts.items() if sizes]
    lines = []
    for side in ("source", "target"):
        texts = [row[side] for row in rows]
        again = len(texts) - len(set(texts))
        lines.append(f"characters a {side}: {_spread([len(text) for text in texts])}; {again:,} repeat an earlier one")
    ratios = sorted(len(row["target"]) / max(len(row["source"]), 1) for row in rows)
    middle, high = (ratios[int((len(ratios) - 1) * q)] for q in (0.5, 0.95))
    return [*lines, f"a target is {middle:.2f} times as long as its source (median), {high:.2f} (95th percentile)"]


def _spread(lengths: list[int]) -> str:
    ordered = sorted(lengths)
    median, high = (ordered[int((len(ordered) - 1) * q)] for q in (0.5, 0.95))
    return f"{median:,} (median), {high:,} (95th percentile), {ordered[-1]:,} (longest)"


def _lengths(lengths: list[int], limit: int | None, rows: int, cut: int) -> list[str]:
    lines = [f"tokens a row: {_spread(lengths)}"]
    if limit and (cut := max(cut, sum(length > limit for length in lengths))):
        lines.append(f"{_share(cut, rows)} rows are longer than {limit:,} tokens and are cut")
    return lines


def _doubles(rows: list[Row], others: list[Row], task: str, training: str) -> list[str]:
    """training: what the first rows are called."""
    lines = []
    for part, name in ((rows, training), (others, "held-out ")):
        whole = {row_bytes({k: v for k, v in row.items() if k not in NAMES}) for row in part}
        if again := len(part) - len(whole):
            lines.append(f"{_share(again, len(part))} {name}rows repeat an earlier one")
    answers: dict[bytes, set[bytes]] = {}
    for row in rows:
        answers.setdefault(row_bytes(same_input(row, task)), set()).add(row_bytes(row.get("label")))
    if unclear := sum(len(labels) > 1 for labels in answers.values()):
        lines.append(f"{unclear:,} texts have different labels in different {training}rows")
    if known := sum(row_bytes(same_input(row, task)) in answers for row in others):
        lines.append(f"{_share(known, len(others))} held-out rows stand in the training rows too: their scores flatter")
    return lines
