"""A bad number never reaches the weights, and a spike does not go unseen.

A spike is a loss or gradient norm six standard deviations above the mean of the last 128 steps: the rule of OLMo-core's
SkipStepOptimizer.
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
KEPT_STILL = ("loss scale", "not finite", "skipped spike", "rolled back")  # steps in which nothing moves


class Rollback(Exception):
    """Go back to the last checkpoint, and pass over these batches from there on."""

    def __init__(self, step: int, batches: list[int]):
        super().__init__(step)
        self.step, self.batches = step, batches


def judge(state: State, loss: float, norm: float, policy: str, can_fall: bool) -> str | None:
    """What is wrong with a step: `loss scale` (fp16: too high, and lowered now, if it `can_fall`), `not finite`,
    `skipped spike` or `rolled back` by `policy`, `spike` where it only is to be told; None: nothing."""
    if not (math.isfinite(loss) and math.isfinite(norm)):
        return "loss scale" if can_fall and math.isfinite(loss) else "not finite"
    spike = _far_above(state.losses, loss) or _far_above(state.norms, norm)
    for values, value in ((state.losses, loss), (state.norms, norm)):
        values.append(value)
        del values[:-WINDOW]
    return {"log": "spike", "skip": "skipped spike", "rollback": "rolled back"}[policy] if spike else None


def _far_above(values: list[float], value: float) -> bool:
    return len(values) >= ENOUGH and value > fmean(values) + SIGMAS * stdev(values)


def count(job: Job, run: Run, row: dict[str, Any], batches: list[Batch]) -> None:
    """Record what `judge` found. Raises Rollback where the recipe says so, Diverged after three steps in a row without
    a finite loss, or after three rollbacks."""
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


def check_finite(job: Job, run: Run) -> None:
    """Raises Diverged where a weight or a moment is not finite: an update can overflow though loss and gradient do not.
    All processes of a run call this together."""
    names: dict[Tensor, str] = {p: n for n, p in job.model.named_parameters()}
    tensors = {n: local(p.detach()) for p, n in names.items()}
    tensors |= {n: local(t) for n, t in state_tensors(job.optimizers, names).items()}
    # a sum is fast, and finite only where all it adds up is; finite numbers may overflow in it
    bad = [n for n, t in tensors.items() if not math.isfinite(t.sum()) and not t.isfinite().all()]
    if job.world.most(len(bad)):
        where = f"{bad[0]} is" if bad else "a weight of another process is"
        give_up(job, run, f"{where} not finite after step {job.state.step}; this step is not saved")


def _roll_back(job: Job, run: Run, step: int, batches: int) -> None:
    if job.state.rollbacks == ROLLBACKS:
        give_up(job, run, f"it was rolled back {ROLLBACKS} times, and step {step} is bad again")
    raise Rollback(step, [job.batch_of(s) for s in range(step - batches, step)])


def give_up(job: Job, run: Run, why: str) -> NoReturn:
    """Raises Diverged."""
    newest = run.steps()
    kept = f"kept: {newest[-1]}" if newest else "no checkpoint had been written yet"
    raise Diverged(
        f"training diverged: {why}\n  {kept}\n"
        f"  the documents of those batches stand in {run.path / 'events.jsonl'}\n"
        f"  → a lower optimizer.lr (now {job.recipe.optimizer.lr:.3g}) or train.clip=1 usually helps"
    )
