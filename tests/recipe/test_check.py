"""`lmkit recipes check` says what training would say, all at once, and starts nothing."""

from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import save_file
from typer.testing import CliRunner

from lmkit.architecture.model_config import ModelConfig
from lmkit.base.errors import DataError, ModelError, UserError
from lmkit.commands.main import app
from lmkit.model.transformer import Transformer
from lmkit.ops.recipe_facts import parameters_of
from lmkit.recipe.either import load
from lmkit.recipe.recipe_file import builtin_recipes

RECIPE = "task: classify\nmodel: m\ndata: {train: rows.csv}\ntrain: {budget: 2 epochs}\n"


@pytest.fixture(autouse=True)
def _folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("rows.csv").write_text("text,label\na,b\nc,d\n")
    Path("r.yaml").write_text(RECIPE)


def check(*args: str) -> str:
    return CliRunner().invoke(app, ["recipes", "check", *args], catch_exceptions=False).stdout


def test_parameters_of_a_trained_model_are_those_that_transformers_counts():
    config = transformers.GPT2Config(vocab_size=50, n_embd=16, n_layer=2, n_head=2, n_positions=32)
    model = transformers.GPT2LMHeadModel(config)
    model.save_pretrained("m")
    assert parameters_of(load(Path("r.yaml"))) == model.num_parameters()
    said = check("r.yaml", "lora.rank=4")
    assert f"m, {model.num_parameters():,} parameters, low-rank adapters" in said
    assert "train: 1 file there, 19 B" in said and "`lmkit finetune` with task classify" in said


def test_parameters_of_a_new_model_are_those_of_its_tensors():
    recipe = load(builtin_recipes()["demo"])
    with torch.device("meta"):
        sizes = ModelConfig(**recipe.model.model_dump() | {"vocab_size": recipe.tokenizer.vocab_size})
        assert parameters_of(recipe) == sum(Transformer(sizes).num_parameters().values())


def test_all_problems_come_at_once_with_the_exit_code_of_training():
    with pytest.raises(UserError) as wrong:
        check("r.yaml", "train.budgte=3", "optimizer.lr=fast", "schedule.name=sine")
    assert "3 problems" in str(wrong.value) and "did you mean `train.budget`" in str(wrong.value)
    with pytest.raises(ModelError) as missing:
        check("r.yaml", "data.train=row.csv", "data.pair=x", "tokenizer.path=t.json")
    assert all(
        part in str(missing.value) for part in ("m: no such model", "row.csv", "did you mean `rows.csv`", "t.json")
    )
    Path("m").mkdir()
    Path("m/config.json").write_text("{}")
    save_file({"w": torch.zeros(3, 4)}, "m/model.safetensors")
    with pytest.raises(DataError, match="1 problem\n"):
        check("r.yaml", "data.validation=other.csv")
    with pytest.raises(UserError, match="is set, and chat reads no such column"):
        check("r.yaml", "task=chat", "data.label=x")
