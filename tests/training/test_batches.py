"""When batches are read: ahead of their step, or only once the step before them has moved the weights."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from threading import Semaphore
from typing import Any, ClassVar

import pytest

from lmkit.base.errors import DataError
from lmkit.objectives.causal_lm import CausalLM
from lmkit.training import loop, pretraining_run
from tests.training.stopping import rows, whenever

STEPS, ROWS = 12, 8  # of a run by the recipe of `tiny`, and of each of its batches


@dataclass(frozen=True)
class Toy(CausalLM):
    """Predicts the next token, and remembers the weights it saw when it prepared each example."""

    model: Any = None
    weights: list[float] = field(default_factory=list)
    prepared: Semaphore = field(default_factory=lambda: Semaphore(0))
    fails_after: int | None = None  # examples

    def prepare(self, example: dict, rng: Any) -> dict:
        if len(self.weights) == self.fails_after:
            raise DataError("this example cannot be read")
        self.weights.append(checksum(self.model))
        self.prepared.release()
        return example


@dataclass(frozen=True)
class ToyThatWrites(Toy):
    """Has to see the weights of now, as what learns from texts that the model writes."""

    read_ahead: ClassVar[bool] = False


def checksum(model: Any) -> float:
    return sum(float(p.detach().double().abs().sum()) for p in model.parameters())


def learning(monkeypatch: Any, kind: type[Toy], **settings: Any) -> list[Toy]:
    """Runs from now on learn by this objective, which is the only one in the list once training has begun."""
    real, made = loop.train, list[Toy]()

    def train(job: Any, *rest: Any) -> str:
        made.append(kind(model=job.model, **settings))
        job.work = replace(job.work, objective=made[0])
        return real(job, *rest)

    monkeypatch.setattr(loop, "train", train)
    return made


def test_what_may_not_be_read_ahead_is_prepared_by_the_weights_of_the_step_before(tiny, monkeypatch):
    made, after = learning(monkeypatch, ToyThatWrites), list[float]()
    whenever(monkeypatch, "lmkit.step.done", lambda: after.append(checksum(made[0].model)))
    assert pretraining_run.start(tiny, (), Path("run")) == 0
    seen = made[0].weights
    by_step = [set(seen[i : i + ROWS]) for i in range(0, len(seen), ROWS)]
    assert len(set(after)) == STEPS and by_step[1:] == [{weights} for weights in after[:-1]]
    assert len(by_step[0]) == 1 and not by_step[0] & set(after)


def test_all_else_is_read_while_the_step_before_is_computed(tiny, monkeypatch):
    """Every step waits, before its first pass, until the examples of the next one are prepared."""
    made, steps = learning(monkeypatch, Toy), list[int]()

    def wait() -> None:
        steps.append(ROWS if steps else 2 * ROWS)
        assert all(made[0].prepared.acquire(timeout=60) for _ in range(steps[-1]))

    whenever(monkeypatch, "lmkit.step", wait)
    assert pretraining_run.start(tiny, (), Path("run")) == 0
    assert len(steps) == STEPS and len(made[0].weights) == (STEPS + 1) * ROWS


def test_both_train_alike(tiny, monkeypatch):
    for kind in (Toy, ToyThatWrites):
        with monkeypatch.context() as patch:
            learning(patch, kind)
            assert pretraining_run.start(tiny, (), Path(kind.__name__)) == 0
    assert rows("Toy") == rows("ToyThatWrites")


@pytest.mark.parametrize("kind", [Toy, ToyThatWrites])
def test_an_error_in_reading_ends_the_step_it_belongs_to(tiny, monkeypatch, kind):
    learning(monkeypatch, kind, fails_after=4 * ROWS)
    with pytest.raises(DataError, match="this example cannot be read"):
        pretraining_run.start(tiny, (), Path("run"))
    assert [row["step"] for row in rows("run")] == [1, 2, 3, 4]
    assert "val_loss" in rows("run")[-1]  # what belongs to the step before is done
