"""A run says how to make it again, and what is not as it was; its record holds no secrets."""

import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from lmkit.base import environment as env
from lmkit.base.errors import ModelError
from lmkit.commands.main import main
from lmkit.ops import reproduce
from lmkit.recipe.recipe_file import find_recipe
from tests.training.conftest import write_tiny


def lmkit(monkeypatch, line: str) -> None:
    """The command, as typed, in this process."""
    monkeypatch.setattr(sys, "argv", shlex.split(line))
    with pytest.raises(SystemExit) as ended:
        main()
    assert not ended.value.code, line


def told(capsys, run: Path) -> dict[str, Any]:
    """What `lmkit runs reproduce` says, but for the code: others may be changing it beside this test."""
    capsys.readouterr()
    reproduce.print_reproduction(run, as_json=True)
    said = json.loads(capsys.readouterr().out)
    return said | {
        "differences": {d["what"]: (d["then"], d["now"]) for d in said["differences"] if d["what"] != "code"}
    }


def assert_made_again(monkeypatch, capsys, run: Path, weights: str = "model.safetensors") -> None:
    said = told(capsys, run)
    assert said["differences"] == {} and said["doubts"] == []
    (command,) = (c for c in said["commands"] if "lmkit " in c and "git " not in c)
    lmkit(monkeypatch, command)
    again = run.with_name(f"{run.name}-again")
    for name in ("metrics.jsonl", f"latest/{weights}", "latest/training/optimizer.safetensors"):
        assert (again / name).read_bytes() == (run / name).read_bytes(), name
    assert (again / "recipe.yaml").read_text() == (run / "recipe.yaml").read_text()


def change(file: Path, **facts: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | facts))


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A folder with a finished run, runs/a, and the tokens of its corpus."""
    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LMKIT_CACHE", str(folder / "cache"))
        patch.chdir(folder)
        write_tiny(folder)
        lmkit(patch, "lmkit pretrain tiny.yaml train.seed=3 --out runs/a")
    return folder


@pytest.fixture
def run(trained, tmp_path, monkeypatch) -> Path:
    """That run, in a folder of its own."""
    monkeypatch.setenv("LMKIT_CACHE", str(trained / "cache"))
    monkeypatch.chdir(tmp_path)
    shutil.copytree(trained / "runs/a", "runs/a", symlinks=True)
    return Path("runs/a")


def test_the_recipe_kept_makes_the_run_again_byte_for_byte(run, monkeypatch, capsys):
    assert_made_again(monkeypatch, capsys, run)


def test_so_it_does_for_fine_tuning_from_a_run(run, monkeypatch, capsys):
    rows = [f"{text},{label}" for i in range(20) for text, label in ((f"good {i}", "yes"), (f"bad {i}", "no"))]
    Path("rows.csv").write_text("\n".join(["text,label", *rows]))
    lmkit(
        monkeypatch,
        "lmkit finetune --task classify --model runs/a --data rows.csv train.budget='4 steps' train.batch='8 rows'"
        " task.baseline=false lora='{rank: 2, merge: false}' optimizer.lr=0.01 --out runs/b",
    )
    assert_made_again(monkeypatch, capsys, Path("runs/b"), "adapter_model.safetensors")
    weights = (run / "best/model.safetensors").resolve()
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    assert "content changed" in told(capsys, Path("runs/b"))["differences"]["data"][1]


def test_adapters_do_not_go_on_over_other_weights(run, monkeypatch):
    from lmkit.training import finetuning_run

    Path("rows.csv").write_text("text,label\n" + "good one,yes\nbad one,no\n" * 20)
    shutil.copytree(run / "best", "base", ignore=shutil.ignore_patterns("training"))
    lmkit(
        monkeypatch,
        "lmkit finetune --task classify --model base --data rows.csv data.validation=0 train.budget='2 steps'"
        " train.batch='8 rows' task.baseline=false lora='{rank: 2}' --out runs/b",
    )
    weights = Path("base/model.safetensors")
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    with pytest.raises(ModelError, match="the model changed since this run began"):
        finetuning_run.resume(Path("runs/b"))


def test_what_differs_now_is_told_with_the_commands_that_undo_it(run, capsys, monkeypatch):
    record = run / "environment.json"
    before = json.loads(record.read_text())
    change(
        record, versions=before["versions"] | {"torch": "1.0.0+cpu", "numpy": "1.2"}, python="3.9.1", cpu="Abacus",
        git="f" * 40, git_changes=None, processes=4, threads=before["threads"] + 1, gpus=["NVIDIA Z9"], device="cuda:0",
    )  # fmt: skip
    monkeypatch.setattr(reproduce, "environment", lambda: env.environment() | {"git": "a" * 40})
    said = told(capsys, run)
    checkout, install, again = said["commands"]
    assert checkout.endswith("checkout " + "f" * 40)
    assert install == f"pip install --extra-index-url {reproduce.CPU_WHEELS} numpy==1.2 torch==1.0.0+cpu"
    assert again.startswith(f"OMP_NUM_THREADS={before['threads'] + 1} lmkit pretrain") and "--processes 4" in again
    assert {"torch", "numpy", "python", "cpu", "gpus"} == set(said["differences"])
    assert said["differences"]["gpus"] == ("NVIDIA Z9", "none")
    assert any("GPU" in doubt for doubt in said["doubts"]) and not said["exact"]


def test_data_that_is_missing_changed_or_new_is_named(tiny, capsys, monkeypatch):
    Path("texts").mkdir()
    for name in "abc":
        Path(f"texts/{name}.txt").write_text(Path("corpus.txt").read_text() + name)
    lmkit(monkeypatch, "lmkit pretrain tiny.yaml data.train='texts/*.txt' train.budget='1 step' --out runs/a")
    Path("texts/a.txt").unlink()
    Path("texts/b.txt").write_text(Path("corpus.txt").read_text() + "x")  # of the same size
    Path("texts/d.txt").write_text("more")
    reproduce.print_reproduction(Path("runs/a"), as_json=False)
    out = capsys.readouterr().out
    assert "a.txt → missing" in out and "b.txt → its content changed (same size)" in out and "d.txt → new" in out
    assert "c.txt" not in out


def test_links_are_followed_for_they_will_mean_another_run(run, capsys, monkeypatch):
    Path("runs/latest").symlink_to("a")
    assert told(capsys, Path("runs/latest"))["run"] == "runs/a"
    monkeypatch.chdir("runs/a")
    assert f"--out {Path.cwd()}-again" in told(capsys, Path("."))["commands"][-1]


def test_a_budget_in_time_becomes_the_steps_that_were_taken(run, capsys):
    recipe = run / "recipe.yaml"
    recipe.write_text(recipe.read_text().replace("budget: 12 steps", "budget: 3 min"))
    said = told(capsys, run)
    assert "'train.budget=12 steps'" in said["commands"][-1] and "clock" in said["doubts"][0]


def test_a_recipe_that_changed_on_the_way_is_told(run, capsys, monkeypatch):
    lmkit(monkeypatch, "lmkit pretrain runs/a/recipe.yaml train.budget='14 steps' --resume runs/a --accept-changes")
    assert told(capsys, run)["doubts"] == ["its recipe changed at step 12: train.budget: 12 steps -> 14 steps"]


def test_the_record_says_what_ran_where_on_what(run):
    record = json.loads((run / "environment.json").read_text())
    (file,) = record["files"]
    assert file["path"].endswith("/corpus.txt") and file["bytes"] == Path(file["path"]).stat().st_size
    assert record["seed"] == 3 and record["processes"] == 1 and record["device"] == "cpu"
    assert record["command"][1:3] == ["pretrain", "tiny.yaml"]
    for key in ("data", "tokenizer", "cpu", "cores", "memory", "threads", "python", "versions"):
        assert record[key], key


SECRETS = {
    "--token=hunter2": "--token=[left out]",
    "--hub-token=hunter2": "--hub-token=[left out]",
    "HF_TOKEN=hunter2": "HF_TOKEN=[left out]",
    "AWS_REGION=hunter2": "AWS_REGION=[left out]",
    "db.password=hunter2": "db.password=[left out]",
    "model=hf_abcdefghijklmnopqrst": "model=[left out]",
    "https://me:hunter2@host/x": "https://[left out]@host/x",
}
HARMLESS = [
    "train.batch=512 tokens",
    "evaluate.sample_tokens=5",
    "--max-tokens",
    "tokenizer.path=my/key",
    "-d",
    "a=B=1",
]


def test_what_looks_like_a_secret_is_left_out_and_nothing_else():
    assert env.redacted([*SECRETS]) == [*SECRETS.values()]
    assert env.redacted(HARMLESS) == HARMLESS
    assert env.redacted(["lmkit", "--token", "hunter2", "demo"]) == ["lmkit", "--token", "[left out]", "demo"]
    assert env.redacted(["caf\udce9"]) == ["caf\\udce9"]  # bytes that are no UTF-8 can be written down


def test_no_file_of_a_run_holds_a_secret_of_the_command_line_or_environment(tiny, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_inTheEnvironment1234")
    monkeypatch.setattr(sys, "argv", ["lmkit", "pretrain", "HF_TOKEN=hf_onTheCommandLine1234", "--token", "hunter2"])
    from lmkit.training import pretraining_run

    assert pretraining_run.start(tiny, ("train.budget=2 steps",), Path("run")) == 0
    files = [f for f in Path("run").rglob("*") if f.is_file()]
    assert len(files) > 10
    for file in files:
        assert not any(s in file.read_bytes() for s in (b"hf_in", b"hf_on", b"hunter2")), file


def test_the_commit_of_somebody_elses_repository_is_not_ours(tmp_path, monkeypatch):
    """lmkit installed in a virtual environment inside a user's checkout."""
    package = tmp_path / "venv/site-packages/lmkit"
    package.mkdir(parents=True)
    identity = {
        "GIT_AUTHOR_NAME": "a",
        "GIT_AUTHOR_EMAIL": "a@b",
        "GIT_COMMITTER_NAME": "a",
        "GIT_COMMITTER_EMAIL": "a@b",
    }
    for command in (["init", "-q"], ["commit", "-q", "--allow-empty", "-m", "theirs"]):
        subprocess.run(["git", "-C", str(tmp_path), *command], check=True, env=os.environ | identity)
    monkeypatch.setattr(env, "PACKAGE", package)
    assert env.git_state() == {"git": None, "git_dirty": None, "git_changes": None}
    monkeypatch.setattr(env, "PACKAGE", tmp_path / "lmkit")  # our own checkout
    (tmp_path / "lmkit").mkdir()
    clean = env.git_state()
    assert clean["git"] and clean["git_dirty"] is False
    (tmp_path / "lmkit/new.py").write_text("1")
    one = env.git_state()
    (tmp_path / "lmkit/new.py").write_text("2")
    assert one["git_dirty"] and one["git_changes"] != env.git_state()["git_changes"]


def test_a_record_that_is_gone_or_damaged_is_an_error_for_people(run):
    (run / "environment.json").write_text("{")
    with pytest.raises(ModelError, match=r"environment\.json: damaged"):
        reproduce.print_reproduction(run, False)
    (run / "environment.json").unlink()
    with pytest.raises(ModelError, match="No such file"):
        reproduce.print_reproduction(run, False)


def test_built_in_recipes_are_told_apart():
    from lmkit.recipe.finetuning import is_finetuning
    from lmkit.recipe.recipe_file import read_tree

    assert is_finetuning(read_tree(find_recipe("mnist"))[0]) and not is_finetuning(read_tree(find_recipe("t5-tiny"))[0])
    assert not is_finetuning({"task": ["classify"]})
