"""Runs that are stopped at a chosen place, and compared with the one that nothing happened to."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lmkit.commands import pretrain
from lmkit.runs import read_jsonl
from lmkit.tasks.causal_lm import CausalLM

LAST = "checkpoints/step-00000012"  # of a run by the recipe of `tiny`
FILES = ["model.safetensors", "training/weights.safetensors", "training/optimizer.safetensors"]


def same(a: Path | str, b: Path | str, last: str = LAST) -> None:
    """Two finished runs, byte for byte."""
    for name in FILES:
        one, two = (Path(run, last, name) for run in (a, b))
        assert one.read_bytes() == two.read_bytes(), name
    assert Path(a, "metrics.jsonl").read_bytes() == Path(b, "metrics.jsonl").read_bytes()
    for link in ("best", "latest"):
        assert Path(a, link).readlink() == Path(b, link).readlink(), link


class Crash(Exception):
    pass


def crash() -> None:
    raise Crash


def at_forward(monkeypatch: Any, number: int, act: Callable[[], object]) -> None:
    """Call `act` before forward pass `number` of training; a step has three (128 tokens in micro-batches of 48)."""
    real, seen = CausalLM.loss, [0]

    def loss(self: Any, model: Any, batch: Any) -> Any:
        if model.training:
            seen[0] += 1
            if seen[0] == number:
                act()
        return real(self, model, batch)

    monkeypatch.setattr(CausalLM, "loss", loss)


def at_call(monkeypatch: Any, owner: Any, name: str, number: int, act: Callable[[], object]) -> None:
    """Call `act` before call `number` of `owner.name`."""
    real, seen = getattr(owner, name), [0]

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        seen[0] += 1
        if seen[0] == number:
            act()
        return real(*args, **kwargs)

    monkeypatch.setattr(owner, name, wrapped)


def stopped_at(monkeypatch: Any, step: int, *settings: str) -> None:
    """A run by the recipe of `tiny`, in `run`, that ended by a crash in this step."""
    with monkeypatch.context() as patch:
        at_forward(patch, 3 * step - 2, crash)
        with pytest.raises(Crash):
            pretrain.start(Path("tiny.yaml"), settings, Path("run"))


def rows(run: str) -> list[dict]:
    return [*read_jsonl(Path(run, "metrics.jsonl"))]


def events(run: str, kind: str) -> list[dict]:
    return [e for e in read_jsonl(Path(run, "events.jsonl")) if e["event"] == kind]
