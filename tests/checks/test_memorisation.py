"""Greedy continuations and copies, against transformers' own generation and a plain search."""

import json
from types import SimpleNamespace

import numpy as np
import torch
from typer.testing import CliRunner

from lmkit.checks.memorisation import documents_with, sample_passages
from lmkit.commands import main  # noqa: F401 - it adds the commands
from lmkit.commands.app import app
from lmkit.data.tokens import store as token_store
from tests.generation.folders import llama_folder

LEARNT = "The quick brown fox jumps over the lazy dog, as it has done in each of the books."


def _store(folder):
    """Of 4 documents that are learnt, 3 that share a sentence, 6 that leave what is learnt at their ends, and 12 that
    are like no other."""
    texts = [LEARNT] * 4 + [f"{n} came. A dozen foxes jumped over lazy dogs. So {n} went." for n in "JKL"]
    texts += [LEARNT[:n] + "!?" for n in range(54, 60)]
    texts += [f"{n * 7} was not a number that dogs would count up to {n * n * 13}." for n in range(11, 23)] + ["Short."]
    (folder / "corpus.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    command = [
        "tokenize",
        str(folder / "corpus.jsonl"),
        "--out",
        str(folder / "tokens"),
        "--tokenizer",
        str(folder / "m"),
    ]
    ran = CliRunner().invoke(app, [*command, "--validation", "0.2"])
    assert ran.exit_code == 0, ran.output
    return token_store.TokenStore(folder / "tokens")


def _learn(model, ids):
    torch.manual_seed(0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(80):
        model(ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def test_what_is_reproduced_is_what_transformers_writes(tmp_path, monkeypatch):
    model = llama_folder(tmp_path / "m", context=128)
    store = _store(tmp_path)
    _learn(model, torch.tensor([0, *store.tokenizer.encode(LEARNT)]).unfold(0, 14, 1))
    model.save_pretrained(tmp_path / "m")
    expected, passages, left = {}, {}, 0
    for split in ("train", "validation"):
        passages[split] = sample_passages(store.split(split), 8, 6, 200, 3)
        written = [model.generate(torch.tensor([p.prompt]), do_sample=False, max_new_tokens=6, min_new_tokens=6)
                   for p in passages[split]]  # fmt: skip
        expected[split] = [w[0, 8:].tolist() == p.continuation for w, p in zip(written, passages[split], strict=True)]
        pairs = [(w[0, 8:].tolist(), p.continuation) for w, p in zip(written, passages[split], strict=True)]
        left += sum(a[:3] == b[:3] and a != b for a, b in pairs)
    assert 0 < sum(expected["train"]) < len(expected["train"]) and left
    monkeypatch.setattr("lmkit.base.display.PLAIN_INTERVAL", 0)
    options = ["--prompt-tokens", "8", "--max-tokens", "6", "--seed", "3", "--json"]
    ran = CliRunner().invoke(app, ["check", str(tmp_path / "m"), "--memorised", str(store.path), *options])
    assert ran.exit_code == 0, ran.output
    got = json.loads(ran.stdout.splitlines()[-1])
    assert "going on with documents" in ran.stderr and "looking for copies" in ran.stderr
    assert got["counts"]["reproduced"] == sum(expected["train"]) and got["counts"]["passages"] == len(expected["train"])
    assert got["shares"]["held out"]["value"] == sum(expected["validation"]) / len(expected["validation"])

    monkeypatch.setattr("lmkit.checks.memorisation.BLOCK", 50)  # copies are found across the ends of blocks too
    train = store.split("train")
    rows = [f" {' '.join(map(str, train.document(d).tolist()))} " for d in range(train.num_documents)]
    wanted = [p.continuation for p in passages["train"]]
    copies = [sum(f" {' '.join(map(str, w))} " in row for row in rows) for w in wanted]
    assert documents_with(train, wanted) == copies and max(copies) > 2 and min(copies) == 1


def test_a_copy_lies_in_one_document():
    """Documents 123, 12 and 3123, one after the other without a token between them."""
    stream, lengths = np.array([1, 2, 3, 1, 2, 3, 1, 2, 3]), np.array([3, 2, 4])
    split = SimpleNamespace(
        num_tokens=9, lengths=lengths, starts=np.cumsum(lengths) - lengths, stream=lambda a, b: stream[a:b]
    )
    assert documents_with(split, [[1, 2, 3], [3, 1, 2], [2, 3, 3]]) == [2, 1, 0]
