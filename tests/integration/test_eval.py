"""`lmkit eval` of fine-tuned models: all that is printed in one object; slices, worst rows, calibration, curves."""

import csv
import json
import random

import numpy as np
import pytest
from sklearn import metrics
from sklearn.calibration import calibration_curve
from typer.testing import CliRunner

from lmkit.base.errors import UserError
from lmkit.commands.main import app
from tests.tasks.test_toys import SMALL, TRAIN, run


def lmkit(*arguments):
    result = CliRunner().invoke(app, list(map(str, arguments)), catch_exceptions=False)
    assert result.exit_code == 0
    return result


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """Two runs, one of which had a quarter of the rows, beside the rows that both held out."""
    folder, rng = tmp_path_factory.mktemp("eval"), random.Random(0)
    with (folder / "rows.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["text", "label", "source"])
        for i in range(240):
            label = rng.choice(["bad", "good", "fair"])
            word = label if rng.random() < 0.8 else rng.choice(["bad", "good", "fair"])
            rows.writerow([f"it was {word} {rng.choice(['food', 'service'])} {i}", label, ["web", "shop"][i % 3 == 0]])
    lines = (folder / "rows.csv").read_text().splitlines(keepends=True)
    (folder / "train.csv").write_text("".join(lines[:160]))
    (folder / "held.csv").write_text("".join(lines[:1] + lines[160:]))
    for name, limit, encoding in (("small", 40, "auto"), ("large", 0, "utf-8")):
        run(
            folder / name, "task.name=classify", f"data.train={folder / 'train.csv'}", f"data.limit={limit}",
            f"data.encoding={encoding}",
            f"data.validation={folder / 'held.csv'}", f"model={{family: bert, {SMALL}}}", *TRAIN,
            "train.budget=30 steps",
        )  # fmt: skip
    return folder


def test_one_object_holds_all_and_is_that_of_sklearn(work):
    model = str(work / "large")
    arguments = ("eval", model, "--data", work / "held.csv", "--by", "source", "--worst", "5")
    printed = lmkit(*arguments, "--json").stdout
    told, shown = json.loads(printed), lmkit(*arguments).stdout
    lmkit("predict", model, "--data", work / "held.csv", "--out", work / "said.jsonl", "--keep", "source")
    said = [json.loads(line) for line in (work / "said.jsonl").read_text().splitlines()]
    gold, given = [row["gold"] for row in said], [row["label"] for row in said]
    top = np.array([max(row["scores"].values()) for row in said])
    right = np.array(gold) == np.array(given)

    bins = told["reliability"][model]
    share, confidence = calibration_curve(right, top, n_bins=15)
    assert [b["accuracy"] for b in bins] == pytest.approx(list(share), abs=1e-5)
    assert [b["confidence"] for b in bins] == pytest.approx(list(confidence), abs=1e-5)
    ece = sum(b["rows"] * abs(b["accuracy"] - b["confidence"]) for b in bins) / len(said)
    assert told["models"][model]["ece"]["value"] == pytest.approx(ece)

    matrix = metrics.confusion_matrix(gold, given, labels=["bad", "fair", "good"])
    found = told["confusion"][model]
    assert [
        [found.get(a, {}).get(b, 0) for b in ("bad", "fair", "good")] for a in ("bad", "fair", "good")
    ] == matrix.tolist()

    for value, part in told["by"]["source"][model].items():
        mine = [i for i, row in enumerate(said) if row["source"] == value]
        assert part["rows"] == len(mine)
        assert part["accuracy"]["value"] == pytest.approx(right[mine].mean())
        assert part["accuracy"]["low"] <= right[mine].mean() <= part["accuracy"]["high"]
        assert f"{value} ({len(mine)})" in shown

    worst = sorted(said, key=lambda row: -row["loss"])[:5]
    assert [row["place"] for row in told["worst"][model]] == [row["place"] for row in worst]
    assert [row["loss"] for row in told["worst"][model]] == pytest.approx([row["loss"] for row in worst], abs=1e-5)
    assert [row["prediction"]["label"] for row in told["worst"][model]] == [row["label"] for row in worst]
    assert all(row["place"] in shown for row in worst)

    (work / "scores.json").write_text(printed)
    assert "all is as in" in lmkit("eval", "--again", work / "scores.json").stderr


def test_two_models_are_compared_in_the_object_as_on_the_screen(work):
    arguments = ("eval", work / "large", work / "small", "--data", work / "held.csv")
    told, shown = json.loads(lmkit(*arguments, "--json").stdout), lmkit(*arguments).stdout
    assert told["comparison"]["verdict"] in shown and len(told["reliability"]) == 2


def test_a_curve_reads_runs_and_trains_nothing(work):
    runs = [str(work / "large"), str(work / "small")]
    told = json.loads(lmkit("eval", *runs, "--curve", "--json").stdout)
    assert [(point["run"], point["amount"]) for point in told["curve"]] == [(runs[1], 40), (runs[0], 159)]
    for point, name in zip(told["curve"], ("small", "large"), strict=True):
        assert point["scores"] == json.loads((work / name / "scores.json").read_text())["scores"]
    first, last = (point["scores"]["accuracy"]["value"] for point in told["curve"])
    assert told["per_doubling"]["accuracy"] == pytest.approx((last - first) / np.log2(159 / 40))
    assert f"{last:.4f}" in lmkit("eval", *runs, "--curve").stdout
    with pytest.raises(UserError, match="not a run directory"):
        lmkit("eval", runs[0], work, "--curve")


def test_files_that_were_learnt_from_are_named_and_others_are_not(work):
    copy = work / "copy.csv"
    copy.write_bytes((work / "train.csv").read_bytes())
    told = lmkit("eval", work / "large", work / "small", "--data", copy, "--json")
    found = json.loads(told.stdout)["trained_on"]
    assert [(f["model"], f["file"], f["rows"]) for f in found] == [
        (str(work / "large"), str(copy), 159), (str(work / "small"), str(copy), 40)
    ]  # fmt: skip
    assert f"{work / 'small'} was trained on 40 of its rows, so the scores flatter" in told.stderr
    told = lmkit("eval", work / "large", "--data", work / "held.csv", "--json")
    assert "trained_on" not in json.loads(told.stdout) and "flatter" not in told.stderr


def test_files_are_read_in_the_encoding_of_training_and_that_is_said_once(work):
    (work / "new.csv").write_bytes("text\nil était bon\n".encode("cp1252"))
    told = lmkit("predict", work / "small", "--data", work / "new.csv", "--keep", "text")
    assert json.loads(told.stdout)["text"] == "il était bon"
    assert told.stderr.count("files are read as auto, as in training") == 1
    assert told.stderr.count("files read by their bytes as cp1252: 1") == 1
    given = lmkit("predict", work / "small", "--data", work / "new.csv", "--keep", "text", "--encoding", "cp1251")
    assert json.loads(given.stdout)["text"] != "il était bon" and "in training" not in given.stderr


def test_options_without_a_use_are_refused(work):
    with pytest.raises(UserError, match="no column `sauce`"):
        lmkit("eval", work / "large", "--data", work / "held.csv", "--by", "sauce")
    with pytest.raises(UserError, match="--tasks and --data"):
        lmkit("eval", work / "large", "--data", work / "held.csv", "--tasks", "basics")
    with pytest.raises(UserError, match="what to score"):
        lmkit("eval")
