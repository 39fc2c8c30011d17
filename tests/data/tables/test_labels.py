"""What label columns mean, as pandas, NumPy and scikit-learn write and read them; IOB1 as seqeval reads it."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pytest
from sklearn.preprocessing import MultiLabelBinarizer

from lmkit.base.errors import DataError
from lmkit.data.tables.labels import as_iob2, label_kind
from lmkit.data.tables.table import Table, read_table
from lmkit.recipe.tasks import TableConfig

SETS = [["toxic", "it's"], [], ['a "b"'], ["toxic"], ["b, c", "toxic"]] * 3


def read(labels: list[Any], path: Path, kind: str = "auto", **config: Any) -> Table:
    """Labels of a JSON file, or of the CSV file that pandas or `csv` writes."""
    texts = [f"text {i}" for i in range(len(labels))]
    if path.suffix == ".jsonl":
        rows = zip(texts, labels, strict=True)
        path.write_text("".join(json.dumps({"text": t, "label": label}) + "\n" for t, label in rows))
    else:
        pandas.DataFrame({"text": texts, "label": labels}).to_csv(path, index=False, quoting=csv.QUOTE_MINIMAL)
    return read_table([str(path)], "classify", TableConfig(train="", **config), kind=kind)


def labels(table: Table) -> list[Any]:
    return [row["label"] for row in table.rows]


def test_lists_in_cells_are_several_labels_however_they_are_written(tmp_path: Path) -> None:
    plain = [[name.replace('"', "").replace(",", "") for name in row] for row in SETS]
    assert labels(read(SETS, tmp_path / "a.jsonl")) == SETS
    assert labels(read(SETS, tmp_path / "a.csv")) == SETS  # pandas writes Python's
    assert labels(read([json.dumps(row) for row in SETS], tmp_path / "a.csv")) == SETS
    assert labels(read([tuple(row) for row in SETS], tmp_path / "a.csv")) == SETS
    assert labels(read([np.array(row) for row in SETS], tmp_path / "a.csv")) == SETS
    table = read([";".join(row) for row in plain], tmp_path / "a.csv", separator=";")
    assert labels(table) == plain and not table.problems.counts  # an empty cell is a row without labels
    assert labels(read(["a|b", "", "b"], tmp_path / "a.csv", "multi")) == [["a", "b"], [], ["b"]]
    assert labels(read([["a", "a", 3.0], [], None, {}], tmp_path / "a.jsonl")) == [["a", "3"], []]
    assert label_kind(table.rows) == "multi"
    table = read(["['a']", "null", "{}", "NaN"], tmp_path / "a.jsonl")
    assert labels(table) == [["a"]] and table.problems.counts == {"rows without a label": 3}


@pytest.mark.parametrize("dtype", [int, float, bool, str])
def test_vectors_of_zeros_and_ones_are_labels_by_position(dtype: type, tmp_path: Path) -> None:
    vectors = np.eye(4, dtype=int)[[0, 2, 1, 1, 3]] | np.eye(4, dtype=int)[[0, 1, 1, 2, 0]]
    vectors[2] = 0
    names = MultiLabelBinarizer().fit([list("0123")]).inverse_transform(vectors)
    for row_of, name in ((list, "a.jsonl"), (list, "a.csv"), (np.array, "a.csv")):
        values = [[dtype(x) for x in row] for row in vectors.tolist()]
        if row_of is np.array and dtype in (bool, str):
            continue
        table = read([row_of(row) for row in values], tmp_path / name)
        assert labels(table) == [list(row) for row in names]
        assert table.notes == ("labels are vectors of 4 zeros and ones: a class is named by its position",)
    assert labels(read([[3, 10], [3], []], tmp_path / "a.jsonl")) == [["3", "10"], ["3"], []]  # ids, and no vectors


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (["[toxic, insult]", "[]", "[toxic]"], r"cannot read the list of labels \[toxic, insult\]\n  allowed: lists"),
        (["['a' 'b', 'c']", "['a']"], r"cannot read the list of labels \['a' 'b', 'c'\]"),
        (['["a", "b"]', "a"], r'a.csv:3: the label "a" is no list, unlike 1 others'),
        ([[0.2, 0.8], [0.9, 0.1]], "lists of labels hold the number 0.2"),
        ([[0, 0, 1], [0, 1]], "lists of zeros and ones differ in length: 2 to 3"),
    ],
)
def test_lists_that_cannot_be_read_are_refused(values: list[Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=message):
        read(values, tmp_path / "a.csv")
    with pytest.raises(DataError, match=r"task.kind=single does not take\n  → task.kind=multi"):
        read([["a", "c"], ["b"]], tmp_path / "a.jsonl", "single")


def test_whole_numbers_name_the_same_classes_whatever_wrote_them(tmp_path: Path) -> None:
    stars = [1, 2, -1, 10, None]  # pandas writes 1.0 where a column has a blank
    table = read(stars, tmp_path / "a.csv")
    assert labels(table) == labels(read(stars, tmp_path / "a.jsonl")) == ["1", "2", "-1", "10"]
    assert "1.0" in (tmp_path / "a.csv").read_text() and table.problems.counts == {"rows without a label": 1}
    assert labels(read([1, 2, -1, 10], tmp_path / "a.csv")) == ["1", "2", "-1", "10"]
    assert labels(read([1.0, 2, float("nan")], tmp_path / "a.jsonl")) == ["1", "2"]
    assert labels(read(["1", "2", "NaN"], tmp_path / "a.jsonl")) == ["1", "2"]  # no value beside numbers,
    assert labels(read(["x", "y", "NaN"], tmp_path / "a.jsonl")) == ["x", "y", "NaN"]  # and a name beside names
    assert labels(read(["1 ", " 2", "1.50"], tmp_path / "a.jsonl")) == ["1", "2", "1.50"]


def test_few_different_numbers_are_classes_and_the_key_that_changes_it_is_named(tmp_path: Path) -> None:
    halves, many = [n / 2 for n in range(2, 11)] * 4, [n / 7 for n in range(40)]
    for name in ("a.csv", "a.jsonl"):
        table = read(halves, tmp_path / name)
        assert set(labels(table)) == {"1", "1.5", "2", "2.5", "3", "3.5", "4", "4.5", "5"}
        assert table.notes == ("labels are numbers of 9 different values: classes (task.kind=regression: numbers)",)
        assert labels(read(halves, tmp_path / name, "regression")) == halves
        table = read(many, tmp_path / name)
        assert labels(table) == pytest.approx(many) and label_kind(table.rows) == "regression"
        assert table.notes == ("labels are numbers of 40 different values: a regression (task.kind=single: classes)",)
    assert labels(read(["1e-3", "-2.5", "x"], tmp_path / "a.csv", "regression")) == [0.001, -2.5]


NUMBERS = [n / 7 for n in range(40)]
VECTORS = [[0, 1, 0], [1, 1, 0], [0, 0, 0], [0, 1, 1]] * 10
NAMES = [["a", "b"], ["a"], ["b"], []] * 10


@pytest.mark.parametrize("odd", ["-", "?", "missing", "#N/A", "bad", "inf", "1.0.3", [1], ["a"], "[1, "])
def test_one_odd_label_among_numbers_is_counted_as_pandas_reads_it(odd: Any, tmp_path: Path) -> None:
    for path in (tmp_path / "a.csv", tmp_path / "a.jsonl"):
        for kind in ("auto", "regression"):
            table = read([*NUMBERS, odd], path, kind)
            coerced = pandas.to_numeric(pandas.Series([*NUMBERS, str(odd)]), errors="coerce")
            assert labels(table) == pytest.approx(list(coerced[np.isfinite(coerced)]))
            assert table.problems.counts == {"rows whose label is no number": 1}
    halves = read([*(n / 2 for n in range(2, 11)), "?"] * 3, tmp_path / "a.csv")
    assert "?" in labels(halves) and "labels are numbers of 9 different values: classes" in halves.notes[0]


@pytest.mark.parametrize("spelling", ["0,5", "1,000.5", "1.000,5", "5%", "12.5 %", "$3.20", "1,200"])
def test_numbers_as_people_write_them_are_refused_and_never_classes(spelling: str, tmp_path: Path) -> None:
    many = [spelling.replace("5", str(n)).replace("2", str(n)) for n in range(10, 50)]
    for values in (many, [*NUMBERS, spelling], [spelling, *NUMBERS[1:]]):
        for kind in ("auto", "regression"):
            with pytest.raises(
                DataError, match=r"a.csv:\d+: the label .* is not written as a number is\n  allowed: dig"
            ):
                read(values, tmp_path / "a.csv", kind)
        assert len(labels(read(values, tmp_path / "a.csv", "single"))) == len(values)
    with pytest.raises(DataError, match=r"a.csv:42: the label none so is no number, as 40 of 50 labels are\n.*=regres"):
        read([*NUMBERS, *["none so"] * 10], tmp_path / "a.csv")


@pytest.mark.parametrize(
    ("values", "odd", "settled"),
    [
        (VECTORS, [0, 1], ["1"]),
        (VECTORS, [0, 1, "x"], ["1"]),
        (VECTORS, [0, 1, 0.5], ["1"]),
        (VECTORS, "a", ["1"]),
        (NAMES, '["a", "b', ["a", "b"]),
        (NAMES, "a", ["a", "b"]),
        (NAMES, ["a", None], ["a", "b"]),
        (NAMES, ["a", 0.5], ["a", "b"]),
        (["x", "y"] * 20, ["x"], "x"),
    ],
)
def test_one_odd_label_among_lists_is_counted_and_no_class(
    values: list[Any], odd: Any, settled: Any, tmp_path: Path
) -> None:
    for path in (tmp_path / "a.csv", tmp_path / "a.jsonl"):
        table = read([*values, odd], path)
        assert labels(table)[0] == settled and labels(table) == labels(read(values, path))
        assert (
            list(table.problems.counts.values()) == [1]
            and f"{path}:" in next(iter(table.problems.examples.values()))[0]
        )


def test_classes_that_may_be_meant_otherwise_are_named(tmp_path: Path) -> None:
    def notes(*values: Any) -> str:
        return "\n".join(read(list(values) * 5, tmp_path / "a.csv").notes)

    assert "Yes and yes are different classes" in notes("Yes", "yes", "no")
    assert "1000 and 1e3 are different classes" in notes("1e3", "1000", "7")
    assert "True and true are different classes" in notes("True", "true", "False")
    assert "4 of the classes are several joined by ;, like a; b: data.separator=';'" in notes(
        "a", "b", "c", "a; b", "a; c", "b; c", "a; b; c"
    )
    assert notes("Paris, France", "Lyon, France", "Rome, Italy") == notes("a", "b") == ""


@pytest.mark.parametrize(
    ("iob1", "iob2"),  # the entities of the first by seqeval's IOB1, of the second by its IOB2, are the same
    [
        ("I-A I-A O I-B", "B-A I-A O B-B"),
        ("I-A B-A I-A I-B", "B-A B-A I-A B-B"),
        ("O O", "O O"),
        ("B-A I-A O B-B", "B-A I-A O B-B"),
    ],
)
def test_iob1_becomes_iob2(iob1: str, iob2: str) -> None:
    assert as_iob2(iob1.split()) == iob2.split()
    assert as_iob2(iob2.split()) == iob2.split()


def test_tags_in_iob1_are_converted_and_a_mixture_is_said(tmp_path: Path) -> None:
    def tags(*rows: str) -> tuple[list[str], str]:
        lines = [{"words": row.split(), "tags": row.split()} for row in rows]
        (tmp_path / "a.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        table = read_table([str(tmp_path / "a.jsonl")], "tag", TableConfig(train=""))
        return [" ".join(row["tags"]) for row in table.rows], "".join(table.notes)

    assert tags("I-A I-A", "I-B B-B O")[0] == ["B-A I-A", "B-B B-B O"]
    assert "tags are IOB1: 2 entities" in tags("I-A I-A", "I-B B-B O")[1]
    assert tags("B-A I-A", "B-B O") == (["B-A I-A", "B-B O"], "")
    mixed = ["B-A I-A", "I-B O"]
    assert tags(*mixed)[0] == mixed and "1 entities begin with I- and 1 with B-" in tags(*mixed)[1]
    assert tags("B-A L-A", "U-B I-C") == (["B-A L-A", "U-B I-C"], "")
