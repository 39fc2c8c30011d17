"""The pipeline: text in, the same text and nothing else in the store, whatever interrupts it."""

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from transformers import AutoTokenizer

from lmkit.base.errors import DataError, UserError
from lmkit.data.tokens import tokenize as pipeline
from lmkit.data.tokens import units
from lmkit.data.tokens.store import TokenStore, card_lines
from lmkit.data.tokens.tokenize import tokenize
from lmkit.recipe.pretraining import DataConfig, TokenizerConfig
from lmkit.text.tokenizer_files import load_tokenizer

WORDS = ["alpha", "Beta", "the", "of", "naïve", "世界", "12", "x=1;", "\n", "don't", "🙂", "<|bos|>"]
SMALL = TokenizerConfig(type="bpe", vocab_size=400)


def documents(n: int, seed: int = 0) -> list[str]:
    choice = random.Random(seed)
    return [f"{i} " + " ".join(choice.choices(WORDS, k=choice.randint(1, 60))) for i in range(n)]


def write_jsonl(path: Path, texts: list[str]) -> str:
    path.write_text("".join(json.dumps({"text": t}) + "\n" for t in texts))
    return str(path)


def contents(store: TokenStore, split: str) -> list[str]:
    """Every document of a split, decoded, after checking its frame and counts."""
    tokenizer = load_tokenizer(store.tokenizer_path)
    part = store.split(split)
    found = []
    for i in range(part.num_documents):
        ids = part.document(i)
        assert ids[0] == tokenizer.bos_id and (ids == tokenizer.bos_id).sum() == 1 and len(ids) == part.lengths[i]
        text = tokenizer.decode(ids[1:].tolist(), skip_special=False)
        assert np.array_equal(part.tokens(i, 1, 3), ids[1:3])
        found.append(text)
    assert part.num_tokens == part.lengths.sum() and part.num_bytes == sum(len(text.encode()) for text in found)
    return found


def hashes(folder: Path) -> dict[str, str]:
    """Of all files that are part of a store; the inputs' times are not."""
    skip = {".lock", "plan.json"}
    found = {str(p.relative_to(folder)): p for p in folder.rglob("*") if p.is_file() and p.name not in skip}
    return {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in found.items()}


def test_every_document_is_stored_once_and_equal_ones_on_one_side(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(units, "UNIT_BYTES", 20_000)
    monkeypatch.setattr(units, "BATCH_BYTES", 3_000)
    texts = documents(500)
    a, b = write_jsonl(tmp_path / "a.jsonl", texts[:300]), write_jsonl(tmp_path / "b.jsonl", texts[200:])
    store = tokenize(DataConfig(train=[a, b], validation=0.1), SMALL, "nanochat", tmp_path / "out")
    store.verify()
    train, held = contents(store, "train"), contents(store, "validation")
    assert sorted(train + held) == sorted(texts[:300] + texts[200:]) and not set(train) & set(held)
    assert 20 < len(held) < 100 and len(store.manifest["shards"]["train"]) > 1
    order = {text: i for i, text in enumerate(texts)}
    assert [order[t] for t in train[:100]] == sorted(order[t] for t in train[:100])
    assert (
        not any("over-long" in line for line in card_lines(store)) and "nothing was left out" in card_lines(store)[-1]
    )


def test_unchanged_does_nothing_and_a_change_makes_it_anew(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = DataConfig(train=write_jsonl(tmp_path / "a.jsonl", documents(200)))
    out = tmp_path / "out"
    first = tokenize(data, SMALL, "nanochat", out)
    before = {p: p.stat().st_mtime_ns for p in out.rglob("*") if p.name != ".lock"}
    tokenize(data, SMALL, "nanochat", out)
    os.utime(tmp_path / "a.jsonl")  # touched, not changed
    assert tokenize(data, SMALL, "nanochat", out).fingerprint == first.fingerprint
    assert before == {p: p.stat().st_mtime_ns for p in out.rglob("*") if p.name != ".lock"}
    assert capsys.readouterr().err.count("nothing to do") == 2
    write_jsonl(tmp_path / "a.jsonl", documents(201))
    second = tokenize(data, SMALL, "nanochat", out)
    assert second.fingerprint != first.fingerprint and "making it anew" in capsys.readouterr().err
    other = tokenize(data, TokenizerConfig(type="bpe", vocab_size=290), "nanochat", out)
    assert other.fingerprint != second.fingerprint and load_tokenizer(out).vocab_size < 300
    other.verify()


SMALL_UNITS = {"UNIT_BYTES": 30_000, "BATCH_BYTES": 2_000}
RUN = f"""
import sys
from lmkit.data.tokens import tokenize as t, units
from lmkit.recipe.pretraining import DataConfig, TokenizerConfig
vars(units).update({SMALL_UNITS})
t.tokenize(DataConfig(train=sys.argv[2:]), TokenizerConfig(vocab_size=400), "nanochat", t.Path(sys.argv[1]))
"""


def test_killed_anywhere_and_run_again_gives_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in SMALL_UNITS.items():
        monkeypatch.setattr(units, name, value)
    files = [write_jsonl(tmp_path / f"{i}.jsonl", documents(300, seed=i)) for i in range(6)]
    tokenize(DataConfig(train=files), SMALL, "nanochat", tmp_path / "whole")
    out = tmp_path / "killed"
    for started in ("plan.json", "unit-00002.json"):
        process = subprocess.Popen([sys.executable, "-c", RUN, str(out), *files], stderr=subprocess.DEVNULL)
        while process.poll() is None and not (out / started).exists():
            time.sleep(0.001)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL and not (out / "manifest.json").exists()
    tokenize(DataConfig(train=files), SMALL, "nanochat", out)
    assert hashes(out) == hashes(tmp_path / "whole")
    monkeypatch.setattr(pipeline, "SMALL_BYTES", 0)  # and the number of processes changes nothing
    tokenize(DataConfig(train=files), SMALL, "nanochat", tmp_path / "workers")
    assert hashes(tmp_path / "workers") == hashes(out)


def test_a_given_tokenizer_and_validation_files_of_their_own(tmp_path: Path) -> None:
    train, held = write_jsonl(tmp_path / "a.jsonl", documents(50)), write_jsonl(tmp_path / "b.jsonl", documents(9, 1))
    first = tokenize(DataConfig(train=train, validation=0.2), SMALL, "llama", tmp_path / "first")
    config = TokenizerConfig(path=str(tmp_path / "first"))
    store = tokenize(DataConfig(train=[train], validation=[held]), config, "gpt2", tmp_path / "second")
    assert store.manifest["tokenizer"]["fingerprint"] == first.manifest["tokenizer"]["fingerprint"]
    tokenizer = load_tokenizer(store.tokenizer_path)
    part = store.split("validation")
    assert [tokenizer.decode(part.document(i).tolist()[1:-1], skip_special=False) for i in range(9)] == documents(9, 1)
    assert all(part.document(i)[-1] == tokenizer.eos_id for i in range(9))
    assert store.split("train").num_documents == 50


def test_few_plain_text_files_give_their_ends_to_validation(tmp_path: Path) -> None:
    text = "\n".join(documents(300))
    (tmp_path / "a.txt").write_text(text)
    store = tokenize(DataConfig(train=str(tmp_path / "a.txt"), validation=0.1), SMALL, "nanochat", tmp_path / "out")
    [head], [tail] = contents(store, "train"), contents(store, "validation")
    assert head + tail == text and 0.05 < len(tail) / len(text) <= 0.1


def test_the_parts_of_a_long_document_stay_on_one_side(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lmkit.data.documents.MAX_CHARS", 100)
    texts = [f"document {i}\n" + "word word word word word\n" * 40 for i in range(40)]
    data = DataConfig(train=write_jsonl(tmp_path / "a.jsonl", texts), validation=0.3)
    store = tokenize(data, SMALL, "nanochat", tmp_path / "out")
    train, held = "".join(contents(store, "train")), "".join(contents(store, "validation"))
    assert sorted(train + held) == sorted("".join(texts))
    for text in texts:
        assert (text in train) != (text in held)


def test_the_card_counts_what_was_left_out(tmp_path: Path) -> None:
    lines = [json.dumps({"text": t}) for t in documents(50)]
    (tmp_path / "a.jsonl").write_text("\n".join([*lines, "{broken", '{"text": ""}', '{"text": 3}', *lines]))
    (tmp_path / "z.jsonl").write_bytes(b"\x7fELF\0\0")
    store = tokenize(DataConfig(train=str(tmp_path)), SMALL, "bert", tmp_path / "out")
    card = "\n".join(card_lines(store))
    for expected in (
        "1 broken records",
        "a.jsonl:51",
        "1 empty documents",
        "a.jsonl:52",
        "records without text",
        "binary",
    ):
        assert expected in card
    assert (tmp_path / "out" / "card.txt").read_text() == card + "\n"


def test_nothing_to_read_or_to_hold_out_is_an_error_that_says_why(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("{broken\n")
    with pytest.raises(DataError, match=r"no train document(.|\n)*1 broken records: .*a.jsonl:1"):
        tokenize(DataConfig(train=str(tmp_path / "a.jsonl")), SMALL, "gpt2", tmp_path / "out")
    write_jsonl(tmp_path / "b.jsonl", documents(3))
    with pytest.raises(DataError, match=r"leaves none(.|\n)*data.validation"):
        tokenize(DataConfig(train=str(tmp_path / "b.jsonl"), validation=0.001), SMALL, "gpt2", tmp_path / "out")


def test_a_folder_with_other_things_in_it_is_left_alone(tmp_path: Path) -> None:
    data = DataConfig(train=write_jsonl(tmp_path / "a.jsonl", documents(50)))
    with pytest.raises(UserError, match="not empty and not a token store"):
        tokenize(data, SMALL, "gpt2", tmp_path)
    assert (tmp_path / "a.jsonl").exists()


def test_damage_is_found(tmp_path: Path) -> None:
    data = DataConfig(train=write_jsonl(tmp_path / "a.jsonl", documents(50)))
    tokens = tokenize(data, SMALL, "gpt2", tmp_path / "out").path / "train-00000.tokens"
    content = bytearray(tokens.read_bytes())
    content[7] ^= 1
    tokens.write_bytes(content)
    with pytest.raises(DataError, match=r"train-00000\.tokens is not what was written"):
        TokenStore(tmp_path / "out").verify()
    tokens.write_bytes(content[:-2])
    with pytest.raises(DataError, match=r"train-00000\.tokens has"):
        TokenStore(tmp_path / "out")
    (tmp_path / "out" / "manifest.json").unlink()
    with pytest.raises(DataError, match="unfinished"):
        TokenStore(tmp_path / "out")


def test_a_sample_keeps_the_tokenizer_within_its_budget(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    train = pipeline.train_tokenizer
    monkeypatch.setattr(
        pipeline, "train_tokenizer", lambda texts, *rest: train(iter(seen.extend(texts) or seen), *rest)
    )
    data = DataConfig(train=write_jsonl(tmp_path / "a.jsonl", documents(500)), validation=0.1)
    store = tokenize(data, TokenizerConfig(vocab_size=300, sample=20_000), "gpt2", tmp_path / "out")
    assert 18_000 < sum(len(t.encode()) for t in seen) <= 20_000
    order = [int(t.split()[0]) for t in seen]
    assert order == sorted(order) and order[0] < 100 and order[-1] > 400  # from everywhere
    tokenizer = load_tokenizer(store.tokenizer_path)
    held = store.split("validation")
    assert not set(seen) & {tokenizer.decode(held.document(i)[1:].tolist(), False) for i in range(held.num_documents)}


HAN = [chr(0x4E00 + i) for i in range(1500)]


def test_wordpiece_keeps_every_character_that_has_room_and_says_what_it_drops(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = tmp_path / "zh.txt"
    text.write_text("\n".join("".join(HAN[i : i + 30]) for i in range(0, 1500, 30)) * 2, encoding="utf-8")
    for size, dropped in ((4000, 0), (1000, 1500 - (1000 - 5))):
        out = tmp_path / str(size)
        tokenize(DataConfig(train=str(text)), TokenizerConfig(type="wordpiece", vocab_size=size), "bert", out)
        assert (f"{dropped:,} of the 1,500 characters" in capsys.readouterr().err) == (dropped > 0)
        reference = AutoTokenizer.from_pretrained(out / "tokenizer")
        unknown = reference("".join(HAN), add_special_tokens=False).input_ids.count(reference.unk_token_id)
        assert unknown == dropped


@pytest.mark.parametrize("kind", ["unigram", "sentencepiece"])
def test_a_script_with_few_spaces_keeps_them(kind: str, tmp_path: Path) -> None:
    lines = ["".join(HAN[(7 * i + k * k) % 300] for k in range(40)) for i in range(400)]
    lines[5] = lines[5][:20] + " " + lines[5][20:]
    text = tmp_path / "zh.txt"
    text.write_text("\n".join(lines), encoding="utf-8")
    tokenize(DataConfig(train=str(text)), TokenizerConfig(type=kind, vocab_size=700), "llama", tmp_path / "out")
    reference = AutoTokenizer.from_pretrained(tmp_path / "out/tokenizer")
    assert reference.decode(reference(lines[5], add_special_tokens=False).input_ids) == lines[5]


def test_bytes_that_a_tokenizer_drops_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from tokenizers import Tokenizer as Backend
    from tokenizers import decoders, models, pre_tokenizers

    alphabet = sorted(set(pre_tokenizers.ByteLevel.alphabet()) - {"Ċ", "ã"})  # without the bytes 0A and E3
    backend = Backend(models.BPE({piece: i for i, piece in enumerate(alphabet)}, []))
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    backend.save(str(tmp_path / "tokenizer.json"))
    text = tmp_path / "ja.txt"
    text.write_text("abc\nカタカナ and words\n" * 50, encoding="utf-8")
    config = TokenizerConfig(path=str(tmp_path / "tokenizer.json"))
    store = tokenize(DataConfig(train=str(text)), config, "gpt2", tmp_path / "out")
    ids = backend.encode(text.read_text(encoding="utf-8")).ids
    dropped = sum(shard["unspelt"] for split in store.manifest["shards"].values() for shard in split)
    assert dropped == len(text.read_bytes()) - len(ids) == 50 * (2 + 4)
    assert "dropped     300 B of text" in "\n".join(card_lines(store))
