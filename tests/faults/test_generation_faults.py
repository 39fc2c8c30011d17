"""Prompts and settings of any kind through `lmkit generate`, and sets of any kind through `lmkit eval`: a text, or one
message with exit code 2, 3 or 4; never a hang, half a character or a control token that a person typed."""

import io
import json
import random
import sys
import tracemalloc
from itertools import islice
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer

import lmkit
from lmkit.base.runs import read_jsonl
from lmkit.data.inputs import Problems
from lmkit.generation.engine import generate
from lmkit.generation.prompts import prompt_ids, source_ids
from lmkit.generation.sampling import SamplingConfig
from lmkit.text.tokenizer_files import load_tokenizer
from tests.generation.folders import encoder_folder, llama_folder, seq2seq_folder

CONTEXT = 48


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> dict[str, Path]:
    home = tmp_path_factory.mktemp("models")
    llama_folder(home / "llama", CONTEXT)
    seq2seq_folder(home / "t5", "t5")
    encoder_folder(home / "bert", "bert")
    return {name: home / name for name in ("llama", "t5", "bert")}


@pytest.fixture
def written(models, lmkit_):
    def run(*arguments: object, model: str = "llama", code: int = 0):
        shown = lmkit_("generate", models[model], *arguments)
        assert shown.code == code, shown
        return shown

    return run


def texts(out: str) -> list[str]:
    return [json.loads(line)["text"] for line in out.removesuffix("\n").split("\n")]


# ---------------------------------------------------------------- settings


@pytest.mark.parametrize(
    ("option", "value", "says"),
    [
        ("--temperature", "-1", "temperature -1.0 is out of range"),
        ("--temperature", "nan", "temperature nan is out of range"),
        ("--temperature", "inf", "temperature inf is out of range"),
        ("--temperature", "hot", "'--temperature' / '-t': Input should be a valid number"),
        ("--top-p", "0", "top_p 0.0 is out of range\n  allowed: above 0, up to 1"),
        ("--top-p", "1.1", "top_p 1.1 is out of range"),
        ("--top-p", "nan", "top_p nan is out of range"),
        ("--top-k", "-1", "top_k -1 is out of range"),
        ("--min-p", "2", "min_p 2.0 is out of range"),
        ("--repetition-penalty", "0", "repetition_penalty 0.0 is out of range"),
        ("--max-tokens", "0", "max_tokens 0 is out of range\n  allowed: 1 or more"),
        ("--max-tokens", "-5", "max_tokens -5 is out of range"),
        ("--max-tokens", "many", "'--max-tokens': Input should be a valid integer"),
        ("--samples", "0", "greater than or equal to 1"),
        ("--seed", "-1", "seed -1 is out of range"),
        ("--stop", "", "stop ('',) is out of range"),
        ("--keep", "20%", "Missing option '--images'"),
        ("--max-tokns", "3", "No such option"),
    ],
)
def test_settings_out_of_range_are_refused_before_the_model_is_loaded(option, value, says, lmkit_):
    shown = lmkit_("generate", "no-such-model", "a", option, value)
    assert shown.code == 2 and says in shown.err and not shown.out, shown


@pytest.mark.parametrize(
    "options",
    [
        ["--temperature", "0"], ["--temperature", "1e-300"], ["--temperature", "1e300"], ["--top-k", "1"],
        ["--top-k", "1000000000"], ["--top-p", "1e-12"], ["--min-p", "1"], ["--repetition-penalty", "1e30"],
        ["--repetition-penalty", "1e-30"], ["--seed", str(2**62)], ["--stop", "x" * 10_000],
        ["--max-tokens", "1000000000"],
    ],
)  # fmt: skip
def test_settings_at_their_ends_give_texts(options, written):
    [line] = written("a", "--json", *options).out.splitlines()
    row = json.loads(line)
    assert row["ids"] and all(x == x for x in row["logprobs"])
    assert len(row["ids"]) <= CONTEXT - 1


# ---------------------------------------------------------------- prompts


def test_an_empty_prompt_is_the_beginning_of_a_document(written):
    assert texts(written("", "--json", "--max-tokens", "5").out) != [""]


@pytest.mark.parametrize(
    ("prompt", "code", "says"),
    [
        ("word " * 200, 2, f"is beyond the model's context of {CONTEXT}\n  → shorten it to {CONTEXT - 1} tokens"),
        ("a" * 1_000_000, 2, "is beyond the model's context"),
        ("\ud83d", 2, "half of a surrogate pair"),
        ("a\udcffb", 2, "half of a surrogate pair"),
    ],
)
def test_prompts_that_cannot_be_read_are_refused(prompt, code, says, written):
    assert says in written(prompt, code=code).err


@pytest.mark.parametrize(
    ("content", "code", "says"),
    [
        (b"caf\xe9\n", 3, "standard input: not UTF-8 text (byte 3)"),
        (b"ok \xe2\x82", 3, "not UTF-8 text (byte 3)"),
        (b"", 0, ""),
        (b"\xef\xbb\xbfa", 0, ""),
        (b"a\0b", 0, ""),
    ],
)
def test_standard_input_is_text_or_refused(content, code, says, written, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))
    assert says in written("-", "--max-tokens", "3", code=code).err


def test_input_without_end_is_refused(written, monkeypatch):
    monkeypatch.setattr("lmkit.commands.options.MOST_BYTES", 2**20)
    shown = written("--file", "/dev/zero", code=3)
    assert "/dev/zero: above 1,048,576 bytes of prompts" in shown.err


@pytest.mark.parametrize(
    ("content", "says"),
    [(None, "cannot be read: No such file"), (b"", "holds no prompt"), (b"\xff\xfe", "not UTF-8 text (byte 0)")],
)
def test_files_of_prompts_that_hold_none(content, says, written, tmp_path):
    if content is not None:
        (tmp_path / "p.txt").write_bytes(content)
    assert says in written("--file", tmp_path / "p.txt", code=3).err
    assert "Is a directory" in written("--file", tmp_path, code=3).err


def test_lines_of_a_file_are_prompts_whatever_they_hold(written, tmp_path):
    (tmp_path / "p.txt").write_bytes("a\r\n\n\x0cb\u2028c\n日本語\n</s>".encode())
    out = written("--file", tmp_path / "p.txt", "--json", "--max-tokens", "2").out
    rows = [json.loads(line) for line in out.removesuffix("\n").split("\n")]
    assert [row["prompt"] for row in rows] == ["a", "", "\x0cb\u2028c", "日本語", "</s>"]


@pytest.mark.parametrize("typed", ["</s>", "<s>", "<pad>", "a</s>b", "</s>" * 5, "<extra_id_0", "<|im_end|>"])
def test_control_tokens_that_are_typed_are_text(typed, models):
    for name in ("llama", "t5"):
        loaded = lmkit.load(models[name])
        tokenizer = loaded.needs_tokenizer()
        control = {tokenizer.vocab[t] for t in ("<s>", "</s>", "<pad>") if t in tokenizer.vocab}
        ids = prompt_ids(tokenizer, typed) if name == "llama" else source_ids(tokenizer, typed)
        before, after = ([], []) if name == "llama" else tokenizer.document_frame
        inner = ids[len(before) : len(ids) - len(after)]
        assert not control & set(inner) and tokenizer.decode(inner, skip_special=False) == typed


def test_a_mask_is_asked_for_where_an_encoder_reads(written):
    assert "[MASK]" in written("no gap here", model="bert", code=2).err
    assert json.loads(written("the [MASK] fox", "--json", model="bert").out.splitlines()[0])


def test_a_million_prompts_are_read_as_they_are_needed(models):
    model = lmkit.load(models["llama"]).model
    asked = 0

    def prompts():
        nonlocal asked
        for _ in range(1_000_000):
            asked += 1
            yield [0, 5, 6]

    tracemalloc.start()
    found = list(islice(generate(model, prompts(), SamplingConfig(max_tokens=2)), 200))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(found) == 200 and asked < 500 and peak < 20_000_000


@pytest.mark.parametrize("temperature", ["0", "1"])
def test_same_seed_same_text_alone_or_among_others(temperature, written, tmp_path):
    prompts = ["a", "the quick", "日本語", "", "x" * 20]
    (tmp_path / "p.txt").write_text("\n".join(prompts))
    options = ["--json", "--max-tokens", "12", "--temperature", temperature, "--seed", "7", "-n", "2"]
    together = texts(written("--file", tmp_path / "p.txt", *options).out)
    alone = [text for prompt in prompts for text in texts(written(prompt, *options).out)]
    assert together == alone and together == texts(written("--file", tmp_path / "p.txt", *options).out)
    if temperature == "1":
        assert texts(written("a", *options[:-3], "8", "-n", "2").out) != together[:2]


@pytest.mark.parametrize("seed", range(4))
def test_a_stream_shows_whole_characters_and_no_part_of_a_stop(seed, models, monkeypatch, capsys):
    """Random weights write broken bytes: what is streamed is what is returned, piece by piece valid text."""
    from lmkit.generation.engine import complete

    loaded = lmkit.load(models["llama"])
    words = loaded.needs_tokenizer()
    config = SamplingConfig(max_tokens=40, seed=seed)
    [free] = complete(loaded.model, words, ["日本"], config, frozenset())
    stop = free.text[8:11] if len(free.text) > 12 else "q"
    pieces: list[str] = []
    config = SamplingConfig(max_tokens=40, seed=seed, stop=(stop,))
    [row] = complete(loaded.model, words, ["日本"], config, frozenset(), on_text=lambda _, text: pieces.append(text))
    assert "".join(pieces) == row.text == free.text[: free.text.index(stop)]
    assert all(piece.encode() for piece in pieces)


# ---------------------------------------------------------------- evaluation


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "there is no text to score"),
        (b"\n\n", "there is no text to score"),
        (b"\0\0", "1 binary files"),
        (b"caf\xe9", "1 undecodable documents (not UTF-8)"),
    ],
)
def test_an_empty_set_is_an_error_that_says_what_it_held(content, says, models, tmp_path, lmkit_):
    (tmp_path / "a.txt").write_bytes(content)
    shown = lmkit_("eval", models["llama"], "--data", tmp_path / "a.txt")
    assert shown.code == 3 and says in shown.err and not shown.out


def test_one_document_has_scores_and_no_interval(models, tmp_path, lmkit_):
    (tmp_path / "a.txt").write_text("one short text, with Größe and 日本語")
    shown = lmkit_("eval", models["llama"], "--data", tmp_path / "a.txt", "--json")
    row = json.loads(shown.out)
    assert shown.code == 0 and row["bits_per_byte"]["value"] > 0 and row["bits_per_byte"]["low"] is None
    assert "a 95% interval is undefined" in shown.err
    shown = lmkit_("eval", models["llama"], "--data", tmp_path / "a.txt")
    assert "undefined" in shown.out


def test_characters_the_tokenizer_lacks_are_counted(models, tmp_path, lmkit_):
    (tmp_path / "a.jsonl").write_text(
        json.dumps({"text": "the quick 日本 fox 🙂 ."}) + "\n" + '{"text": "the dog ."}\n'
    )
    shown = lmkit_("eval", models["bert"], "--data", tmp_path / "a.jsonl", "--json", "--pll-tokens", "0")
    assert shown.code == 0 and json.loads(shown.out)["unknown_tokens"] > 0 and "unknown tokens" in shown.err


def test_models_of_other_tokenizers_are_not_set_side_by_side(models, tmp_path, lmkit_):
    (tmp_path / "a.txt").write_text("text")
    shown = lmkit_("eval", models["llama"], models["t5"], "--data", tmp_path / "a.txt")
    assert shown.code == 2 and "name one" in shown.err


@pytest.mark.parametrize("torn", [b'{"step": 3, "lo', b'{"step": 3}', b"\0\0\0\0", b""])
def test_a_torn_last_line_of_a_log_is_passed_over(torn, tmp_path):
    (tmp_path / "metrics.jsonl").write_bytes(b'{"step": 1}\n{"step": 2}\n' + torn)
    assert [row["step"] for row in read_jsonl(tmp_path / "metrics.jsonl")] == [1, 2]


def test_problems_are_merged_with_their_first_places():
    rng, parts = random.Random(0), [Problems() for _ in range(3)]
    for i in range(100):
        parts[rng.randrange(3)].add("odd", f"f:{i}")
    total = Problems()
    for part in parts:
        total.merge(part)
    assert total.counts == {"odd": 100} and len(total.examples["odd"]) == 5


WRONG = [("num_beams", 0), ("num_beams", "many"), ("length_penalty", "a"), ("max_new_tokens", 0), ("min_length", "x")]


@pytest.mark.parametrize(("key", "value"), WRONG, ids=str)
def test_a_generation_config_of_the_wrong_types_is_named(key, value, tmp_path, lmkit_):
    seq2seq_folder(tmp_path / "m", "bart")
    file = tmp_path / "m/generation_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {key: value}))
    (tmp_path / "source.txt").write_text("the quick brown fox\n")
    shown = lmkit_("predict", tmp_path / "m", "--task", "translate", "--data", tmp_path / "source.txt")
    assert shown.code == 4 and "generation_config.json: " in shown.err and repr(value) in shown.err, shown


@pytest.mark.parametrize(("on", "said"), [
    ({"early_stopping": "never"}, "not followed here: early_stopping=never"),
    ({"forced_bos_token_id": 9, "begin_suppress_tokens": [*range(10, 200)]}, ""),
    ({"forced_bos_token_id": 9, "begin_suppress_tokens": [9]}, ""),
], ids=lambda x: str(x)[:40])  # fmt: skip
def test_the_start_of_a_text_is_forced_before_its_first_token_is_chosen(on, said, tmp_path, lmkit_):
    theirs = seq2seq_folder(tmp_path / "m", "bart")
    file = tmp_path / "m/generation_config.json"
    settings = json.loads(file.read_text()) | {"num_beams": 2, "max_new_tokens": 9, "eos_token_id": 1} | on
    file.write_text(json.dumps(settings))
    sources = ["the quick brown fox", "over the lazy dog", "jumps"]
    (tmp_path / "source.txt").write_text("\n".join(sources))
    shown = lmkit_("predict", tmp_path / "m", "--task", "translate", "--data", tmp_path / "source.txt")
    assert shown.code == 0 and said in shown.err
    if said:
        return
    words, model = AutoTokenizer.from_pretrained(tmp_path / "m"), type(theirs).from_pretrained(tmp_path / "m")
    frame = load_tokenizer(tmp_path / "m").document_frame
    for source, line in zip(sources, shown.out.splitlines(), strict=True):
        ids = [*frame[0], *words(source, add_special_tokens=False).input_ids, *frame[1]]
        written = model.generate(torch.tensor([ids]))[0]
        assert json.loads(line)["text"] == words.decode(written, skip_special_tokens=True).strip()
