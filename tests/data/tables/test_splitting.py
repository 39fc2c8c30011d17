"""No row is on both sides, no class is missing on one, and the report says what is wrong with the data."""

from collections import Counter
from typing import Any

import numpy as np
import pytest
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

from lmkit.base.errors import DataError
from lmkit.data.inputs import Problems
from lmkit.data.tables.report import report
from lmkit.data.tables.splitting import fold, groups_held_out, limit, same_input, split
from lmkit.data.tables.table import Table


def table(rows: list[dict[str, Any]]) -> Table:
    return Table(rows, [f"a.jsonl:{n}" for n in range(1, len(rows) + 1)], {}, "jsonl", Problems())


def texts(labels: list[Any], same: int = 1) -> Table:
    """A row for each label, with `same` rows of each text."""
    return table([{"text": f"text {n // same}", "label": label} for n, label in enumerate(labels)])


def parts(whole: Table, share: float, seed: int = 0, task: str = "classify") -> tuple[Table, Table]:
    """The two sides, after checking that every row is on one, in order, and nothing that reads alike on both."""
    train, held_out = split(whole, share, seed, task)
    assert sorted(train.places + held_out.places) == sorted(whole.places)
    for part in (train, held_out):
        assert [whole.places.index(place) for place in part.places] == sorted(map(whole.places.index, part.places))
        assert all(whole.rows[whole.places.index(p)] == row for p, row in zip(part.places, part.rows, strict=True))
    seen = {str(same_input(row, task)) for row in train.rows}
    assert not seen & {str(same_input(row, task)) for row in held_out.rows}
    return train, held_out


@pytest.mark.parametrize("share", [0.05, 0.1, 0.5])
def test_each_class_keeps_its_share(share: float) -> None:
    sizes = {"a": 300, "b": 60, "c": 20, "d": 2, "e": 1}
    train, held_out = parts(texts([label for label, n in sizes.items() for _ in range(n)]), share)
    counts = [Counter(row["label"] for row in part.rows) for part in (train, held_out)]
    assert {label: counts[1][label] for label in "abc"} == {label: round(share * sizes[label]) for label in "abc"}
    assert counts[0]["d"] == counts[1]["d"] == counts[0]["e"] == 1


def test_a_split_depends_on_seed_and_rows_only() -> None:
    whole = texts(["a", "b"] * 100)
    first, again, other = (split(whole, 0.1, seed, "classify")[1].places for seed in (1, 1, 2))
    assert first == again != other and len(other) == 20
    backwards = Table(whole.rows[::-1], whole.places[::-1], {}, "jsonl", Problems())
    assert sorted(split(backwards, 0.1, 1, "classify")[1].places) == sorted(first)
    assert first[:3] == ["a.jsonl:16", "a.jsonl:27", "a.jsonl:53"]  # on every machine
    assert split(whole, 0, 1, "classify")[1].rows == []


def test_what_reads_alike_stays_together() -> None:
    parts(texts(["a", "b", "a", "a"] * 50, same=4), 0.2)
    said = [
        {"messages": [{"role": "user", "content": str(n % 9)}, {"role": "assistant", "content": str(n)}]}
        for n in range(60)
    ]
    parts(table(said), 0.2, task="chat")
    train, held_out = parts(
        table([{"source": str(n % 30), "target": str(n)} for n in range(90)]), 0.1, task="translate"
    )
    assert len(held_out.rows) == 9 and len(train.rows) == 81
    with pytest.raises(DataError, match=r"all 4 read the same"):
        split(texts(["a", "b", "a", "b"], same=4), 0.1, 0, "classify")


def test_numbers_and_several_labels_are_split_too() -> None:
    assert len(parts(texts([n / 7 for n in range(100)]), 0.1)[1].rows) == 10
    several = [["common"] + (["rare"] if n % 10 == 0 else []) if n % 7 else [] for n in range(200)]
    held_out = parts(texts(several), 0.1)[1]
    assert sum("rare" in row["label"] for row in held_out.rows) == 2


def test_no_context_and_no_article_is_on_both_sides() -> None:
    def ask(n: int, title: str, context: str) -> dict[str, Any]:
        return {"id": str(n), "title": title, "context": context, "question": f"q {n}", "answers": []}

    rows = [ask(n, f"title {n // 20}", f"context {n // 5}") for n in range(200)]
    rows += [ask(200, "title 0", "context 39")]  # ties two articles together
    train, held_out = parts(table(rows), 0.2, task="qa")
    for key in ("title", "context"):
        assert not {row[key] for row in train.rows} & {row[key] for row in held_out.rows}
    assert 30 <= len(held_out.rows) <= 50
    for title in ("", "one"):
        train, held_out = parts(table([ask(n, title, f"context {n // 5}") for n in range(50)]), 0.1, task="qa")
        assert len(held_out.rows) == 5 and len({row["context"] for row in held_out.rows}) == 1
    with pytest.raises(DataError, match="all 3 are about one text"):
        split(table([ask(n, "", "one") for n in range(3)]), 0.1, 0, "qa")


def test_what_has_the_only_words_of_a_tag_is_trained_on() -> None:
    rows = [{"words": [str(n)], "tags": [f"B-{n}" if n % 2 else "O"]} for n in range(40)]
    _, held_out = parts(table(rows), 0.5, task="tag")
    assert held_out.rows and {"O"} == {row["tags"][0] for row in held_out.rows}
    several = [{"text": str(n), "label": ["all", f"only {n}"] if n % 2 else ["all"]} for n in range(40)]
    _, held_out = parts(table(several), 0.5)
    assert held_out.rows and all(row["label"] == ["all"] for row in held_out.rows)


def test_a_limit_draws_rows_in_their_order() -> None:
    whole = texts(["a"] * 100)
    drawn = [limit(whole, 10, seed).places for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2] and len(set(drawn[2])) == 10
    assert drawn[0] == sorted(drawn[0], key=whole.places.index)
    assert limit(whole, 0, 0) is whole and limit(whole, 100, 0) is whole


def test_the_report_of_classes() -> None:
    train = texts(["a"] * 80 + ["b"] * 15 + ["c"] * 5)
    train.rows[1] = train.rows[0]
    train.rows[2] = train.rows[0] | {"label": "b"}
    held_out = table([{"text": "text 0", "label": "a"}, {"text": "new", "label": "d"}, {"text": "new", "label": "d"}])
    assert report(train, held_out, "classify", [10] * 99 + [512], 512, cut=1) == [
        "100 rows, and 3 held out",
        "3 classes:",
        "  a         79   79.0%",
        "  b         16   16.0%",
        "  c          5    5.0%",
        "classes are uneven: reporting macro-F1 beside accuracy; data balance with task.class_weights=true",
        "1 labels of the held-out rows are in no training row: d (2)",
        "tokens a row: 10 (median), 10 (95th percentile), 512 (longest)",
        "1 (1.0%) rows are longer than 512 tokens and are cut",
        "1 (1.0%) training rows repeat an earlier one",
        "1 (33.3%) held-out rows repeat an earlier one",
        "1 texts have different labels in different training rows",
        "1 (33.3%) held-out rows stand in the training rows too: their scores flatter",
    ]
    assert "2 (2.0%) rows are longer than 512 tokens and are cut" in report(
        train, None, "classify", [10] * 98 + [600] * 2, 512
    )
    counts = {f"c{n:02}": 40 - n for n in range(32)}
    lines = report(texts([label for label, n in counts.items() for _ in range(n)]), None, "classify")
    first = lines.index("32 classes:") + 1
    listed = [line.split()[0] for line in lines[first : first + 21]]
    assert lines[first + 15] == "  ... 12 more, and the smallest:"
    assert listed == [*list(counts)[:15], "...", *list(counts)[-5:]]
    assert report(texts([0.5, 1.0]), None, "classify")[1] == "labels are numbers from 0.5 to 1, 0.75 on average"


def test_one_class_is_an_error_unless_it_is_meant() -> None:
    with pytest.raises(DataError, match=r"all rows have the same label: a\n(.*\n)*.*data.label=COLUMN"):
        report(texts(["a", "a"]), None, "classify")
    assert report(texts(["a", "a"]), None, "classify", one_class=True)[1] == "1 classes:"


def test_the_report_of_questions_and_tags() -> None:
    rows = [{"id": str(n), "title": "", "context": "c", "question": f"q {n % 3}", "answers": []} for n in range(4)]
    assert report(table(rows), None, "qa") == [
        "4 rows", "4 (100.0%) of the questions have no answer", "1 (25.0%) rows repeat an earlier one",
    ]  # fmt: skip
    tagged = table([{"words": ["a", "b"], "tags": ["O", "B-X"]}])
    assert report(tagged, None, "tag")[1:3] == ["2 tags:", "  B-X          1   50.0%"]


@pytest.mark.parametrize("task", ["classify", "qa"])
def test_rows_of_one_group_are_on_one_side(task: str) -> None:
    rows = [{"text": f"text {n // 2}", "label": "ab"[n % 2]} for n in range(200)]
    if task == "qa":
        rows = [{"id": str(n), "title": "", "context": f"text {n // 2}", "question": "?"} for n in range(200)]
    whole = table(rows)
    users = [f"user {n % 40}" if n % 9 else None for n in range(200)]
    for place, user in zip(whole.places, users, strict=True):
        whole.beside[place] = {"user": user}
    sides = split(whole, 0.2, 0, task, "user")
    assert len(sides[1].rows) == pytest.approx(40, abs=20) and len(sides[0].rows) + len(sides[1].rows) == 200
    seen = [{whole.beside[place]["user"] for place in side.places} - {None} for side in sides]
    read = [{row.get("text", row.get("context")) for row in side.rows} for side in sides]
    assert not seen[0] & seen[1] and not read[0] & read[1]
    said = f"{len(seen[1])} of 40 values of `user` are held out, {len(sides[1].rows)} of 200 rows; 23 rows have none"
    assert said in groups_held_out(whole, sides[1], "user")
    assert [place for place, user in zip(whole.places, users, strict=True) if not user and place in sides[1].places]
    with pytest.raises(DataError, match="or share their all"):
        for place in whole.places:
            whole.beside[place] = {"all": 1}
        split(whole, 0.2, 0, task, "all")


@pytest.mark.parametrize("group", [None, "user"])
def test_folds_are_all_rows_once_and_about_as_even_as_those_of_scikit_learn(group: str | None) -> None:
    labels = np.array(["a"] * 140 + ["b"] * 45 + ["c"] * 15)
    users = np.arange(200) * 7 % 50
    whole = texts(labels.tolist())
    whole.beside.update({place: {"user": int(user)} for place, user in zip(whole.places, users, strict=True)})
    sides = [fold(whole, number, 5, 0, "classify", group) for number in range(1, 6)]
    assert sorted(place for _, held_out in sides for place in held_out.places) == sorted(whole.places)
    for train, held_out in sides:
        assert sorted(train.places + held_out.places) == sorted(whole.places)
        seen = [{whole.beside[place]["user"] for place in side.places} for side in (train, held_out)]
        assert group is None or not seen[0] & seen[1]
    judge = StratifiedGroupKFold(5, shuffle=True, random_state=0) if group else StratifiedKFold(5)
    theirs = [Counter(labels[rows].tolist()) for _, rows in judge.split(labels, labels, users)]
    ours = [Counter(row["label"] for row in held_out.rows) for _, held_out in sides]
    apart = lambda folds: max(abs(counts[name] - n / 5) for counts in folds for name, n in Counter(labels).items())
    assert apart(ours) <= apart(theirs) + (3 if group else 1)  # a group of several classes counts for its first
    assert {len(held_out.rows) for _, held_out in sides} == {40}
    assert fold(whole, 2, 5, 0, "classify", group)[1].places == sides[1][1].places
    with pytest.raises(DataError, match=r"2 groups that stay together(.*\n)*.*data.fold=1/2"):
        fold(texts(["a", "b", "a", "b"], same=2), 1, 3, 0, "classify")


def test_texts_that_all_groups_share_do_not_keep_a_group_from_being_held_out() -> None:
    whole = table([{"text": f"text {n % 3}", "label": "ab"[n % 2]} for n in range(200)])
    whole.beside.update({place: {"user": n // 3} for n, place in enumerate(whole.places)})
    sides = split(whole, 0.2, 0, "classify", "user")
    users = [{whole.beside[place]["user"] for place in side.places} for side in sides]
    assert users[0] and users[1] and not users[0] & users[1]
