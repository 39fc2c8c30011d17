"""What is said after a run: each line where it is true, none where it is not, and advice that works."""

import json
import re
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from lmkit.base.units import split_quantity
from lmkit.commands.main import app
from lmkit.evaluation.intervals import Estimate
from lmkit.training import verdict
from lmkit.training.checkpoints import State
from lmkit.training.job import Job

PRETRAIN = (
    "model.family=gpt2 model.depth=1 model.hidden_size=16 model.num_heads=2 model.context=16 data.train=text.txt "
    "data.separator='|' data.validation=0.2 tokenizer.vocab_size=300 train.batch=64 train.budget='12 steps' "
    "evaluate.every=25% evaluate.sample=null"
)


def said(command: str, code: int = 0) -> str:
    result = CliRunner().invoke(app, shlex.split(command), catch_exceptions=False)
    assert result.exit_code == code, result.output
    return result.stdout


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.setenv("LMKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    Path("text.txt").write_text("|".join(f"the {w} was very good and so was the other {w}." for w in "abcdefgh" * 9))
    Path("r.yaml").write_text("model: {}\n")
    return tmp_path


def test_a_loss_that_still_falls_is_said_with_a_command_that_works(here):
    shown = said(f"pretrain r.yaml {PRETRAIN} optimizer.name=adamw optimizer.lr=0.02 schedule.decay=0% --out run")
    first, _, advice = shown.partition("→")
    assert "the validation loss was still falling at the end" in first
    longer = re.search(r"lmkit (.*)", advice)[1]
    assert "train.budget='24 steps'" in longer
    assert re.search(r"beside xz [\d.]+, unigram [\d.]+, uniform [\d.]+ bits per byte", first)
    assert "24 steps" in said(longer) and Path("run-longer/best/config.json").is_file()


@pytest.mark.parametrize(
    ("losses", "says"),
    [
        ([3.0, 2.5, 2.0], "still falling"),
        ([3.0, 2.0, 1.99], None),
        ([3.0, 2.0, 2.05], "best checkpoint is that of step 2: its validation loss of 2 has risen to 2.05"),
        ([3.0, 2.0, 2.0], None),
        ([3.0, 2.0, 2.4], "has risen since step 2 (2 → 2.4)"),
        ([3.0, 2.0], "still falling"),
        ([3.0], None),
    ],
)
def test_the_course_of_the_loss(losses, says, tmp_path):
    rows = [{"step": i, "loss": 1.0} | {"val_loss": loss} for i, loss in enumerate(losses, 1)]
    (tmp_path / "metrics.jsonl").write_text("\n".join(map(json.dumps, [{"step": 0, "loss": 9.0}, *rows])))
    lines = verdict.course(tmp_path, "3 epochs", "finetune", by_loss=True)
    assert "has risen to" in str(lines) or lines == verdict.course(tmp_path, "3 epochs", "finetune")
    assert (says in lines[0]) if says else not lines


@pytest.mark.parametrize(
    ("budget", "doubled"), [("20000000 tokens", "40000000 tokens"), ("1.5 min", "3 min"), ("3 epochs", "6 epochs")]
)
def test_the_longer_budget_is_one_that_recipes_can_read(budget, doubled, tmp_path):
    rows = [{"step": i, "val_loss": loss} for i, loss in enumerate([3.0, 2.5, 2.0])]
    (tmp_path / "metrics.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (line,) = verdict.course(tmp_path, budget, "pretrain")
    assert f"train.budget='{doubled}'" in line and split_quantity(doubled)[0] == 2 * split_quantity(budget)[0]


def test_a_model_that_beats_no_baseline_is_told_so():
    scores = {"model": Estimate(0.8, 0.75, 0.85), "TF-IDF": Estimate(0.9, 0.86, 0.94), "commonest": Estimate(0.5, 0, 1)}
    columns = {name: {"accuracy": score} for name, score in scores.items()}
    (line,) = verdict.beside_baselines(columns, "accuracy", pretrained=False)
    assert line.startswith("accuracy 0.8000 is worse than that of TF-IDF (0.9000)") and "--model" in line
    columns["TF-IDF"] = {"accuracy": Estimate(0.81, 0.8, 0.9)}
    assert "no better than" in verdict.beside_baselines(columns, "accuracy", pretrained=True)[0]
    columns["TF-IDF"] = {"accuracy": Estimate(0.79, 0.7, 0.9)}
    assert verdict.beside_baselines(columns, "accuracy", pretrained=True) == []
    perfect = {name: {"accuracy": Estimate(1.0, 1.0, 1.0)} for name in columns}
    assert verdict.beside_baselines(perfect, "accuracy", pretrained=True) == []
    bleu = {"model": {"bleu": Estimate(1.0, 0.5, 2)}, "source": {"bleu": Estimate(0.3, None, None)}}
    assert "bleu 1.0000 of 100: next to nothing" in verdict.beside_baselines(bleu, "bleu", False, top=100)[0]
    assert verdict.beside_baselines(bleu | {"model": {"bleu": Estimate(30, 20, 40)}}, "bleu", False, top=100) == []


def test_texts_that_are_empty_or_all_alike_are_counted_where_they_are_wrong():
    silent = [("", ["yes"]), ("", ["no"]), ("maybe", ["maybe"]), ("", [""])]
    assert verdict.of_texts(silent, "x") == ["writes nothing for 2 of the 3 rows held out that have an answer\n  → x"]
    alike = [("yes", ["yes"])] * 5 + [("yes", ["no", "never"])] * 3 + [("no", ["no"])] * 2
    (line,) = verdict.of_texts(alike)
    assert line == "writes the same wrong text for 3 of 10 rows held out: `yes` (different texts in all: 2)"
    assert verdict.of_texts([("yes", ["yes"])] * 8 + alike[5:]) == []  # to 3 of 13 it is wrong


def test_labels_that_are_never_predicted_are_named_after_a_run(here):
    rows = ["text,label"] + [
        f"{'abc'[i % 3]} {'xyz'[i % 2]} {i % 7},{'rare' if i % 13 == 0 else 'common'}" for i in range(91)
    ]
    Path("rows.csv").write_text("\n".join(rows))
    small = "model.family=bert model.depth=1 model.hidden_size=16 model.num_heads=2 "
    small += "model.context=16 tokenizer.vocab_size=300"
    shown = said(
        f"finetune --task classify --data rows.csv --validation rows.csv {small} train.budget='2 steps' --out run"
    )
    assert "verdict  never predicts `rare` (7), of 91 rows held out" in shown
    assert "task.class_weights=true" in shown and "is no better than that of" in shown
    sentence = lambda i, tag: "\n".join(["here O"] * 9 + [f"{i} {tag}", ""])
    Path("train.conll").write_text("\n".join(sentence(i, "O" if i else "B-PER") for i in range(40)) + "\n")
    Path("new.conll").write_text("\n".join(sentence(i, "B-PER") for i in (51, 52, 53)) + "\n")
    task = "finetune --task tag --data train.conll --validation new.conll"
    shown = said(f"{task} {small} train.budget='8 epochs' evaluate.every=100% --out tags")
    assert "never predicts `B-PER` (3), of 3 rows" in shown and "class_weights" not in shown


def scored(share_of: int, evaluations: list[tuple[float, float]]) -> int:
    """Returns which of several evaluations, (accuracy, loss) each, is the best."""
    job = Job.__new__(Job)
    job.state, job.metric, job.higher, job.share_of = State(), "val_accuracy", True, share_of
    best = -1
    for i, (accuracy, loss) in enumerate(evaluations):
        scores = {"val_accuracy": accuracy, "val_loss": loss}
        if job.better(scores):
            job.state.best, best = scores, i
        job.state.top = job.top_score(accuracy)
    return best


def test_of_scores_that_noise_cannot_tell_apart_the_lower_loss_is_best():
    """One standard error of 0.9 is 0.03 of 100 rows, and 0.003 of 10,000."""
    evaluations = [(0.90, 0.30), (0.92, 0.40), (0.91, 0.28), (0.89, 0.20), (0.50, 0.10)]
    assert scored(0, evaluations) == 1
    assert scored(10_000, evaluations) == 1
    assert scored(100, evaluations) == 2  # 0.89 is more than one standard error (0.027) below 0.92
    assert scored(100, [(0.90, 0.30), (0.88, 0.2), (0.86, 0.1)]) == 1  # small steps down do not add up
    assert scored(100, [(0.80, 0.10), (0.95, 0.30)]) == 1
