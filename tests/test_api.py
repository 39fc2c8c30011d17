"""lmkit in Python does what the commands do."""

import csv
import inspect
import json
from pathlib import Path

import pytest
import torch
import transformers
from typer.main import get_command

import lmkit
from lmkit.base.errors import UserError
from lmkit.commands.eval import SHOWING
from lmkit.commands.main import app
from lmkit.ops.scores import OPTIONS
from lmkit.training import pretraining_run
from tests.training.conftest import write_tiny
from tests.training.stopping import rows, same

NOTEBOOK = Path(__file__).parent.parent / "docs/python.ipynb"


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    monkeypatch.setenv("LMKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return write_tiny(tmp_path)


def test_a_run_from_python_is_that_of_the_command_and_resumes_after_a_callback_failed(tiny):
    assert pretraining_run.start(tiny, ("train.seed=5",), Path("typed")) == 0
    steps, evaluated = [], []

    def watch(row):
        steps.append(row["step"])
        if row["step"] == 8 and len(steps) == 8:
            raise KeyError("of the user")

    with pytest.raises(KeyError):
        lmkit.pretrain("tiny.yaml", out="run", train={"seed": 5}, on_step=watch)
    run = lmkit.pretrain(resume="run", on_step=watch, on_evaluation=lambda row: evaluated.append(row["val_loss"]))
    same("typed", "run")
    assert steps == [*range(1, 9), *range(7, 13)] and run.state == "done"
    assert evaluated == [row["val_loss"] for row in rows("run") if row["step"] in (8, 12)]
    assert run.best["val_loss"] == min(v for _, v in zip(*run.curve("val_loss"), strict=True))


def test_a_recipe_may_be_dicts_and_mistakes_are_told(tiny):
    recipe = {"model": {"family": "gpt2", "hidden_size": 16, "num_layers": 1, "num_heads": 2, "context": 16},
              "tokenizer": {"type": "bytes"}, "data": {"train": ["corpus.txt"], "separator": "\n"},
              "train": {"budget": "2 steps", "batch": 128}}  # fmt: skip
    run = lmkit.pretrain(recipe, model={"num_heads": 4})
    assert run.path == Path("runs/run") and run.recipe["model"]["num_heads"] == 4
    with pytest.raises(UserError, match="did you mean"):
        lmkit.pretrain(recipe, train={"budgt": "2 steps"})
    with pytest.raises(UserError, match="no option of evaluate"):
        lmkit.evaluate("runs/run", data="corpus.txt", wors=3)
    facts = lmkit.evaluate(run.path, data="corpus.txt", separator="\n")
    assert facts["documents"] == 120 and facts["loss"]["value"] == pytest.approx(run.best["val_loss"], abs=0.3)


def test_a_loaded_model_labels_and_embeds_as_transformers_does(tiny):
    table = [(f"{a} {b}", "up" if a == "good" else "down") for a in ("good", "bad") for b in "abcdefgh"]
    with Path("rows.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("text", "label"), *table])
    sizes = {"family": "bert", "hidden_size": 16, "num_layers": 1, "num_heads": 2, "context": 16}
    run = lmkit.finetune(task="classify", model=sizes, data="rows.csv", train={"budget": "30 steps"},
                         optimizer={"lr": 0.02}, tokenizer={"vocab_size": 300}, out="mails")  # fmt: skip
    model = lmkit.load(run.path)
    texts = ["good a", "bad b c"]
    said = model.predict([texts[0], {"text": texts[1]}])
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained("mails/best").eval()
    words = transformers.AutoTokenizer.from_pretrained("mails/best")
    with torch.no_grad():
        outputs = [theirs(**words(text, return_tensors="pt"), output_hidden_states=True) for text in texts]
    for one, output in zip(said, outputs, strict=True):
        want = output.logits.softmax(-1)[0].tolist()
        assert one["scores"] == {theirs.config.id2label[i]: pytest.approx(p, abs=1e-5) for i, p in enumerate(want)}
    means = torch.stack([output.hidden_states[-1][0].mean(0) for output in outputs])
    assert (model.embed(texts) - torch.nn.functional.normalize(means, dim=-1)).abs().max() < 1e-5
    assert run.scores["scores"]["accuracy"]["value"] == sum(row["score"] for row in run.rows) / len(run.rows)


def test_evaluate_has_the_options_of_the_command():
    (command,) = (c for name, c in get_command(app).commands.items() if name == "eval")
    assert {p.name for p in command.params if p.name != "help"} - set(SHOWING) | {"changes"} == set(OPTIONS)
    for function in (lmkit.pretrain, lmkit.finetune, lmkit.tokenize, lmkit.evaluate, lmkit.load):
        hints = inspect.get_annotations(function)
        assert function.__doc__ and set(hints) >= {*inspect.signature(function).parameters, "return"}


def test_the_notebook_runs(tmp_path, monkeypatch):
    monkeypatch.setenv("LMKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    cells = [cell for cell in json.loads(NOTEBOOK.read_text())["cells"] if cell["cell_type"] == "code"]
    names: dict = {}
    for cell in cells:
        exec("".join(cell["source"]), names)
    assert len(cells) >= 6 and names["run"].state == names["mails"].state == "done"
    assert Path("report.html").stat().st_size > 10_000
