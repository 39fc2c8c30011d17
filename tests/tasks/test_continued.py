"""`--task lm`: pretraining goes on with other text, through the real commands."""

import json
import shutil
from pathlib import Path

import pytest
import transformers

from lmkit.base.errors import ModelError
from lmkit.base.runs import model_folder
from lmkit.recipe import recipe_file
from lmkit.recipe.finetuning import FinetuneRecipe, expand_finetuning
from lmkit.training import finetuning_run, pretraining_run
from tests.training.stopping import Crash, at, crash

WORDS = ["the cat sat on a mat.", "one red bird saw it!", "an old hill is over there.", "who can fly so far?"]
SIZES = "hidden_size: 16, num_layers: 2, num_heads: 2, context: 64, dropout: 0.1"


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """Two corpora of the same sentences: as they are, and each of them twice."""
    monkeypatch.setenv("LMKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    documents = [" ".join(WORDS[(i * 3 + j * j) % 4] for j in range(2 + i % 7)) for i in range(90)]
    Path("corpus.txt").write_text("\n".join(documents))
    Path("other.txt").write_text("\n".join(" ".join(f"{w} {w}" for w in d.split(" ")) for d in documents))
    return tmp_path


def pretrained(model: str, task: str = "") -> Path:
    Path("base.yaml").write_text(
        f"model: {{{model}, {SIZES}}}\n{task}data: {{train: corpus.txt, validation: 20%, separator: \"\\n\"}}\n"
        "tokenizer: {type: bytes}\noptimizer: {name: adamw, lr: 1e-2}\nevaluate: {every: 50%, sample: null}\n"
        "train: {budget: 20 steps, batch: 256}\n"
    )  # fmt: skip
    assert pretraining_run.start(Path("base.yaml"), (), Path("base")) == 0
    return Path("base")


def go_on() -> list[dict]:
    given = ("task.name=lm", "model=base", "data.train=other.txt", "data.validation=0.2", r'data.separator="\n"',
             "data.max_length=64", "train.budget=20 steps", "train.batch=256 tokens", "optimizer.lr=1e-2",
             "evaluate.every=50%")  # fmt: skip
    assert (
        finetuning_run.start(
            recipe_file.load_recipe(FinetuneRecipe, None, given, expand_finetuning), "toy", Path("more")
        )
        == 0
    )
    return [json.loads(line) for line in Path("more/metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(
    ("model", "task", "auto"),
    [
        ("family: gpt2", "", "AutoModelForCausalLM"),
        ("family: bert", "task: {name: masked_lm, pairs: next_sentence}\n", "AutoModelForMaskedLM"),
        ("family: t5", "", "AutoModelForSeq2SeqLM"),
    ],
)
def test_a_run_goes_on_with_other_text_and_transformers_loads_it(folder, capsys, model, task, auto):
    """A BERT with its head for pairs, as on the hub, goes on with words alone, and says so."""
    base = json.loads((pretrained(model, task) / "metrics.jsonl").read_text().splitlines()[0])
    rows = go_on()
    assert rows[0]["loss"] < base["loss"] - 0.3  # not from the start again
    held_out = [r["val_loss"] for r in rows if "val_loss" in r]
    assert held_out[-1] < held_out[0]
    assert ("head for pairs of texts is left out" in capsys.readouterr().err) == bool(task)
    last = sorted(Path("more/checkpoints").iterdir())[-1]
    theirs, report = getattr(transformers, auto).from_pretrained(last, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    assert json.loads((last / "config.json").read_text())["architectures"] == [type(theirs).__name__]


def test_what_was_known_before_is_known_after_a_resume(folder, monkeypatch):
    pretrained("family: gpt2")
    go_on()
    straight = json.loads(Path("more/scores.json").read_text())
    shutil.move("more", "straight")
    with monkeypatch.context() as patch, pytest.raises(Crash):
        at(patch, "lmkit.step", 15, crash)
        go_on()
    assert finetuning_run.resume(Path("more")) == 0
    assert json.loads(Path("more/scores.json").read_text()) == straight and straight["before"]["val_loss"] > 0


def test_a_model_of_labels_has_no_words_to_go_on_with(folder):
    pretrained("family: bert")
    Path("rows.csv").write_text("text,label\n" + "".join(f"word {i},{i % 2}\n" for i in range(60)))
    given = ("task.name=classify", "model=base", "data.train=rows.csv", "train.budget=1 step", "train.batch=4 rows")
    assert (
        finetuning_run.start(
            recipe_file.load_recipe(FinetuneRecipe, None, given, expand_finetuning), "toy", Path("labels")
        )
        == 0
    )
    recipe = ("task.name=lm", f"model={model_folder('labels')}", "data.train=other.txt")
    with pytest.raises(ModelError, match="no head for words to go on with"):
        finetuning_run.start(
            recipe_file.load_recipe(FinetuneRecipe, None, recipe, expand_finetuning), "toy", Path("more")
        )
