"""Names of other tools lead to ours, and the advice works when it is followed."""

import re
import shlex

import pytest
import transformers
from typer.testing import CliRunner

from lmkit.base.errors import UserError
from lmkit.commands.main import app
from lmkit.recipe.aliases import key_for
from lmkit.recipe.defaults import expand_pretraining
from lmkit.recipe.finetuning import FinetuneRecipe, expand_finetuning
from lmkit.recipe.pretraining import Recipe
from lmkit.recipe.recipe_file import keys, load_recipe

VALUES = {
    "learning_rate": "1e-3", "weight_decay": "0.1", "optim": "adamw", "lr_scheduler_type": "cosine",
    "warmup_steps": "10", "warmup_ratio": "3%", "num_train_epochs": "3", "epochs": "2", "max_steps": "20",
    "max_iters": "20", "per_device_train_batch_size": "32", "batch_size": "16", "max_grad_norm": "1.0",
    "gradient_checkpointing": "true", "seed": "3", "n_layer": "2", "num_hidden_layers": "2", "n_embd": "64",
    "d_model": "64", "num_attention_heads": "4", "block_size": "64", "max_seq_length": "64", "vocab_size": "300",
    "eval_steps": "5", "save_steps": "5", "save_total_limit": "2", "lora_r": "4", "lora_alpha": "8", "dtype": "bf16",
    "text_column": "body", "label_column": "class", "train_file": "a.csv", "validation_file": "b.csv", "patience": "3",
}  # fmt: skip
BASES = {
    Recipe: (expand_pretraining, ("model.family=gpt2", "model.depth=2", "model.context=64", "data.train=a.txt",
                                  "train.budget=5 steps", "train.batch=640 tokens")),
    FinetuneRecipe: (expand_finetuning, ("task.name=classify", "model=run", "data.train=a.csv")),
}  # fmt: skip


@pytest.mark.parametrize("schema", BASES)
def test_the_advice_for_a_name_of_another_tool_works(schema):
    expand, base = BASES[schema]
    followed = 0
    for name, value in VALUES.items():
        advice = key_for(name, value, keys(schema))
        if advice is None or (advice.startswith("model.") and schema is FinetuneRecipe):
            continue
        with pytest.raises(UserError) as error:
            load_recipe(schema, None, (*base, f"{name}={value}"), expand)
        (change,) = shlex.split(re.findall("→ here it is (.*)", str(error.value))[0])
        assert change.partition("=")[0] == advice.partition("=")[0]
        assert isinstance(load_recipe(schema, None, (*base, change), expand), schema), advice
        followed += 1
    assert followed > 20


def test_the_names_of_trainers_arguments_are_known():
    """Those of transformers' Trainer that people set most."""
    arguments = transformers.TrainingArguments.__dataclass_fields__.keys()
    wanted = {
        "learning_rate", "weight_decay", "optim", "lr_scheduler_type", "warmup_steps", "num_train_epochs", "max_steps",
        "per_device_train_batch_size", "max_grad_norm", "gradient_checkpointing", "seed", "eval_steps", "save_steps",
        "save_total_limit", "output_dir",
    }  # fmt: skip
    assert wanted <= arguments
    assert all(key_for(name, 1, keys(FinetuneRecipe)) for name in wanted)


def test_keys_can_be_asked_for_by_a_part_of_their_names():
    run = CliRunner()
    every, warmup = (run.invoke(app, ["recipes", "keys", *part]).stdout for part in ((), ("warmup",)))
    assert "PydanticUndefined" not in every and every.count("schedule.warmup") == 2
    listed = [line.split()[0] for line in warmup.splitlines() if line.startswith("  ")]
    assert listed and all("warmup" in key for key in listed) and len(warmup) < len(every) / 20


def test_a_size_named_as_a_model_leads_to_a_new_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = [f"{'good' if i % 2 else 'bad'} film {i},{'pos' if i % 2 else 'neg'}" for i in range(40)]
    (tmp_path / "d.csv").write_text("\n".join(["text,label", *rows]))
    command = ["finetune", "--task", "classify", "--data", "d.csv"]
    shown = CliRunner().invoke(app, [*command, "--model", "bert-tiny"])
    assert isinstance(shown.exception, UserError) and "lmkit pretrain bert-tiny" in str(shown.exception)
    (change,) = re.findall(r"→ (model\.preset=\S+)", str(shown.exception))
    small = ["model.num_layers=1", "model.hidden_size=16", "model.num_heads=2", "model.context=16"]
    dry = CliRunner().invoke(app, [*command, change, *small, "--dry-run"], catch_exceptions=False)
    assert "tokens/s measured" in dry.stdout and "Nothing was started" in dry.stdout
    recipe = CliRunner().invoke(app, [*command, change, *small, "--print-recipe"], catch_exceptions=False).stdout
    assert (
        "hidden_size: 16" in recipe and "vocab_size: 0" in recipe
    )  # as many words as its own tokenizer has and sorted(p.name for p in tmp_path.iterdir()) == ["d.csv"]
