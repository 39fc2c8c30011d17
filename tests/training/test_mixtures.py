"""Sources with weights: which share of what is learnt comes from each, and that a resumed run draws the same."""

import json
import random
from pathlib import Path
from typing import Any

import pytest

from lmkit.base.errors import DataError, UserError
from lmkit.base.order import batch_rows
from lmkit.base.runs import read_jsonl
from lmkit.recipe import recipe_file
from lmkit.recipe.finetuning import FinetuneRecipe, expand_finetuning
from lmkit.training import finetuning_run, loop, pretraining_run
from tests.training.conftest import WORDS
from tests.training.stopping import Crash, at_pass, crash, same

WEIGHTED = ("data.train=[one.txt, more/]", "data.weights=[3, 1]")


@pytest.fixture
def sources(tiny: Path) -> Path:
    """A small source, a large one, and files of both, for the recipe of `tiny`."""
    rng = random.Random(0)
    words = {"one.txt": [w.upper() for w in WORDS], "more/b.txt": WORDS, "more/a.txt": WORDS}
    Path("more").mkdir()
    for name, vocabulary in words.items():
        Path(name).write_text("\n".join(" ".join(rng.choices(vocabulary, k=8)) for _ in range(15)))
    return tiny


def trained_rows(monkeypatch: Any) -> list[Any]:
    """Returns a list that fills with the jobs of runs from now on."""
    jobs, real = list[Any](), loop.train
    monkeypatch.setattr(loop, "train", lambda job, *rest: (jobs.append(job), real(job, *rest))[1])
    return jobs


def shares(jobs: list[Any], steps: int) -> list[float]:
    """Returns the share of tokens in capitals, and that of the others, in what these steps read."""
    work, seed = jobs[-1].work, jobs[-1].recipe.train.seed
    texts = []
    for step in range(steps):
        for _, i in batch_rows(step, jobs[-1].batch_rows, len(work.rows), seed, work.mixture):
            texts.append(jobs[-1].tokenizer.decode(work.rows[i]["tokens"].tolist()))
    kinds = [sum(text.upper() == text for text in texts), sum(text.lower() == text for text in texts)]
    assert sum(kinds) == len(texts)  # no row mixes sources
    return [kind / len(texts) for kind in kinds]


def test_pretraining_reads_the_shares_and_resumes_to_the_same_bytes(sources, monkeypatch, capsys):
    jobs = trained_rows(monkeypatch)
    assert pretraining_run.start(sources, WEIGHTED, Path("straight")) == 0
    assert shares(jobs, 12) == [0.75, 0.25]
    err = capsys.readouterr().err
    assert "one.txt: share 75.0%, 72 rows" in err and "more: share 25.0%, 24 rows" in err
    status = json.loads(Path("straight/status.json").read_text())["sources"]
    assert [s["rows"] for s in status.values()] == [72, 24] and status[f"{Path.cwd()}/one.txt"]["epochs"] > 3
    (event,) = [e for e in read_jsonl(Path("straight/events.jsonl")) if e["event"] == "sources"]
    assert event["sources"] == status
    with monkeypatch.context() as patch:
        at_pass(patch, 14, crash)
        with pytest.raises(Crash):
            pretraining_run.start(sources, WEIGHTED, Path("crashed"))
    assert pretraining_run.resume(Path("crashed")) == 0
    same(Path("straight"), Path("crashed"))
    first = {e["sha256"] for e in json.loads(Path("straight/environment.json").read_text())["files"]}
    assert pretraining_run.start(sources, (WEIGHTED[0], "data.weights=[1, 1]"), Path("even")) == 0
    assert shares(jobs, 12) == [0.5, 0.5]
    assert first == {e["sha256"] for e in json.loads(Path("even/environment.json").read_text())["files"]}
    assert len(list(Path("cache/tokens").iterdir())) == 1  # other weights read the same tokens


@pytest.mark.parametrize(
    "model",
    ["task=masked_lm model={family: bert, hidden_size: 16, num_layers: 1, num_heads: 2, context: 16}",
     "task=span_corruption model={family: t5, hidden_size: 16, num_layers: 1, num_heads: 2, context: 16}"],
)  # fmt: skip
def test_other_objectives_read_the_shares(sources, monkeypatch, model):
    jobs = trained_rows(monkeypatch)
    task, changes = model.split(" ", 1)
    more = ("evaluate.sample=null", "train.budget=2 steps", "optimizer={name: adamw}", "tokenizer={vocab_size: 400}")
    more = (*more, "train.micro_batch=0", "schedule.warmup=1")
    assert pretraining_run.start(sources, (*WEIGHTED, task, changes, *more), Path("run")) == 0
    assert jobs[-1].work.mixture.drawn(100) == [75, 25]
    assert sum(jobs[-1].work.mixture.sizes) == len(jobs[-1].work.rows)


def test_weights_that_cannot_be_are_refused(sources):
    refused = {
        (
            "data.train=[one.txt, more]",
            "data.weights=[1]",
        ): r"1 numbers, and data.train names 2 sources\n.*one for each",
        ("data.train=[one.txt, more]", "data.weights=[1, 0]"): "greater than 0",
        ("data.train=[one.txt, one.txt]", "data.weights=[1, 1]"): "belongs to two sources",
    }
    for changes, message in refused.items():
        with pytest.raises((UserError, DataError), match=message):
            pretraining_run.start(sources, changes, Path("run"))


def finetune(out: str, *changes: str) -> int:
    changes = ("model={family: bert, hidden_size: 16, num_layers: 1, num_heads: 2, context: 16}", *changes)
    recipe = recipe_file.load_recipe(FinetuneRecipe, None, changes, expand_finetuning)
    return finetuning_run.start(recipe, "run", Path(out))


@pytest.mark.parametrize("task", ["classify", "chat"])
def test_fine_tuning_draws_rows_by_weights_and_resumes_to_the_same_bytes(tiny, monkeypatch, task, capsys):
    rng = random.Random(1)

    def row(kind: int) -> dict[str, Any]:
        text = " ".join(rng.choices(WORDS, k=4)) + f" {rng.random():.6f}"
        said = text.upper() if kind else text
        turns = [{"role": "user", "content": said}, {"role": "assistant", "content": said}]
        return {"messages": turns} if task == "chat" else {"text": said, "label": rng.choice("ab")}

    for name, kind, n in (("a.jsonl", 0, 60), ("b.jsonl", 1, 12)):
        Path(name).write_text("".join(json.dumps(row(kind)) + "\n" for _ in range(n)))
    jobs = trained_rows(monkeypatch)
    family = "llama" if task == "chat" else "bert"
    changes = (
        f"task={{name: {task}{', baseline: false' if task == 'classify' else ''}}}", "data.train=[b.jsonl, a.jsonl]",
        f"model={{family: {family}, hidden_size: 16, num_layers: 1, num_heads: 2, context: 64}}",
        "data.weights=[1, 3]", "train.budget=12 steps", "train.batch=8 rows", "train.micro_batch=128",
        "tokenizer={vocab_size: 400}", "optimizer={name: adamw, lr: 1e-3}", "checkpoint={every: 3, keep: 3}",
        "evaluate.every=4",
    )  # fmt: skip
    assert finetune("straight", *changes) == 0
    work = jobs[-1].work
    assert work.mixture.drawn(96) == [24, 72]
    card = Path("straight/best/README.md").read_text()
    assert "- source b.jsonl: share 25.0%, 24 rows, " in card and "- source a.jsonl: share 75.0%, 72 rows, " in card
    assert "b.jsonl: share 25.0%, 24 rows" in capsys.readouterr().err
    for i, example in enumerate(work.rows):
        text = jobs[-1].tokenizer.decode([int(t) for t in example["tokens"]])
        assert any(word in text for word in WORDS if len(word) > 2) == (i >= work.mixture.sizes[0])
    with monkeypatch.context() as patch:
        at_pass(patch, 6, crash)
        with pytest.raises(Crash):
            finetune("crashed", *changes)
    assert finetuning_run.resume(Path("crashed")) == 0
    for name in ("metrics.jsonl", "latest/model.safetensors"):
        assert Path("straight", name).read_bytes() == Path("crashed", name).read_bytes()
