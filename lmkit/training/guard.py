"""Keeps numbers that are not finite out of the weights, and records spikes.

A spike is a loss or gradient norm that is six standard deviations above the mean of the last 128 steps, as in
OLMo-core's SkipStepOptimizer.
"""

import math
import sys
from statistics import fmean, stdev
from typing import Any, NoReturn

from torch import Tensor

from lmkit.base.errors import Diverged
from lmkit.base.runs import Run
from lmkit.model.sharding import local
from lmkit.objectives.batch import Batch
from lmkit.training.checkpoints import State
from lmkit.training.job import Job
from lmkit.training.optimizers.build import state_tensors

WINDOW, ENOUGH, SIGMAS = 128, 32, 6.0
SKIPS_IN_A_ROW = 3
ROLLBACKS = 3
KEPT_STILL = ("loss scale", "not finite", "skipped spike", "rolled back")  # reasons for which no weight changes


class Rollback(Exception):
    """Asks to go back to the last checkpoint, and to leave out these batches from there on."""

    def __init__(self, step: int, batches: list[int]):
        super().__init__(step)
        self.step, self.batches = step, batches


def judge(state: State, loss: float, norm: float, policy: str, can_fall: bool) -> str | None:
    """Returns what is wrong with a step, or None.

    `loss scale`: the scale of fp16 is too high; the scaler lowers it now, if it `can_fall`. `not finite`: loss or
    gradient are not finite. For a spike, `policy` decides: `skipped spike`, `rolled back`, or `spike` where the step
    counts and the spike is only recorded."""
    if not (math.isfinite(loss) and math.isfinite(norm)):
        return "loss scale" if can_fall and math.isfinite(loss) else "not finite"
    spike = _far_above(state.losses, loss) or _far_above(state.norms, norm)
    for values, value in ((state.losses, loss), (state.norms, norm)):
        values.append(value)
        del values[:-WINDOW]
    return {"log": "spike", "skip": "skipped spike", "rollback": "rolled back"}[policy] if spike else None


def _far_above(values: list[float], value: float) -> bool:
    return len(values) >= ENOUGH and value > fmean(values) + SIGMAS * stdev(values)


def count_bad_step(job: Job, run: Run, row: dict[str, Any], batches: list[Batch]) -> None:
    """Records what `judge` found. row: the step's row of metrics; batches: those of this process in the step.

    Raises Rollback where the recipe says so, and Diverged after three steps in a row without a finite loss, or after
    three rollbacks."""
    sys.audit("lmkit.step.done", row["step"])
    state, policy = job.state, job.recipe.train.spikes
    reason = row.get("skipped") or ("spike" if "spike" in row else None)
    if reason == "loss scale":
        return
    state.skipped_in_a_row = state.skipped_in_a_row + 1 if reason == "not finite" else 0
    if reason is None:
        return
    documents = sorted({d for b in batches for d in b.documents})
    kind = "spike" if reason == "spike" else "skipped"
    run.event(kind, reason=reason, step=row["step"], loss=row["loss"], grad_norm=row["grad_norm"], documents=documents)
    state.spikes += reason != "not finite"
    if reason == "spike":
        return
    state.skipped += 1
    if reason == "rolled back":
        _roll_back(job, run, row["step"], 1)
    if state.skipped_in_a_row < SKIPS_IN_A_ROW:
        return
    if policy == "rollback":
        _roll_back(job, run, row["step"], SKIPS_IN_A_ROW)
    give_up(job, run, f"loss or gradient was not finite in {SKIPS_IN_A_ROW} steps in a row, up to {row['step']}")


def check_weights(job: Job, run: Run) -> None:
    """Raises Diverged where a weight or a moment is not finite.

    An update can overflow even if loss and gradient are finite. All processes of a run must call this together."""
    names: dict[Tensor, str] = {p: n for n, p in job.model.named_parameters()}
    tensors = {n: local(p.detach()) for p, n in names.items()}
    tensors |= {n: local(t) for n, t in state_tensors(job.optimizers, names).items()}
    # A sum is fast to compute. If it is finite, so are all its numbers; if not, finite numbers may have overflowed.
    bad = [n for n, t in tensors.items() if not math.isfinite(t.sum()) and not t.isfinite().all()]
    if job.world.most(len(bad)):
        where = f"{bad[0]} is" if bad else "a weight of another process is"
        give_up(job, run, f"{where} not finite after step {job.state.step}; this step is not saved")


def _roll_back(job: Job, run: Run, step: int, batches: int) -> None:
    if job.state.rollbacks == ROLLBACKS:
        give_up(job, run, f"it was rolled back {ROLLBACKS} times, and step {step} is bad again")
    raise Rollback(step, [job.batch_of(s) for s in range(step - batches, step)])


def give_up(job: Job, run: Run, why: str) -> NoReturn:
    """Raises Diverged with the reason `why`, and with advice."""
    steps = run.steps()
    checkpoint = f"kept: {steps[-1]}" if steps else "no checkpoint had been written yet"
    raise Diverged(
        f"training diverged: {why}\n  {checkpoint}\n"
        f"  the documents of those batches stand in {run.path / 'events.jsonl'}\n"
        f"  → a lower optimizer.lr (now {job.recipe.optimizer.lr:.3g}) or train.clip=1 usually helps"
    )
