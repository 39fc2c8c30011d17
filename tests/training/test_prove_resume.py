"""`lmkit doctor --resume` proves what is so, and notices what is not."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from lmkit.base.errors import UserError
from lmkit.ops import resume_proof
from lmkit.recipe.defaults import expand_pretraining
from lmkit.recipe.finetuning import FinetuneRecipe
from lmkit.recipe.finetuning import expand_finetuning as expand_finetuning
from lmkit.recipe.pretraining import Recipe
from lmkit.recipe.recipe_file import load_recipe
from lmkit.training import pretraining_run

FINETUNING = """
task: {name: classify, baseline: false}
model: {family: bert, hidden_size: 16, num_layers: 1, num_heads: 2, context: 32, dropout: 0.1}
tokenizer: {type: wordpiece, vocab_size: 300}
data: {train: rows.csv}
train: {budget: 3 epochs, batch: 8 rows}
seeds: 2
"""


def test_a_run_killed_with_minus_9_is_proved_exact(tiny, capsys):
    """In processes of their own. The recipe asks for a time, which would make no two runs alike."""
    assert resume_proof.prove_resume(str(tiny), ("train.budget=1 min", "parallel={data: fsdp}"), 6, as_json=True) == 0
    shown = capsys.readouterr()
    said = json.loads(shown.out)
    assert said["exact"] and (said["killed_in"], said["resumed_at"]) == (4, 2)
    assert {c["what"] for c in said["compared"]} == {*resume_proof.KINDS, "metrics.jsonl"}
    assert all(c["equal"] for c in said["compared"])
    assert "1 min is a time" in shown.err and "parallel={}" in said["changes"]
    assert not Path("runs").exists()


def test_so_is_fine_tuning(tiny, capsys):
    rows = [f"{text} number {i},{label}" for i in range(30) for text, label in (("good", "yes"), ("bad", "no"))]
    Path("rows.csv").write_text("\n".join(["text,label", *rows]))
    Path("finetune.yaml").write_text(FINETUNING)
    assert resume_proof.prove_resume("finetune.yaml", ("train.ema=0.9",), 4, as_json=False) == 0
    out = capsys.readouterr().out
    assert out.count("✓") == 5 and "✗" not in out and out.endswith("is the uninterrupted one.\n")


@pytest.fixture
def pair(tiny) -> tuple[Path, Path]:
    """A finished run and its copy."""
    assert pretraining_run.start(tiny, ("train.budget=2 steps",), Path("one")) == 0
    shutil.copytree("one", "two", symlinks=True)
    return Path("one"), Path("two")


def unequal(one: Path, two: Path) -> dict[str, str]:
    return {c.what: c.detail for c in resume_proof.compare_runs(one, two) if not c.equal}


def test_what_is_not_equal_is_named(pair):
    from safetensors.torch import load_file, save_file

    assert unequal(*pair) == {}
    folder = (pair[1] / "latest").resolve()
    tensors = load_file(folder / "model.safetensors")
    name = sorted(tensors)[0]
    tensors[name].view(-1)[0] += 0.5
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    assert unequal(*pair) == {
        "weights": f"model.safetensors: 1 of {len(tensors)} tensors differ, by 0.5 at most ({name})"
    }
    (folder / "training/optimizer.safetensors").unlink()
    state = json.loads((folder / "training/state.json").read_text())
    (folder / "training/state.json").write_text(json.dumps(state | {"elapsed": 1e9, "tokens": 7}))
    rows = (pair[1] / "metrics.jsonl").read_text().splitlines()
    (pair[1] / "metrics.jsonl").write_text("\n".join([rows[0], json.dumps(json.loads(rows[1]) | {"loss": 1.0}), ""]))
    found = unequal(*pair)
    assert found["optimizer state"] == "training/optimizer.safetensors: only one of them has it"
    assert found["state of the run"].endswith(f"tokens: {state['tokens']} -> 7")  # seconds are no difference
    assert found["metrics.jsonl"].startswith("step 2: loss: ")


@pytest.mark.parametrize(
    ("straight_again", "says"), [("one", "resuming changes this run"), ("three", "changing order")]
)
def test_a_resume_that_is_not_exact_fails_and_so_is_told_from_a_machine_that_is_not(
    pair, monkeypatch, capsys, straight_again, says
):
    made = {"straight": "one", "interrupted": "two", "again": straight_again}
    shutil.copytree("one", "three", symlinks=True)
    for copy in ("two", "three"):
        (Path(copy) / "metrics.jsonl").write_text("")

    def pretend(*arguments: str, killed_in: int | None = None) -> None:
        if "--out" in arguments:
            out = Path(arguments[-1])
            shutil.copytree(made[out.name], out, symlinks=True)

    monkeypatch.setattr(resume_proof, "_lmkit", pretend)
    assert resume_proof.prove_resume("tiny.yaml", (), 2, as_json=False) == 1
    out = capsys.readouterr().out
    assert "✗ metrics.jsonl" in out and says in out


@pytest.mark.parametrize(("ended", "code", "says"), [(3, 3, "no such file"), (-9, 1, "out of memory?")])
def test_a_run_that_fails_is_shown_with_its_exit_code(tiny, monkeypatch, capsys, ended, code, says):
    done = subprocess.CompletedProcess([], ended, "", "lmkit: no such file: x")
    monkeypatch.setattr(subprocess, "run", lambda *a, **k: done)
    assert resume_proof.prove_resume(str(tiny), (), 2, as_json=False) == code
    assert says in capsys.readouterr().err


def test_mistakes_are_told_before_anything_runs(tiny, monkeypatch):
    monkeypatch.setattr(resume_proof, "_lmkit", lambda *a, **k: pytest.fail("something was run"))
    with pytest.raises(UserError, match="unknown key"):
        resume_proof.prove_resume(str(tiny), ("train.lr=1",), 6, False)
    Path("answer.yaml").write_text("task: {name: answer, kb: x}\nmodel: m\ndata: {train: q.csv}\n")
    with pytest.raises(UserError, match="nothing to resume"):
        resume_proof.prove_resume("answer.yaml", (), 6, False)


@pytest.mark.parametrize("steps", [2, 3, 6, 7, 100])
def test_the_run_is_killed_after_a_checkpoint_and_steps_are_lost(tiny, steps):
    changes = resume_proof._pretraining(tiny, (), steps)
    recipe = load_recipe(Recipe, tiny, tuple(changes), expand_pretraining)
    every, killed_in = int(recipe.checkpoint.every), steps // 2 + 1
    last = (killed_in - 1) // every * every
    assert 0 < last < killed_in <= steps and recipe.train.budget == f"{steps} steps"
    Path("finetune.yaml").write_text(FINETUNING)
    changes = resume_proof._finetuning(Path("finetune.yaml"), (), steps)
    assert load_recipe(
        FinetuneRecipe, Path("finetune.yaml"), tuple(changes), expand_finetuning
    ).checkpoint.every == str(every)
