"""Runs that are stopped at a chosen place, and compared with the one that nothing happened to."""

import sys
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from lmkit.base.runs import read_jsonl
from lmkit.training import pretraining_run

LAST = "checkpoints/step-00000012"  # of a run by the recipe of `tiny`
FILES_OF_A_SAVE = 5  # by the recipe of `tiny`: raw weights, model, state, moments, recipe
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


_actions: list[Callable[[str], object]] = []  # each is given the names of the moments that `sys.audit` tells


def _heard(event: str, _: tuple) -> None:
    if event.startswith("lmkit."):
        for act in tuple(_actions):
            act(event)


sys.addaudithook(_heard)  # one for all tests: a hook cannot be taken away


def whenever(monkeypatch: Any, event: str, act: Callable[[], object]) -> None:
    """Call `act` at every such moment of a run, until `monkeypatch` is undone."""
    monkeypatch.setattr(sys.modules[__name__], "_actions", [*_actions, lambda name: act() if name == event else None])


def at(monkeypatch: Any, event: str, number: int, act: Callable[[], object]) -> None:
    """Call `act` when this moment of a run comes for time `number`."""
    times = count(1)
    whenever(monkeypatch, event, lambda: act() if next(times) == number else None)


def at_pass(monkeypatch: Any, number: int, act: Callable[[], object]) -> None:
    """Call `act` before pass `number` of training; a step has three (128 tokens in micro-batches of 48)."""
    at(monkeypatch, "lmkit.pass", number, act)


def at_file(monkeypatch: Any, save: int, act: Callable[[], object]) -> None:
    """Call `act` in the middle of a save: the model is written, and three files and the manifest are not."""
    at(monkeypatch, "lmkit.save.file", FILES_OF_A_SAVE * (save - 1) + 3, act)


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
        at_pass(patch, 3 * step - 2, crash)
        with pytest.raises(Crash):
            pretraining_run.start(Path("tiny.yaml"), settings, Path("run"))


def rows(run: str) -> list[dict]:
    return [*read_jsonl(Path(run, "metrics.jsonl"))]


def events(run: str, kind: str) -> list[dict]:
    return [e for e in read_jsonl(Path(run, "events.jsonl")) if e["event"] == kind]
