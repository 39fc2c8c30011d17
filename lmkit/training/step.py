"""One optimizer step: reads a global batch, computes its gradient, and changes the weights unless a number is bad."""

import math
import sys
import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lmkit.base.display import waiting
from lmkit.base.order import OVERHEAD, batch_rows, by_length, nth_left, rng_for, rounded_up
from lmkit.base.units import show_seconds
from lmkit.objectives.batch import Batch
from lmkit.training import guard
from lmkit.training.distributed.world import World, gradient_norm, scale_gradients
from lmkit.training.job import Job
from lmkit.training.precision import autocast, keeping_casts

# Starting the kernels of one micro-batch takes as long as computing this many tokens. On a GPU it is an estimate; on a
# CPU in bf16 tokens are cheaper than in fp32, and oneDNN's kernels take longer to make.
GPU_OVERHEAD = 8192
BF16_OVERHEAD = 128
BF16_MULTIPLE = 16  # oneDNN makes kernels for every shape; rows of such lengths share them (docs/decisions.md)


@dataclass(frozen=True)
class Share:
    """The part of a global batch that this process reads, and the counts of the whole batch."""

    batches: list[Batch]  # micro-batches, each of rows of similar length
    counts: dict[str, int]  # how many things each loss term sums over; after `agreed` over all processes
    tokens: int  # tokens as `train.batch` counts them; after `agreed` of all processes
    passes: int  # passes through the model, equal on processes that shard it; those after `batches` count nothing

    def agreed(self, world: World) -> "Share":
        """Returns the share with the counts of all processes."""
        *counts, tokens = (int(n) for n in world.total([*self.counts.values(), self.tokens]))
        passes = world.most(self.passes) if world.sharded else self.passes
        return Share(self.batches, dict(zip(self.counts, counts, strict=True)), tokens, passes)


def read_share(job: Job, step: int) -> Share:
    """Reads the share of this process of the batch of step `step`, in micro-batches.

    Rows go to the processes in turn. The counts are still those of this process alone."""
    seed, objective, rows, world = job.recipe.train.seed, job.work.objective, job.work.rows, job.world
    number = nth_left(step, job.state.passed_over)
    places = batch_rows(number, job.batch_rows, len(rows), seed, job.work.mixture)
    own_places = places[world.data_rank :: world.data_size]
    examples = [objective.prepare(rows[i], rng_for(seed, epoch, i)) for epoch, i in own_places]
    overhead, multiple = passes_cost(job.device, job.precision, job.model.config.context)
    length = lambda example: rounded_up(objective.length(example), multiple)
    groups = by_length(examples, length, job.recipe.train.micro_batch, overhead)
    batches = [objective.collate(group, multiple) for group in groups]
    counts = {k: sum(b.counts[k] for b in batches) for k in batches[0].counts}
    return Share(batches, counts, sum(b.num_tokens for b in batches), len(batches))


def passes_cost(device: torch.device, precision: str, context: int) -> tuple[int, int]:
    """Returns the fixed cost of a pass, in tokens, and the number of which the lengths of its rows are multiples."""
    if device.type != "cpu":
        return GPU_OVERHEAD, 1
    if precision == "fp32":
        return OVERHEAD, 1
    return BF16_OVERHEAD, 1 if context % BF16_MULTIPLE else BF16_MULTIPLE  # no row becomes longer than the context


class TooMuchAtOnce(Exception):
    """Memory was not enough for forward and backward of a micro-batch. Weights and moments are unchanged."""


def train_step(
    job: Job, rate: float, share: Share, scaler: torch.amp.GradScaler, asked: bool = False
) -> tuple[dict[str, Any], bool]:
    """Takes an optimizer step. Returns the step's metrics, and whether any process was `asked` to stop.

    The metrics hold `skipped`, with the reason, where loss or gradient was not finite, or was a spike that is to be
    skipped; then no weight has changed. rate: the learning rate as a share of its peak. Raises TooMuchAtOnce."""
    _seed(job)
    sums, asked = _gradient(job, share, scaler, asked)
    for optimizer in job.optimizers:
        scaler.unscale_(optimizer)
    grads = [p.grad for p in job.model.parameters() if p.grad is not None]
    norm = gradient_norm(grads)
    # All numbers are fetched together, to wait for the device only once. Offloaded gradients are on another device.
    values = torch.stack([*sums.values(), norm.float().to(job.device)]).tolist()
    row = _row(dict(zip(sums, values, strict=False)), values[-1]) | {"tokens": share.tokens}
    can_fall = scaler.is_enabled() and not math.isfinite(values[-1]) and scaler.get_scale() >= 1
    reason = guard.judge(job.state, values[0], values[-1], job.recipe.train.spikes, can_fall)
    if reason not in guard.KEPT_STILL and job.recipe.train.clip is not None:
        scale_gradients(grads, job.recipe.train.clip, norm)
    for optimizer in job.optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group["peak_lr"] * rate
        if reason not in guard.KEPT_STILL:
            scaler.step(optimizer)
    job.parallel.clear_gradient()
    scaler.update()
    if reason not in guard.KEPT_STILL and job.average:
        job.average.update()
    return row | ({"skipped": reason} if reason in guard.KEPT_STILL else {"spike": True} if reason else {}), asked


def _seed(job: Job) -> None:
    """Seeds torch's generators, so that dropout follows from (seed, step, share of the data)."""
    seed = job.recipe.train.seed * 1_000_003 + job.state.step + job.world.data_rank * 7_368_787
    torch.default_generator.manual_seed(seed)
    if job.device.type == "cuda":
        torch.cuda.manual_seed(seed)
    elif job.device.type == "mps":
        torch.mps.manual_seed(seed)


def _gradient(job: Job, share: Share, scaler: torch.amp.GradScaler, asked: bool) -> tuple[dict[str, Tensor], bool]:
    """Computes the gradient of the mean loss over the whole batch, and leaves it on the parameters.

    Returns the metrics of the whole batch, `loss` first, each of shape (), and whether any process was asked to stop.
    Raises TooMuchAtOnce."""
    sums: dict[str, Tensor] = {}
    objective, world = job.work.objective, job.world
    try:
        job.parallel.start_gradient()
        with keeping_casts(job.precision, job.device):
            for i in range(share.passes):
                sys.audit("lmkit.pass", job.state.step + 1)
                weight, batch = float(i < len(share.batches)), share.batches[min(i, len(share.batches) - 1)]
                with job.parallel.accumulating(last=i == share.passes - 1):
                    with autocast(job.precision, job.device):
                        loss = job.parallel.loss(objective, batch.to(job.device))
                    # Dividing by the count of the whole batch makes the gradient independent of the micro-batches.
                    mean = lambda term, k, weight=weight: term * (weight / max(share.counts[k], 1))
                    total = torch.stack([mean(term, k) for k, term in loss.sums.items()]).sum()
                    # DDP and FSDP divide the sum of the gradients by the number of processes.
                    scaler.scale(total * world.data_size).backward()
                shown = {f"{k} loss": mean(v, k) for k, v in loss.nats.items()}
                shown |= {f"{k} accuracy": mean(v, k) for k, v in loss.hits.items()}
                for k, v in {"loss": total.detach(), **shown}.items():
                    sums[k] = sums[k] + v.float() if k in sums else v.float()
        job.parallel.finish_gradient()
    except (RuntimeError, MemoryError) as e:
        if not out_of_memory(e):
            raise
        raise TooMuchAtOnce(str(e)) from None
    if world.size == 1:
        return sums, asked
    added = world.total_tensor(torch.stack([*sums.values(), sums["loss"].new_tensor(float(asked))]))
    # With shared matrices the sum leaves some processes out.
    any_asked = world.most(int(asked)) if world.shares_matrices else added[-1].item()
    return dict(zip(sums, added.unbind(), strict=False)), bool(any_asked)


def out_of_memory(e: BaseException) -> bool:
    """Says whether torch or Python raised this error because memory is not enough."""
    messages = ("can't allocate memory", "not enough memory", "out of memory", "CUBLAS_STATUS_ALLOC_FAILED")
    return isinstance(e, torch.OutOfMemoryError | MemoryError) or any(s in str(e) for s in messages)


def _row(values: dict[str, float], norm: float) -> dict[str, Any]:
    """Returns a row of metrics.jsonl. got: the loss, and `TERM loss` and `TERM accuracy` for each of its terms."""
    main = next(k for k in values if " " in k).partition(" ")[0]  # the first term of the task: words, or labels
    row = {"loss": values["loss"]}
    if f"{main} accuracy" in values:
        row["accuracy"] = values[f"{main} accuracy"]
    row["grad_norm"] = norm
    # With several terms, or smoothed labels, the loss of the main term differs by more than rounding.
    if not math.isclose(values[f"{main} loss"], values["loss"], rel_tol=1e-5):
        row[f"{main}_loss"] = values[f"{main} loss"]
    row |= {k.replace(" ", "_"): v for k, v in values.items() if " " in k and not k.startswith(f"{main} ")}
    return {k: v if math.isfinite(v) else None for k, v in row.items()}  # JSON has no NaN


def probe_speed(job: Job, seconds: float, clock: Any) -> float:
    """Returns the speed of forward and backward in tokens per second, measured after one pass to warm up, or by that
    pass where it alone takes longer than `seconds`.

    Gradients are dropped, and no weight changes. clock: returns the time in seconds; seconds: how long to measure."""
    batch = read_share(job, 0).batches[0].to(job.device)
    job.model.train()
    best, deadline = math.inf, clock() + seconds
    for attempt in range(8):
        began = clock()
        with autocast(job.precision, job.device):
            torch.stack(list(job.parallel.loss(job.work.objective, batch).sums.values())).sum().backward()
        if job.device.type == "cuda":
            torch.cuda.synchronize()
        if attempt or clock() > deadline:
            best = min(best, clock() - began)
        if clock() > deadline:
            break
    job.model.zero_grad(set_to_none=True)
    return batch.num_tokens / best


def expected_time(job: Job, batch_tokens: float) -> list[str]:
    """Returns lines on how long the run would take, or how far it would come, by a measurement of some seconds."""
    with waiting("measuring the speed"):
        speed = probe_speed(job, 5.0, time.perf_counter)
    measured = f"time     {speed:,.0f} tokens/s measured on a micro-batch → "
    if job.horizon.steps is not None:
        seconds = job.horizon.steps * batch_tokens / speed
        what = f"{show_seconds(seconds)} for {job.horizon.steps:,} steps"
    else:
        steps = (job.horizon.seconds or 0.0) * speed / batch_tokens
        what = f"about {steps:,.0f} steps in {job.recipe.train.budget}"
    return [measured + what, "Nothing was started. --print-recipe shows every key."]
