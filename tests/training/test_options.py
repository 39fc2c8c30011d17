"""Options that change speed, memory or what is kept, seen from the outside of a run."""

import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from lmkit.architecture.model_config import ModelConfig
from lmkit.model.initial import init_weights
from lmkit.model.transformer import Transformer
from lmkit.objectives.collating import within
from lmkit.training import pretraining_run
from lmkit.training.checkpoints import State
from lmkit.training.job import Job


def rows(run: str) -> list[dict]:
    return [json.loads(line) for line in (Path(run) / "metrics.jsonl").read_text().splitlines()]


def test_the_average_of_weights_is_the_model_and_the_weights_are_kept(tiny):
    """0.9 decay over two steps, recomputed from the three sets of weights."""
    settings = ("train.budget=2 steps", "checkpoint.every=1", "evaluate.every=0", "checkpoint.keep=3")
    assert pretraining_run.start(tiny, (*settings, "schedule.name=constant"), Path("two")) == 0
    first, last = (Path(f"two/checkpoints/step-0000000{n}") for n in (1, 2))
    name, theirs = "decoder.norm.weight", "transformer.ln_f.weight"
    raw = [load_file(p / "training/weights.safetensors")[name] for p in (first, last)]
    start = torch.ones_like(raw[0])  # norms begin at one
    want = 0.9 * (0.9 * start + 0.1 * raw[0]) + 0.1 * raw[1]
    torch.testing.assert_close(load_file(last / "model.safetensors")[theirs], want)


def test_the_last_checkpoints_are_averaged_at_the_end(tiny, capsys):
    assert pretraining_run.start(tiny, ("train.ema=null", "checkpoint.average=3"), Path("run")) == 0
    assert "average of the last 3 checkpoints: val_loss" in capsys.readouterr().err
    best = Path("run/best").resolve()
    if best.name == "average":
        parts = [load_file(p / "model.safetensors") for p in sorted(Path("run/checkpoints").glob("step-*"))[-3:]]
        for name, tensor in load_file(best / "model.safetensors").items():
            torch.testing.assert_close(tensor, sum(p[name] for p in parts) / 3)


def test_only_the_newest_and_the_best_checkpoints_are_kept(tiny):
    settings = ("checkpoint.every=1", "checkpoint.keep=2", "optimizer.lr=3", "optimizer.name=sgd", "train.ema=null")
    assert pretraining_run.start(tiny, settings, Path("run")) == 0  # a rate that spoils the model: the best comes early
    best = min((r for r in rows("run") if "val_loss" in r), key=lambda r: r["val_loss"])["step"]
    kept = {int(p.name[-8:]) for p in Path("run/checkpoints").iterdir()}
    assert kept == {best, 11, 12}


def test_recomputing_activations_changes_no_gradient():
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_layers": 2, "num_heads": 2, "num_kv_heads": 2, "head_dim": 16}
    config = ModelConfig(
        family="llama", vocab_size=64, intermediate_size=48, context=16, gated=True, dropout=0.2, **sizes
    )
    tokens, grads = torch.randint(0, 64, (2, 16)), []
    for recompute in (False, True):
        model = Transformer(config).train()
        init_weights(model)
        model.decoder.recompute = recompute
        torch.manual_seed(1)
        model.word_loss(model(tokens), tokens).loss.backward()
        grads.append([p.grad for p in model.parameters()])
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b)


def test_documents_masked_from_each_other_train_differently(tiny):
    for name, masked in (("open", "false"), ("masked", "true")):
        assert pretraining_run.start(tiny, (f"data.document_masking={masked}",), Path(name)) == 0
    assert rows("open")[0]["loss"] != rows("masked")[0]["loss"]


def test_positions_restart_with_every_segment():
    import numpy as np

    assert within([np.array([0, 0, 1, 1, 1, -1])])[1].tolist() == [[0, 1, 0, 1, 2, 0]]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_precisions_train_to_nearly_the_same_loss(tiny, precision):
    assert pretraining_run.start(tiny, (f"train.precision={precision}", "model.dropout=0"), Path(precision)) == 0
    final = rows(precision)[-1]["loss"]
    assert final < 0.9 * rows(precision)[0]["loss"]


@pytest.mark.parametrize(
    ("scores", "better"),
    [((0.8, 0.1), False), ((0.9, 0.5), False), ((0.9, 0.4), True), ((0.91, 9.0), True), ((math.nan, 0.1), False)],
)
def test_the_best_is_by_the_metric_and_among_equals_by_loss(scores, better):
    best = {"step": 3, "val_accuracy": 0.9, "val_loss": 0.5}
    job = Job.__new__(Job)
    job.metric, job.higher, job.state = "val_accuracy", True, State(best=best)
    assert job.better(dict(zip(("val_accuracy", "val_loss"), scores, strict=True))) == better
