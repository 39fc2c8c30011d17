"""Runs that an earlier lmkit (2026-11-28) was stopped in: they open, go on to the weights and figures that it came to,
and score the same. `fixtures/earlier` holds both after step 4 of 8, and what each was after step 8, never stopped."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import lmkit
from lmkit.base.runs import read_jsonl
from lmkit.training import finetuning_run, pretraining_run

EARLIER = Path(__file__).parent.parent / "fixtures" / "earlier"
CLOSE = 1e-6  # other processors round in other places; on the one that made them all is equal byte for byte


@pytest.fixture
def earlier(tmp_path, monkeypatch) -> Path:
    shutil.copytree(EARLIER, tmp_path / "earlier", symlinks=True)
    monkeypatch.setenv("LMKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path / "earlier")
    return tmp_path / "earlier"


@pytest.mark.parametrize(("run", "resume"), [("run", pretraining_run.resume), ("classified", finetuning_run.resume)])
def test_a_run_of_an_earlier_version_goes_on_to_the_same_end(run, resume, earlier):
    loaded = lmkit.load(run)
    assert resume(Path(run)) == 0
    after, before = load_file(f"{run}-after.safetensors"), load_file(f"{run}/latest/model.safetensors")
    assert after.keys() == before.keys()
    for name, weights in after.items():
        torch.testing.assert_close(before[name], weights, rtol=0, atol=CLOSE)
    one, other = (list(read_jsonl(Path(file))) for file in (f"{run}-after.jsonl", f"{run}/metrics.jsonl"))
    assert [row.keys() for row in one] == [row.keys() for row in other] and len(one) == 8
    for mine, theirs in zip(one, other, strict=True):
        assert mine == pytest.approx(theirs, abs=1e-5)
    assert sum(p.numel() for p in loaded.model.parameters()) == sum(
        p.numel() for p in lmkit.load(run).model.parameters()
    )


def test_a_classifier_of_an_earlier_version_scores_the_same(earlier):
    assert finetuning_run.resume(Path("classified")) == 0
    now, then = (json.loads(Path(f).read_text()) for f in ("classified/scores.json", "classified-after-scores.json"))
    assert now.keys() == then.keys() | {"classes", "train_rows"}
    for name, score in then["scores"].items():
        if name == "accuracy":  # whose interval was a bootstrap then
            score = score | {key: now["scores"][name][key] for key in ("low", "high")}
        assert now["scores"][name] == pytest.approx(score, abs=1e-4), name
