"""Files of other tools become recipes that `lmkit recipes check` takes, and no setting is dropped in silence."""

import json
from pathlib import Path

import pytest
import transformers
from typer.testing import CliRunner

from lmkit.base.errors import UserError
from lmkit.commands.main import app
from lmkit.ops.recipe_facts import describe
from lmkit.recipe.either import load
from lmkit.recipe.finetuning import FinetuneRecipe
from lmkit.recipe.foreign import import_recipe, outcome_lines
from lmkit.recipe.foreign_keys import NAMES, RULES
from lmkit.recipe.recipe_file import keys, parse_yaml

FOREIGN = Path(__file__).parent.parent / "fixtures/foreign"


@pytest.fixture(autouse=True)
def _folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("data").mkdir()
    entries = {"identity": {"file_name": "me.json", "columns": {"prompt": "question", "response": "reply"}}}
    Path("data/dataset_info.json").write_text(
        json.dumps(entries | {"alpaca_en_demo": {"hf_hub_url": "llamafactory/demo"}})
    )


def imported(file: Path, *changes: str) -> tuple[FinetuneRecipe, dict[str, str]]:
    """The recipe, and the reason of each setting that was not taken over."""
    ran = CliRunner().invoke(app, ["recipes", "import", str(file), *changes, "--out", "r.yaml"], catch_exceptions=False)
    assert ran.stdout == "wrote r.yaml\nnext  lmkit recipes check r.yaml\n"
    _, one = import_recipe(file, changes)
    recipe = load(Path("r.yaml"))
    lines, _ = describe(recipe)  # model and data are elsewhere
    assert lines[0].startswith("`lmkit finetune`")
    settings = parse_yaml(file.read_text(), "test")
    accounted = {name for comment in one.comments.values() for name in comment.split(", ")} | {n for n, *_ in one.left}
    silent = {name: value for name, value in settings.items() if name not in accounted}
    assert not [item for item in silent.items() if item[1] not in (None, False, [], {}, "", 0, -1, "no", "none")]
    assert all(f"{name} " in "".join(outcome_lines(one)) for name, *_ in one.left)
    return recipe, {name: reason for name, _, reason in one.left}


def values(recipe: FinetuneRecipe, wanted: dict) -> dict:
    tree = recipe.model_dump(by_alias=True)
    return {key: tree[key.partition(".")[0]][key.partition(".")[2]] if "." in key else tree[key] for key in wanted}


def test_axolotl():
    recipe, left = imported(FOREIGN / "axolotl.yml")
    here = str(Path.cwd())
    wanted = {
        "model": f"{here}/NousResearch/Llama-3.2-1B", "task.name": "chat", "task.template": "chatml",
        "data.train": ["hub:teknium/GPT4-LLM-Cleaned", f"{here}/data/talks.jsonl", "hub:org/set:en:test"],
        "data.text": "conversations", "data.validation": 0.1, "data.max_length": 2048,
        "lora.rank": 16, "lora.alpha": 32, "lora.dropout": 0.05, "lora.dora": True,
        "lora.targets": ("mlp.up", "mlp.down", "attention.qkv", "attention.output"),
        "optimizer.name": "adamw", "optimizer.lr": 2e-4, "optimizer.weight_decay": 0.01, "optimizer.betas": (0.9, 0.95),
        "optimizer.eps": 1e-5, "schedule.name": "cosine", "schedule.warmup": "10%", "train.budget": "4 epochs",
        "train.batch": "8 rows", "train.clip": 1.0, "train.seed": 7, "train.recompute": True, "train.precision": "auto",
        "train.patience": 3, "evaluate.every": "6.25%", "checkpoint.every": "25%", "checkpoint.keep": 3,
        "tracker.name": "wandb", "tracker.project": "talks",
    }  # fmt: skip
    assert values(recipe, wanted) == wanted
    assert "quantised" in left["load_in_4bit"] and "quantised" in left["adapter"] and "fsdp" in left["deepspeed"]
    assert {"special_tokens", "neftune_noise_alpha", "sample_packing", "datasets.roles_to_train"} <= left.keys()
    assert left["tokenizer_type"] and "no counterpart" not in "".join(left.values())


def test_llama_factory():
    recipe, left = imported(FOREIGN / "llamafactory.yaml")
    here = str(Path.cwd())
    wanted = {
        "model": f"{here}/meta-llama/Meta-Llama-3-8B-Instruct", "task.name": "chat", "task.template": "auto",
        "data.train": [f"{here}/data/me.json", "hub:llamafactory/demo"],
        "data.text": "question", "data.target": "reply",
        "data.limit": 1000, "data.max_length": 2048, "data.validation": 0.1,
        "lora.rank": 8, "lora.alpha": 16, "lora.dropout": 0.1, "lora.targets": ("attention.qkv",),
        "train.batch": "8 rows", "train.budget": "3 epochs", "train.precision": "bf16", "train.seed": 42,
        "optimizer.lr": 1e-4, "schedule.name": "cosine", "schedule.warmup": "10%",
        "evaluate.every": "250 steps", "checkpoint.every": "500 steps", "tracker.name": "none",
    }  # fmt: skip
    assert values(recipe, wanted) == wanted
    assert "chatml" in left["template"] and "quantised" in left["quantization_bit"]
    assert "no counterpart" not in "".join(left.values())
    text = (FOREIGN / "llamafactory.yaml").read_text()
    Path("dpo.yaml").write_text(text.replace("stage: sft", "stage: dpo"))
    with pytest.raises(UserError, match="dpo: lmkit learns"):
        import_recipe(Path("dpo.yaml"))
    Path("full.yaml").write_text(text.replace("finetuning_type: lora", "finetuning_type: full").replace("sft", "pt"))
    recipe, left = imported(Path("full.yaml"))
    assert recipe.lora is None and recipe.task.name == "lm" and left["lora_rank"] == "no adapters are trained"


def test_training_arguments_as_transformers_writes_them():
    arguments = transformers.TrainingArguments(
        output_dir="out", per_device_train_batch_size=4, gradient_accumulation_steps=2, max_steps=300,
        optim="adafactor",         learning_rate=3e-5, lr_scheduler_type="constant_with_warmup", warmup_steps=20,
        eval_strategy="steps", eval_steps=50, save_steps=100, label_smoothing_factor=0.2, metric_for_best_model="f1",
        report_to=["tensorboard"],         load_best_model_at_end=True, gradient_checkpointing=True, use_cpu=True,
        push_to_hub=False, hub_token="hf_secret",
    )  # fmt: skip
    Path("args.json").write_text(arguments.to_json_string())
    with pytest.raises(UserError, match="task=NAME"):
        import_recipe(Path("args.json"))
    with pytest.raises(UserError, match=r"model=… data\.train=…"):
        import_recipe(Path("args.json"), ["task=classify"])
    recipe, left = imported(Path("args.json"), "task=classify", "model=m", "data.train=r.csv")
    wanted = {
        "train.batch": "8 rows", "train.budget": "300 steps", "optimizer.name": "adafactor", "optimizer.lr": 3e-5,
        "optimizer.weight_decay": 0.0, "schedule.name": "constant", "schedule.warmup": "20 steps",
        "evaluate.every": "50 steps", "checkpoint.every": "100 steps", "task.label_smoothing": 0.2,
        "task.metric": "macro_f1", "tracker.name": "tensorboard", "train.recompute": True, "train.device": "cpu",
        "train.seed": 42, "train.clip": 1.0,
    }  # fmt: skip
    assert values(recipe, wanted) == wanted
    assert "`best` links" in left["load_best_model_at_end"] and "hf_secret" not in Path("r.yaml").read_text()
    _, one = import_recipe(Path("args.json"), ["task=tag", "model=m", "data.train=r.csv"])
    assert ("label_smoothing_factor", 0.2, "task tag has no such setting") in one.left


SCRIPTS = {  # settings of transformers' example scripts -> what they become
    "ner": ({"train_file": "a.json", "text_column_name": "words", "label_column_name": "marks", "max_steps": "auto"},
            {"task.name": "tag", "data.text": "words", "data.label": "marks"}),
    "classification": ({"train_file": "a.csv", "text_column_names": "body", "label_column_name": "kind"},
                       {"task.name": "classify", "data.text": "body", "data.label": "kind"}),
    "glue": ({"task_name": "sst2"}, {"task.name": "classify", "data.train": "hub:nyu-mll/glue:sst2"}),
    "mlm": ({"train_file": "a.txt", "mlm_probability": 0.15, "validation_split_percentage": 5},
            {"task.name": "lm", "data.validation": 0.05}),
    "clm": ({"dataset_name": "wikitext", "dataset_config_name": "wikitext-2-raw-v1", "block_size": 512},
            {"task.name": "lm", "data.train": "hub:wikitext:wikitext-2-raw-v1", "data.max_length": 512}),
    "qa": ({"train_file": "a.json", "doc_stride": 64, "max_seq_length": 384, "version_2_with_negative": True},
           {"task.name": "qa", "task.overlap": 64, "task.no_answer": True, "data.max_length": 384}),
    "translation": ({"train_file": "a.jsonl", "source_lang": "en_XX", "target_lang": "ro_RO", "num_beams": 5},
                    {"task.name": "translate", "data.text": "en", "data.target": "ro",
                     "task.target_lang": "ro_RO", "task.beam": 5}),
    "summarization": ({"train_file": "a.csv", "text_column": "article", "summary_column": "short",
                       "source_prefix": "summarize: ",                       "max_target_length": 60},
                      {"task.name": "summarize", "data.text": "article", "data.target": "short",
                       "task.prompt": "summarize: {source}", "task.max_new_tokens": 60}),
}  # fmt: skip


@pytest.mark.parametrize("script", SCRIPTS)
def test_settings_of_example_scripts(script):
    settings, wanted = SCRIPTS[script]
    common = {"model_name_or_path": "m", "learning_rate": 2e-5, "num_train_epochs": 2, "eval_strategy": "epoch"}
    Path("run.json").write_text(json.dumps(common | {"output_dir": "o", "do_train": True} | settings))
    recipe, left = imported(Path("run.json"))
    assert ("max_steps" in settings) == ("max_steps" in left)
    wanted = wanted | {"train.budget": "2 epochs", "evaluate.every": "50%", "train.batch": "8 rows"}
    assert values(recipe, wanted) == wanted


def test_the_tables_name_keys_that_recipes_and_trainers_have():
    known = keys(FinetuneRecipe)
    assert all(rule.key in known for rule in RULES.values())
    arguments = transformers.TrainingArguments.__dataclass_fields__.keys()
    assert len(arguments & RULES.keys()) >= 13 and not NAMES.keys() & RULES.keys()
    for name in ("nothing.yaml", "empty.yaml"):
        Path("empty.yaml").write_text("")
        with pytest.raises(UserError):
            import_recipe(Path(name))
