"""`lmkit export` and `lmkit push`, and the model card of every final folder, judged by the tools that read them."""

import copy
import json
import random
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers as hf
from huggingface_hub import ModelCard
from typer.testing import CliRunner

import lmkit
from lmkit.base.errors import UserError
from lmkit.commands.main import app
from lmkit.ops.export import export
from lmkit.recipe import recipe_file
from lmkit.recipe.finetuning import FinetuneRecipe, expand_finetuning
from lmkit.training import finetuning_run
from tests.model.families import CONFIGS, VOCAB
from tests.model.formats.test_gguf import CORPUS, folder

TRAIN = ("train.budget=4 steps", "train.batch=8 rows", "optimizer.name=adamw", "evaluate.every=50%")


def finetune(out: str, *changes: str) -> None:
    recipe = recipe_file.load_recipe(FinetuneRecipe, None, (*changes, *TRAIN), expand_finetuning)
    assert finetuning_run.start(recipe, "toy", Path(out)) == 0


@pytest.fixture
def reviews(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    rng, path = random.Random(0), tmp_path / "private/reviews.csv"
    path.parent.mkdir()
    rows = [(f"she {rng.choice(['grew', 'been'])} {word}", word) for word in ["forced", "older"] * 30]
    path.write_text("text,label\n" + "".join(f"{text},{label}\n" for text, label in rows))
    return path


def test_a_gguf_file_is_a_base_for_adapters_whose_folder_has_a_card(reviews, tmp_path):
    source, _ = folder(tmp_path, "llama")
    export(str(source), Path("base"), "gguf", "q8_0", None, False)
    finetune(
        "run",
        "model=base/model-q8_0.gguf",
        "task.name=classify",
        f"data.train={reviews}",
        "lora={rank: 2, merge: false}",
    )
    card = ModelCard.load("run/best/README.md")
    assert card.data.to_dict() == {
        "library_name": "transformers", "pipeline_tag": "text-classification", "base_model": "model-q8_0.gguf",
        "tags": ["lmkit", "llama"],
    }  # fmt: skip
    scores = json.loads(Path("run/scores.json").read_text())["scores"]["accuracy"]
    shown = f"| accuracy | {scores['value']:.4f} | {scores['low']:.4f} to {scores['high']:.4f} |"
    assert shown in card.text and "- `reviews.csv`, " in card.text and "private" not in card.text
    assert "rank: 2" in card.text and "A LlamaForSequenceClassification of " in card.text

    with pytest.raises(UserError, match="is an adapter, and not a whole model"):
        export("run", Path("merged"), "hf", None, None, False)
    export("run", Path("merged"), "hf", None, "f32", True)
    ids = torch.arange(3, 15)[None]
    theirs = hf.AutoModelForSequenceClassification.from_pretrained("merged").eval()
    with torch.no_grad():
        torch.testing.assert_close(theirs(ids).logits, lmkit.load("run").logits(ids), rtol=0, atol=1e-5)
    merged = ModelCard.load("merged/README.md")
    assert shown in merged.text and 'LlamaForSequenceClassification.from_pretrained("FOLDER")' in merged.text
    got = CliRunner().invoke(app, ["export", "run", "merged", "--merge"])
    assert isinstance(got.exception, UserError) and "merged: holds README.md" in str(got.exception)


def test_a_card_of_pretraining_says_what_was_read_and_no_more(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LMKIT_CACHE", str(tmp_path / "cache"))
    Path("text.txt").write_text(CORPUS[0] * 20)
    Path("tiny.yaml").write_text(
        "model: {family: gpt2, hidden_size: 16, num_layers: 1, num_heads: 2, context: 32}\n"
        "tokenizer: {vocab_size: 320}\ndata: {train: text.txt, validation: 0}\n"
        "train: {budget: 3 steps, batch: 64}\n"
    )
    got = CliRunner().invoke(app, ["pretrain", "tiny.yaml", "--out", "run"])
    assert got.exit_code == 0, got.output
    card = ModelCard.load("run/latest/README.md")
    assert card.data.pipeline_tag == "text-generation" and card.data.base_model is None and card.data.language is None
    size = Path("text.txt").stat().st_size
    assert f"- `text.txt`, {size:,} bytes" in card.text and "192 tokens were read in 3 steps" in card.text
    assert "Nothing was held out" in card.text and "## Scores" not in card.text and "at most 32 tokens" in card.text
    (recipe,) = [part.partition("```")[0] for part in card.text.split("```yaml\n")[1:]]
    Path("again.yaml").write_text(recipe)
    assert CliRunner().invoke(app, ["pretrain", "again.yaml", "--out", "again"]).exit_code == 0
    assert Path("again/latest/README.md").read_bytes() == Path("run/latest/README.md").read_bytes()
    assert Path("again/latest/model.safetensors").read_bytes() == Path("run/latest/model.safetensors").read_bytes()
    assert CliRunner().invoke(app, ["check", "run", "--personal", "--samples", "3", "--card"]).exit_code == 0
    more = ["pretrain", "run/recipe.yaml", "train.budget=9 steps", "checkpoint.keep=1", "checkpoint.every=2 steps"]
    assert CliRunner().invoke(app, [*more, "--resume", "run", "--accept-changes"]).exit_code == 0
    limits = Path("run/latest/README.md").read_text().partition("## Limits")[2].partition("## Use")[0]
    assert limits.count("`lmkit check --personal`: Of 3 samples") == limits.count("(step-00000003)\n") == 1
    assert not Path("run/checkpoints/step-00000003").exists()
    Path("run/latest/README.md").write_text("edited")  # the card is no part of what makes a checkpoint whole
    assert lmkit.load("run").config.context == 32


GRAPHS = [("gpt2", "CausalLM"), ("bert", "SequenceClassification"), ("bart", "Seq2SeqLM")]


@pytest.mark.parametrize(("name", "auto"), GRAPHS)
def test_onnxruntime_computes_the_same_at_other_lengths(name, auto, tmp_path):
    pytest.importorskip("onnxscript")
    onnxruntime = pytest.importorskip("onnxruntime")
    config = copy.deepcopy(CONFIGS[name])
    for key in ("num_hidden_layers", "encoder_layers", "decoder_layers"):
        setattr(config, key, 1)
    torch.manual_seed(0)
    theirs = getattr(hf, f"AutoModelFor{auto}").from_config(config).eval()
    theirs.save_pretrained(tmp_path / "hf")
    with warnings.catch_warnings(action="error", category=FutureWarning):
        export(str(tmp_path / "hf"), tmp_path / "out", "onnx", None, None, False)
    assert {path.name for path in (tmp_path / "out").iterdir()} >= {"model.onnx", "config.json", "README.md"}
    session = onnxruntime.InferenceSession(str(tmp_path / "out/model.onnx"))
    rng = np.random.default_rng(0)
    for rows, length in ((1, 1), (2, 3), (4, 19)):
        feed = {"input_ids": rng.integers(3, VOCAB - 1, (rows, length))}
        if name != "gpt2":
            feed["attention_mask"] = np.ones_like(feed["input_ids"])
            feed["attention_mask"][0, max(1, length - 2) :] = 0
        if name == "bart":
            feed["decoder_input_ids"] = rng.integers(3, VOCAB - 1, (rows, length + 2))
        with torch.no_grad():
            want = theirs(**{key: torch.tensor(value) for key, value in feed.items()}).logits
        np.testing.assert_allclose(session.run(None, feed)[0], want.numpy(), rtol=0, atol=1e-4)


def test_push_uploads_the_files_of_the_folder_and_asks_first(tmp_path, monkeypatch):
    source, _ = folder(tmp_path, "llama")
    (source / "training").mkdir()
    (source / "training/optimizer.safetensors").write_bytes(b"not for others")
    calls = []
    monkeypatch.setattr("huggingface_hub.HfApi.create_repo", lambda self, repo, **more: calls.append((repo, more)))
    monkeypatch.setattr("huggingface_hub.HfApi.upload_folder", lambda self, **more: calls.append(more) or "the address")
    refused = CliRunner().invoke(app, ["push", str(source), "me/toy"])
    assert isinstance(refused.exception, UserError) and "--yes" in str(refused.exception) and calls == []
    got = CliRunner().invoke(app, ["push", str(source), "me/toy", "--yes"])
    assert got.exit_code == 0 and got.output.strip() == "the address"
    (repo, _), upload = calls
    assert repo == upload["repo_id"] == "me/toy" and upload["folder_path"] == source
    assert set(upload["allow_patterns"]) == {path.name for path in source.iterdir() if path.is_file()}
