"""Translators of several languages write what transformers' pipeline writes, before and after fine-tuning."""

import json
from pathlib import Path

import pytest
import torch
import transformers
from typer.testing import CliRunner

import lmkit
from lmkit.base.errors import UserError
from lmkit.commands.main import app
from lmkit.text.languages import language_codes, language_frame
from tests.model.families import CONFIGS
from tests.text.translators import marian_folder, nllb_folder

TEXTS = ["Emma was very clever", "die junge Frau hatte"]


def model_folder(folder: Path, name: str) -> transformers.PreTrainedTokenizerBase:
    """A random model of 48 positions with a tokenizer of its kind."""
    if name == "m2m_100":
        nllb_folder(folder, src_lang="eng_Latn")
    elif name == "marian":
        marian_folder(folder)
    else:
        pieces = [
            ("<s>", 0.0),
            ("<pad>", 0.0),
            ("</s>", 0.0),
            ("<unk>", 0.0),
            *((c, -3.0) for c in "▁abcdehilnrstuvwyEF"),
        ]
        transformers.MBartTokenizer(vocab=pieces, src_lang="en_XX").save_pretrained(folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    torch.manual_seed(0)
    settings = CONFIGS[name].to_dict() | {"vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id}
    settings |= {"eos_token_id": tokenizer.eos_token_id, "forced_eos_token_id": None}
    settings["decoder_start_token_id"] = tokenizer.pad_token_id if name == "marian" else tokenizer.eos_token_id
    model = transformers.AutoModelForSeq2SeqLM.from_config(type(CONFIGS[name]).from_dict(settings))
    for key, p in model.named_parameters():
        wide = 1.0 if "encoder_attn" in key else 0.3  # so that what is written depends on the source
        if p.dim() > 1:
            p.data.normal_(0, 0.4 if "embed" in key or "shared" in key else wide)
    model.get_input_embeddings().weight.data[tokenizer.pad_token_id] = 0
    model.generation_config = transformers.GenerationConfig(
        **{key: settings[key] for key in ("decoder_start_token_id", "eos_token_id", "pad_token_id")}
    )
    model.save_pretrained(folder)
    return tokenizer


def by_transformers(folder: Path, text: str, source: str, target: str) -> list[int]:
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForSeq2SeqLM.from_pretrained(folder)
    options = {}
    if hasattr(tokenizer, "src_lang"):
        tokenizer.src_lang = source
        first = tokenizer.convert_tokens_to_ids(target)
        options = {"forced_bos_token_id": first}
        if "MBart" in type(tokenizer).__name__:  # whose decoder starts from the language
            options = {"decoder_start_token_id": first}
    else:
        text = f">>{target}<<{text}"
    out = model.generate(
        **tokenizer(text, return_tensors="pt"), do_sample=False, num_beams=1, max_new_tokens=12, **options
    )
    return out[0, 1:].tolist()


@pytest.mark.parametrize(
    ("name", "source", "target"),
    [("m2m_100", "deu_Latn", "fra_Latn"), ("mbart", "de_DE", "fr_XX"), ("marian", "eng", "fra")],
)
def test_generate_writes_the_language_asked_for(name, source, target, tmp_path):
    model_folder(tmp_path, name)
    command = ["generate", str(tmp_path), "--target-lang", target, "--max-tokens", "12", "-t", "0", "--json"]
    command += [] if name == "marian" else ["--source-lang", source]
    written = set()
    for text in TEXTS:
        result = CliRunner().invoke(app, [*command, text], catch_exceptions=False)
        ids = by_transformers(tmp_path, text, source, target)
        assert json.loads(result.stdout)["ids"] == ids
        written.add(tuple(ids))
    assert len(written) == len(TEXTS)
    (tmp_path / "new.txt").write_text("\n".join(TEXTS))
    command = ["predict", str(tmp_path), "--task", "translate", "--data", str(tmp_path / "new.txt"), *command[2:4]]
    command += [] if name == "marian" else ["--source-lang", source]
    lines = CliRunner().invoke(app, command, catch_exceptions=False).stdout.splitlines()
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert [json.loads(line)["text"][:9] for line in lines] == [
        tokenizer.decode(ids, skip_special_tokens=True).strip()[:9]
        for ids in (by_transformers(tmp_path, text, source, target) for text in TEXTS)
    ]


def test_a_language_that_the_model_lacks_is_named_with_those_it_has(tmp_path):
    model_folder(tmp_path, "m2m_100")
    tokenizer = lmkit.load(tmp_path).tokenizer
    assert language_codes(tokenizer) == ["deu_Latn", "eng_Latn", "fra_Latn"]
    with pytest.raises(UserError, match=r"(?s)target_lang 'fra' is no language.*fra_Latn"):
        language_frame(tokenizer, None, "fra")


@pytest.mark.parametrize(("name", "languages"), [("m2m_100", ("eng_Latn", "deu_Latn")), ("marian", (None, "deu"))])
def test_fine_tuned_for_two_languages_transformers_writes_the_same(name, languages, tmp_path, monkeypatch):
    (tmp_path / "base").mkdir()
    model_folder(tmp_path / "base", name)
    monkeypatch.chdir(tmp_path)
    rows = [{"source": TEXTS[0], "target": TEXTS[1]}, {"source": "she was good", "target": "sie war gute"}] * 6
    Path("pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    keys = [f"task.{side}_lang={code}" for side, code in zip(("source", "target"), languages, strict=True) if code]
    command = ["finetune", "--task", "translate", "--model", "base", "--data", "pairs.jsonl", "--out", "run", *keys]
    command += ["train.budget=2 steps", "train.batch=4 rows", "task.beam=1", "task.max_new_tokens=9"]
    assert CliRunner().invoke(app, command, catch_exceptions=False).exit_code == 0
    command = ["predict", "run", "--data", "pairs.jsonl"]
    written = [json.loads(line)["text"] for line in CliRunner().invoke(app, command).stdout.splitlines()[:2]]
    tokenizer = transformers.AutoTokenizer.from_pretrained("run/best")
    model = transformers.AutoModelForSeq2SeqLM.from_pretrained("run/best")
    for row, text in zip(rows, written, strict=False):
        prefix = ">>deu<<" if name == "marian" else ""
        out = model.generate(**tokenizer(prefix + row["source"], return_tensors="pt"))
        assert tokenizer.decode(out[0], skip_special_tokens=True).strip() == text
