"""The report of run directories that were written by hand, so that what must stand in it is known."""

import json
import math
import re
import shutil
from html.parser import HTMLParser
from xml.etree import ElementTree

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import confusion_matrix
from typer.testing import CliRunner

from lmkit.commands.main import app
from lmkit.report import comparison
from lmkit.report.curves import Series, histogram, line_chart, thinned
from lmkit.report.page import report_page
from lmkit.report.record import RunRecord

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
STEPS, EVIL = 400, "<script>alert(1)</script>"
GOLD = list("aabbcc" * 20)


def write_run(folder, seed, **recipe):
    rng = np.random.default_rng(seed)
    said = [label if rng.random() < 0.6 + seed / 5 else "abc"[rng.integers(3)] for label in GOLD]
    folder.mkdir(parents=True)
    (folder / "recipe.yaml").write_text(
        json.dumps({"task": {"name": "classify"}, "model": {"family": "bert"}} | recipe)
    )
    (folder / "environment.json").write_text(json.dumps({"command": ["lmkit", "finetune"], "cpu": "a CPU"}))
    status = {"state": "done", "step": STEPS, "tokens": STEPS * 100, "verdict": ["never predicts `d`\n  → more rows"]}
    (folder / "status.json").write_text(json.dumps(status))
    scores = {"accuracy": {"value": 0.75, "low": 0.6, "high": 0.9}}
    (folder / "scores.json").write_text(json.dumps({"scores": scores, "baselines": {"TF-IDF": scores}}))
    rows = [{"step": s, "loss": 3 / s + 1, "lr": 0.1, "grad_norm": 1.0, "tokens": s * 100} for s in range(1, STEPS + 1)]
    for row in rows[99::100]:
        row["val_loss"] = 1 + 1 / row["step"]
    samples = [json.dumps({"step": row["step"], "sample": f"{EVIL} {row['step']}"}) for row in rows[99::100]]
    (folder / "samples.jsonl").write_text("\n".join([*samples, ""]))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "timing.jsonl").write_text("".join(f'{{"step": {row["step"]}, "seconds": 0.5}}\n' for row in rows))
    events = [
        {"event": "introduced", "lines": ["120 rows"], "lengths": {"rows": [1, 3], "edges": [0, 5, 10], "limit": 8}}
    ]
    (folder / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    held_out = [
        {"place": f"x.csv:{i}", "loss": float(i % 7), "score": float(g == p), "gold": g, "prediction": {"label": p},
         "row": {"text": f"{EVIL} {i}"}}
        for i, (g, p) in enumerate(zip(GOLD, said, strict=True))
    ]  # fmt: skip
    (folder / "held_out.jsonl").write_text("".join(json.dumps(row) + "\n" for row in held_out))
    return said


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    home = tmp_path_factory.mktemp("runs")
    return home, write_run(home / "one", 0, optimizer={"lr": 0.1}), write_run(home / "two", 1, optimizer={"lr": 0.2})


def reported(*arguments):
    got = CliRunner().invoke(app, ["report", *map(str, arguments)])
    assert got.exit_code == 0, got.output
    return got.stdout.split()


class Text(HTMLParser):
    """Collects the cells of each row of the tables, and every start tag."""

    def __init__(self, page):
        super().__init__()
        self.rows, self.tags, self.in_cell = [], [], False
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.in_cell = self.in_cell or tag in ("td", "th")
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag):
        self.in_cell = self.in_cell and tag not in ("td", "th")

    def handle_data(self, data):
        if self.in_cell:
            self.rows[-1][-1] += data.strip()


def test_a_report_is_one_file_with_the_mistakes_of_the_model(runs):
    home, said, _ = runs
    (file,) = reported(home / "one")
    page = (home / "one/report.html").read_text()
    text = Text(page)
    assert file == str(home / "one/report.html")
    assert EVIL not in page and "&lt;script&gt;alert(1)&lt;/script&gt; 400" in page
    assert not any(tag in ("script", "link", "img", "iframe") or "src" in attrs for tag, attrs in text.tags)
    assert not re.search(r"""(?:href|url)\s*[=(]\s*["']?(?!#)[a-z]+:""", page)
    cells = {row[0]: row[1:] for row in text.rows}
    assert [[int(n) for n in cells[label]] for label in "abc"] == confusion_matrix(GOLD, said).tolist()
    assert cells["accuracy"] == ["0.75 (0.6–0.9)"] * 2
    worst = [row for row in text.rows if row and row[0].startswith("x.csv:")]
    assert [row[1] for row in worst] == ["6.000"] * 17 + ["5.000"] * 3
    assert "never predicts `d`" in page and "lmkit predict" in page


def test_several_runs_are_told_apart_and_tested(runs):
    home, first, second = runs
    reported(home / "one", home / "two", home / "one", "--out", home / "both.html")  # the first is named twice
    page = (home / "both.html").read_text()
    cells = {row[0]: row[1:] for row in Text(page).rows}
    assert cells["optimizer.lr"] == ["0.1", "0.2"] and "task.name" not in cells
    assert cells["accuracy"] == ["0.75 (0.6–0.9)"] * 3  # of both, and of the baseline that they have in common
    right = [np.array(said) == np.array(GOLD) for said in (first, second)]
    only = sorted((np.sum(right[0] & ~right[1]), np.sum(right[1] & ~right[0])))
    p = 2 * sum(math.comb(sum(only), k) for k in range(only[0] + 1)) / 2 ** sum(only)  # McNemar's exact test
    assert only[0] < only[1] and f"p = {p:.2g}, McNemar" in page


def trial(folder, losses, **settings):
    """Writes a run of pretraining for each loss, of one seed each."""
    for seed, loss in enumerate(losses):
        path = folder / f"{settings['lr']}-{seed}"
        path.mkdir(parents=True)
        recipe = {"task": {"name": "causal_lm"}, "train": {"seed": seed}, "optimizer": settings}
        (path / "recipe.yaml").write_text(json.dumps(recipe))
        best = {"step": 7, "val_loss": loss, "val_bits_per_byte": loss / 3}
        baselines = {"xz": {"bits_per_byte": 0.9}, "unigram": {"loss": 4.0, "bits_per_byte": 4 / 3}}
        status = {"state": "done", "step": 9, "best": best, "baselines": baselines}
        (path / "status.json").write_text(json.dumps(status))
    return [RunRecord(path) for path in sorted(folder.iterdir())]


def test_runs_are_ranked_over_their_seeds_and_the_difference_is_tested(tmp_path):
    losses = [3.0, 3.1, 3.2], [2.0, 2.1, 2.05]
    trial(tmp_path, losses[0], lr=1)
    records = trial(tmp_path, losses[1], lr=2)
    first, second = comparison.ranking(records)
    assert (first["settings"], second["settings"]) == ("optimizer.lr=2", "optimizer.lr=1")
    assert first["mean"] == pytest.approx(2.05) and second["deviation"] == pytest.approx(0.1)
    p = stats.ttest_ind(*losses, equal_var=False).pvalue
    page = report_page(records)
    assert f"That is evidence (p = {p:.2g}, Welch" in page and "2.0500 ± 0.0500" in page
    assert "0.6667: better than xz (0.9), unigram (1.333). The model to use, `best`, is of step 7 of 9." in page
    assert len(re.findall(">xz<", page)) == 1
    (tmp_path / "sweep.json").write_text('{"metric": "bits_per_byte"}')
    reported(tmp_path, "--out", tmp_path / "r.html")
    assert "Best is 2-0 with bits per byte 0.6833, ahead of 1-0 with 1.0333." in (tmp_path / "r.html").read_text()
    alone = comparison.which_is_best(comparison.ranking([records[0], records[-1]]))
    assert alone.startswith("Best is 2-2 with loss 2.0500, ahead of 1-0 with 3.0000. With one run each, chance")


@pytest.mark.parametrize("axis, last", [("step", 400), ("tokens", 40_000), ("time", 200)])
def test_a_curve_lies_where_its_ticks_say(runs, axis, last):
    record = RunRecord(runs[0] / "one")
    svg = ElementTree.fromstring(line_chart("loss", [Series("one", *record.curve("val_loss", axis), 0)], axis))
    (line,) = svg.iter("polyline")
    points = np.array([[float(n) for n in pair.split(",")] for pair in line.get("points").split()])
    heights = [(float(t.get("y")) - 4, float(t.text)) for t in svg.iter("text") if t.get("text-anchor") == "end"]
    slope, start = np.polyfit(*zip(*heights, strict=True), 1)
    assert points[:, 1] * slope + start == pytest.approx([1 + 1 / s for s in (100, 200, 300, 400)], abs=1e-4)
    widths = np.diff(points[:, 0])
    assert widths == pytest.approx(widths[0], abs=0.11)  # evaluations are evenly far apart on all axes
    assert record.curve("val_loss", axis)[0][-1] == last


@pytest.mark.parametrize("edges", [range(5), range(9), range(12_300_000, 12_300_900, 100)])
def test_the_marks_below_a_histogram_differ(edges):
    svg = ElementTree.fromstring(histogram("rows", [1] * (len(edges) - 1), list(edges), None, "tokens"))
    marks = [t.text for t in svg.iter("text") if t.get("text-anchor") == "middle"]
    assert len({*marks}) == len(marks) > 2 and all(int(mark.replace(",", "")) >= edges[0] for mark in marks)


def test_what_a_run_on_tokens_did_not_use_is_marked_in_its_recipe(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "tokens/tokenizer").mkdir(parents=True)
    (tmp_path / "tokens/manifest.json").write_text("{}")
    recipe = "tokenizer:\n  type: bpe\ndata:\n  train: {}\n  text: text\ntrain:\n  text: 1\n"
    for train, unused in (("tokens", ["tokenizer:", "  text: text"]), ("nowhere", [])):
        (tmp_path / "run/recipe.yaml").write_text(recipe.format(tmp_path / train))
        page = report_page([RunRecord(tmp_path / "run")])
        assert re.findall(r"(?m)([^>\n]*)  # not used: the data were tokens already", page) == unused


def test_many_classes_are_told_by_their_worst_confusions_and_a_perfect_model_so(runs, tmp_path):
    shutil.copytree(runs[0] / "one", tmp_path / "run")
    pairs = [(f"c{n}", f"c{n}") for n in range(14)] + [("c3", "c4")] * 3 + [("c5", "c6")] * 2
    row = lambda g, p: json.dumps({"gold": g, "prediction": {"label": p}, "score": int(g == p), "loss": 0.1})
    page = lambda: report_page([RunRecord(tmp_path / "run")])
    (tmp_path / "run/held_out.jsonl").write_text("".join(row(*pair) + "\n" for pair in pairs))
    mixed = page()
    assert [r for r in Text(mixed).rows if len(r) == 3][-3:] == [
        ["is", "said", "rows"],
        ["c3", "c4", "3"],
        ["c5", "c6", "2"],
    ]
    assert "<summary>All 14 classes</summary>" in mixed and "5 of 19 held-out rows are wrong." in mixed
    (tmp_path / "run/held_out.jsonl").write_text("".join(row(*pair) + "\n" for pair in pairs[:14]))
    assert "No held-out row is wrong; these are the least certain." in page()


def test_a_long_curve_keeps_its_mean_and_its_extremes():
    values = np.random.default_rng(0).normal(size=100_000)
    places, means, lows, highs = thinned(np.arange(100_000.0), values, 100)
    assert len(places) == 100 and means.mean() == pytest.approx(values.mean()) and places[0] == 499.5
    assert lows.min() == values.min() and highs.max() == values.max()


def test_damaged_logs_hide_nothing_else(runs, tmp_path):
    shutil.copytree(runs[0] / "one", tmp_path / "run")
    metrics = tmp_path / "run/metrics.jsonl"
    metrics.write_text(metrics.read_text()[:-20].replace('"loss": 4.0', '"loss": "4', 1))
    for name in ("scores.json", "environment.json", "recipe.yaml", "status.json"):
        (tmp_path / "run" / name).write_text("{")
    reported(tmp_path / "run")
    record = RunRecord(tmp_path / "run")
    assert record.columns["step"].tolist() == list(range(2, STEPS)) and len(record.samples) == 4
    assert record.state == "not begun" and record.scores == {}
    assert "Samples through time" in (tmp_path / "run/report.html").read_text()


def test_pictures_are_written_by_matplotlib(runs, tmp_path):
    pytest.importorskip("matplotlib")
    from PIL import Image

    page, *pictures = reported(runs[0] / "one", "--out", tmp_path / "r.html", "--png")
    assert page == str(tmp_path / "r.html") and str(tmp_path / "r-validation-loss.png") in pictures
    assert all(Image.open(picture).size == (1050, 600) for picture in pictures)


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
def test_the_page_fits_a_phone_and_its_axis_is_chosen_by_keyboard(runs, tmp_path):
    playwright = pytest.importorskip("playwright.sync_api")
    reported(runs[0] / "one", runs[0] / "two", "--out", tmp_path / "r.html")
    with playwright.sync_playwright() as browsers:
        browser = browsers.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        context = browser.new_context(
            viewport={"width": 360, "height": 640}, color_scheme="dark", java_script_enabled=False, offline=True
        )
        page = context.new_page()
        page.goto(f"file://{tmp_path}/r.html")
        visible = lambda axis: page.locator(f".by.{axis} svg").first.is_visible()
        assert visible("step") and not visible("time")
        page.focus("#by-step")
        page.keyboard.press("ArrowRight")
        page.keyboard.press("ArrowRight")
        assert visible("time") and not visible("step")
        assert page.locator("header").bounding_box()["width"] <= 360
        assert page.get_by_role("img", name="validation loss by time").count() == 1
        browser.close()
