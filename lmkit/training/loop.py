"""The training loop. A run is a pure function of (recipe, step): weights, moments and `step` are all that is saved."""

import json
import math
import os
import time
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor

from lmkit.batch import Batch
from lmkit.display import Meter
from lmkit.errors import Diverged
from lmkit.order import OVERHEAD, batch_rows, by_length, rng_for
from lmkit.runs import Run
from lmkit.training import checkpoints
from lmkit.training.job import Job
from lmkit.training.precision import autocast
from lmkit.training.schedules import multiplier
from lmkit.training.signals import StopFlag
from lmkit.units import show_count, split_quantity

SKIPS_IN_A_ROW = 3
GPU_OVERHEAD = 8192  # tokens' worth of time it takes to start the kernels of one micro-batch; an estimate


def micro_batches(job: Job, step: int) -> list[Batch]:
    """Global batch `step`, cut into micro-batches of rows of like length."""
    seed, task, rows = job.recipe.train.seed, job.work.task, job.work.rows
    places = batch_rows(step, job.batch_rows, len(rows), seed)
    examples = [task.prepare(rows[i], rng_for(seed, epoch, i)) for epoch, i in places]
    overhead = OVERHEAD if job.device.type == "cpu" else GPU_OVERHEAD
    return [task.collate(group) for group in by_length(examples, task.length, job.recipe.train.micro_batch, overhead)]


def train_step(job: Job, step: int, rate: float, batches: list[Batch], scaler: torch.amp.GradScaler) -> dict[str, Any]:
    """One optimizer step. Returns its metrics; `skipped` where loss or gradient was not finite: then nothing moved."""
    torch.default_generator.manual_seed(job.recipe.train.seed * 1_000_003 + step)  # dropout follows from (seed, step)
    if job.device.type == "cuda":
        torch.cuda.manual_seed(job.recipe.train.seed * 1_000_003 + step)
    elif job.device.type == "mps":
        torch.mps.manual_seed(job.recipe.train.seed * 1_000_003 + step)
    counts = {k: sum(b.counts[k] for b in batches) for k in batches[0].counts}
    sums: dict[str, Tensor] = {}
    for batch in batches:
        with autocast(job.precision, job.device):
            loss = job.work.task.loss(job.model, batch.to(job.device))
        # one division by the count of the whole batch: the size of micro-batches cannot change the gradient
        terms = {k: term / max(counts[k], 1) for k, term in loss.sums.items()}
        total = torch.stack(list(terms.values())).sum()
        scaler.scale(total).backward()
        shown = {f"{k} loss": v / max(counts[k], 1) for k, v in loss.nats.items()}
        shown |= {f"{k} accuracy": v / max(counts[k], 1) for k, v in loss.hits.items()}
        for k, v in {"loss": total.detach(), **shown}.items():
            sums[k] = sums[k] + v if k in sums else v
    for optimizer in job.optimizers:
        scaler.unscale_(optimizer)
    grads = [p.grad for p in job.model.parameters() if p.grad is not None]
    norm = torch.nn.utils.get_total_norm(grads, foreach=True)
    # one wait for the device
    *values, gradient_norm = torch.stack([*(v.float() for v in sums.values()), norm.float()]).tolist()
    got = dict(zip(sums, values, strict=True))
    finite = math.isfinite(got["loss"]) and math.isfinite(gradient_norm)
    if finite and job.recipe.train.clip is not None:
        torch.nn.utils.clip_grads_with_norm_(job.model.parameters(), job.recipe.train.clip, norm, foreach=True)
    for optimizer in job.optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group["peak_lr"] * rate
        if finite:
            scaler.step(optimizer)
        optimizer.zero_grad(set_to_none=True)
    scaler.update()
    if finite and job.average:
        job.average.update()
    row = _row(got, gradient_norm) | {"tokens": sum(b.num_tokens for b in batches)}
    overflow = math.isfinite(got["loss"]) and scaler.is_enabled()
    return row if finite else row | {"skipped": "loss scale" if overflow else "not finite"}


def _row(got: dict[str, float], gradient_norm: float) -> dict[str, Any]:
    """A row of metrics.jsonl. got: the loss, and `TERM loss` and `TERM accuracy` for each of its terms."""
    main = next(k for k in got if " " in k).partition(" ")[0]  # a task's first term: words, or what it labels
    row = {"loss": got["loss"]}
    if f"{main} accuracy" in got:
        row["accuracy"] = got[f"{main} accuracy"]
    row["grad_norm"] = gradient_norm
    if got[f"{main} loss"] != got["loss"]:  # other terms, or smoothed labels: what one word costs, for itself
        row[f"{main}_loss"] = got[f"{main} loss"]
    row |= {k.replace(" ", "_"): v for k, v in got.items() if " " in k and not k.startswith(f"{main} ")}
    return {k: v if math.isfinite(v) else None for k, v in row.items()}  # JSON has no NaN


def train(job: Job, run: Run) -> str:
    """Train to the horizon, or until asked to stop. Returns `done`, or the name of the signal that stopped it.

    Raises Diverged after three steps in a row without a finite loss; the last good checkpoint stays."""
    state, recipe = job.state, job.recipe
    scaler = torch.amp.GradScaler(job.device.type, enabled=job.precision == "fp16")
    if state.scaler:
        scaler.load_state_dict(state.scaler)
    job.model.train()
    rhythm = Rhythm(job)
    with StopFlag() as stop, Meter("train", 1.0) as meter, ThreadPoolExecutor(1) as ahead:
        metrics, timing = run.open_log("metrics.jsonl"), run.open_log("timing.jsonl")
        upcoming: Future[list[Batch]] = ahead.submit(micro_batches, job, state.step)
        finished = False
        while not finished and stop.asked is None:
            began, tokens_before = time.perf_counter(), state.tokens
            batches, upcoming = upcoming.result(), ahead.submit(micro_batches, job, state.step + 1)
            rate = multiplier(recipe.schedule, state.step, min(rhythm.progress(), 1 - 1e-9))
            row = train_step(job, state.step, rate, batches, scaler)
            state.step, state.tokens = state.step + 1, state.tokens + row["tokens"]
            lr = rate * job.optimizers[0].param_groups[0]["peak_lr"]
            row = {"step": state.step, "lr": lr} | row | {"tokens": state.tokens}
            if "skipped" in row:
                _count_skip(job, run, row, batches)
            else:
                state.skipped_in_a_row = 0
            state.scaler = scaler.state_dict() if scaler.is_enabled() else {}
            timing.write(json.dumps({"step": state.step, "seconds": round(time.perf_counter() - began, 4)}) + "\n")
            finished = rhythm.tick() >= 1
            _show(meter, row, rhythm.now, (row["tokens"] - tokens_before) / (time.perf_counter() - began))
            if finished or rhythm.due(recipe.evaluate.every):
                row |= evaluate(job, meter)
                if job.patience and state.evaluations_since_best >= job.patience:
                    meter.line(f"no better {job.metric} in {job.patience} evaluations: stopping early")
                    finished = True
            metrics.write(json.dumps(row) + "\n")
            best = state.best is not None and state.best["step"] == state.step
            if finished or stop.asked or best or rhythm.due(recipe.checkpoint.every):
                os.fsync(metrics.fileno())  # the rows of a checkpoint's steps are as durable as the checkpoint
                save(job, run, rhythm, best)
        metrics.close()
        timing.close()
    return "done" if finished else str(stop.asked)


def finished(job: Job) -> bool:
    """Whether a run taken up again had come to its end."""
    return Rhythm(job).now >= 1 or bool(job.patience and job.state.evaluations_since_best >= job.patience)


class Rhythm:
    """The clock of a run: how much is done, and what is due."""

    def __init__(self, job: Job):
        self.state, self.horizon = job.state, job.horizon
        self.started = time.monotonic() - job.state.elapsed
        self.before = self.now = self.progress()

    def progress(self) -> float:
        """Share of the horizon done. A time budget keeps room for the last evaluation and save."""
        self.state.elapsed = time.monotonic() - self.started
        if self.horizon.seconds is None:
            return self.horizon.progress(self.state.step, 0.0)
        usable = max(self.horizon.seconds - self.state.reserve, 0.5 * self.horizon.seconds)
        return min(1.0, self.state.elapsed / usable)

    def tick(self) -> float:
        """A step was taken. Progress is read once, so that all that is due is judged alike."""
        self.before, self.now = self.now, self.progress()
        return self.now

    def due(self, every: str) -> bool:
        """Whether the step just taken passed a multiple of `every`."""
        number, unit = split_quantity(every)
        if not number:
            return False
        if unit != "%":
            return self.state.step % int(number) == 0
        return math.floor(self.now * 100 / number + 1e-9) > math.floor(self.before * 100 / number + 1e-9)


def _count_skip(job: Job, run: Run, row: dict[str, Any], batches: list[Batch]) -> None:
    state = job.state
    if row["skipped"] == "loss scale":  # fp16: the loss scale was too high and has been lowered; no fault of the data
        return
    state.skipped, state.skipped_in_a_row = state.skipped + 1, state.skipped_in_a_row + 1
    documents = sorted({d for b in batches for d in b.documents})
    run.event("skipped", step=row["step"], loss=row["loss"], grad_norm=row["grad_norm"], documents=documents)
    if state.skipped_in_a_row < SKIPS_IN_A_ROW:
        return
    newest = run.steps()
    kept = f"kept: {newest[-1]}" if newest else "no checkpoint had been written yet"
    raise Diverged(
        f"training diverged: loss or gradient was not finite in {SKIPS_IN_A_ROW} steps in a row, up to {row['step']}\n"
        f"  {kept}\n  the documents of those batches stand in {run.path / 'events.jsonl'}\n"
        f"  → a lower optimizer.lr (now {job.recipe.optimizer.lr:.3g}) or train.clip=1 usually helps"
    )


def evaluate(job: Job, meter: Meter) -> dict[str, float]:
    """Validation scores of the model to use (its average, if there is one), shown with a text it writes."""
    if not len(job.work.held_out):
        return {}
    began = time.monotonic()
    if job.average:
        job.average.swap()
    scores = job.score()
    text = job.sample() if job.sample else ""
    if job.average:
        job.average.swap()
    best = job.better(scores)
    job.state.evaluations_since_best = 0 if best else job.state.evaluations_since_best + 1
    if best:
        job.state.best = {"step": job.state.step} | scores
    meter.line(
        f"eval step {job.state.step} tokens {show_count(job.state.tokens)}"
        + "".join(f" {k.removeprefix('val_') if k != 'val_loss' else k} {v:.4f}" for k, v in scores.items())
        + (" ★" if best else "")
    )
    if text:
        meter.line(f"  » {text}")
    job.state.eval_seconds = 1.3 * (time.monotonic() - began)
    return scores


def save(job: Job, run: Run, rhythm: Rhythm, best: bool) -> None:
    """Write a checkpoint. Raises StorageError; the previous checkpoint stays."""
    began = time.monotonic()
    rhythm.progress()  # brings `elapsed` up to date
    write = lambda folder: checkpoints.write(
        folder, job.model, job.optimizers, job.state, job.average, job.tokenizer, job.special, job.adapter
    )
    run.save(job.state.step, write, job.recipe.checkpoint.keep, best)
    run.status("running", **job.progress)
    job.state.reserve = max(job.state.reserve, job.state.eval_seconds + 1.3 * (time.monotonic() - began))


def _show(meter: Meter, row: dict[str, Any], progress: float, speed: float) -> None:
    loss = "not finite" if row["loss"] is None else f"{row['loss']:.4f}"
    tokens = show_count(row["tokens"])
    meter.update(progress, f"step {row['step']} tokens {tokens} loss {loss} tok/s {speed:,.0f}")


def probe_speed(job: Job, seconds: float = 5.0) -> float:
    """Tokens a second of forward and backward, after one to warm up. Gradients are dropped; nothing moves."""
    batch = micro_batches(job, 0)[0].to(job.device)
    job.model.train()
    best = math.inf
    deadline = time.monotonic() + seconds
    for attempt in range(8):
        began = time.perf_counter()
        with autocast(job.precision, job.device):
            torch.stack(list(job.work.task.loss(job.model, batch).sums.values())).sum().backward()
        if job.device.type == "cuda":
            torch.cuda.synchronize()
        if attempt:
            best = min(best, time.perf_counter() - began)
        if attempt >= 2 and time.monotonic() > deadline:
            break
    job.model.zero_grad(set_to_none=True)
    return batch.num_tokens / best
