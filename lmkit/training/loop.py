"""The training loop. A run depends only on (recipe, step), so a checkpoint needs only weights, moments and the step.

`sys.audit` names the moments at which tests stop a run (docs/architecture.md); nothing else listens to it."""

import json
import math
import os
import sys
from contextlib import nullcontext
from typing import IO, Any

import torch

from lmkit.base.display import Meter
from lmkit.base.errors import OutOfMemory
from lmkit.base.runs import Run
from lmkit.training import guard, rhythm, step
from lmkit.training.batches import ShareSource
from lmkit.training.distributed.watchdog import Watchdog
from lmkit.training.distributed.world import World
from lmkit.training.job import Job
from lmkit.training.progress import TrainingMeter
from lmkit.training.rhythm import Rhythm
from lmkit.training.saving import Saver
from lmkit.training.schedules import multiplier
from lmkit.training.signals import StopFlag
from lmkit.training.step import Share
from lmkit.training.trackers import Tracker

LESS = "train.recompute=true, train.precision=bf16 on a GPU, or a smaller model"


def train(job: Job, run: Run, stop: StopFlag) -> str:
    """Trains to the horizon, or until asked to stop. Returns `done`, or the name of the signal that stopped it.

    Raises Diverged after three steps in a row without a finite loss (the last good checkpoint stays), or Rollback where
    the recipe says so. Raises OutOfMemory where memory is not enough even for smaller micro-batches, and StorageError
    or OSError where checkpoints or logs cannot be written."""
    state, recipe, world = job.state, job.recipe, job.world
    scaler = _loss_scaler(job)
    job.model.train()
    pace = Rhythm(job)
    with (
        TrainingMeter(job) as meter, ShareSource(job) as source, Saver(job, run) as saver,
        Watchdog(world, recipe.parallel.patience, run.path) as watchdog,
        run.open_log("metrics.jsonl") as metrics, run.open_log("timing.jsonl") as timing,
        run.open_log("samples.jsonl") as samples, Tracker(job, run) as tracker,
    ):  # fmt: skip
        finished = asked = False
        while not (finished or asked):
            # a step
            began = rhythm.clock()
            share = source.share(state.step)
            with watchdog.waiting():
                share = share.agreed(world)
            row, asked = _step(job, source, share, pace.now, scaler, stop.asked is not None)
            run.check()
            pace.look()  # the time of a step counts even if the step is rolled back
            guard.count_bad_step(job, run, row, share.batches)
            state.scaler = scaler.state_dict() if scaler.is_enabled() else {}
            _write(timing, {"step": state.step, "seconds": round(rhythm.clock() - began, 4)})
            finished = pace.tick() >= 1
            meter.show(row, pace, share.tokens / max(rhythm.clock() - began, 1e-9))

            # an evaluation
            if finished or pace.evaluation_due():
                with watchdog.at_work(), pace.beside():
                    scores, text = evaluate(job, meter)
                row |= scores
                if text:
                    _write(samples, {"step": state.step, "sample": text})
                    tracker.tell(state.step, text)
                finished = _out_of_patience(job, meter) or finished
            state.finished = recipe.train.budget if finished else ""
            _write(metrics, row)
            tracker.log(row)
            for listen in job.listeners:
                listen(row)

            # a checkpoint
            best = state.best is not None and state.best["step"] == state.step
            asked = asked or _asked_alone(world, stop)
            if finished or asked or best or pace.checkpoint_due():
                _make_durable(metrics)  # the rows of a checkpoint's steps are as durable as the checkpoint
                pace.look()
                with watchdog.at_work(), pace.saving():
                    saver.save(best, last=finished or asked)
                    if finished or asked:
                        world.wait()  # while rank 0 writes: a process that ended would look as if it had died
                asked = asked or (_asked_alone(world, stop) and not saver.failures)  # a signal came while saving
            watchdog.step = state.step
    return "done" if finished else stop.asked or "a signal to another process"


def _loss_scaler(job: Job) -> torch.amp.GradScaler:
    """Returns the loss scaler of fp16, in the state in which the run saved it; for other precisions it does nothing."""
    scaler = torch.amp.GradScaler(job.device.type, enabled=job.precision == "fp16")
    if job.state.scaler:
        scaler.load_state_dict(job.state.scaler)
    return scaler


def _asked_alone(world: World, stop: StopFlag) -> bool:
    """Says whether this process, being the only one, was asked to stop.

    Several processes must stop together, or the others would wait for this one; they agree on it in each step."""
    return world.size == 1 and stop.asked is not None


def _out_of_patience(job: Job, meter: Meter) -> bool:
    """Says whether too many evaluations in a row found no better model, and shows a line if so."""
    over = bool(job.patience and job.state.evaluations_since_best >= job.patience)
    if over:
        meter.line(f"no better {job.metric} in {job.patience} evaluations: stopping early")
    return over


def _write(log: IO[str], row: dict[str, Any]) -> None:
    log.write(json.dumps(row) + "\n")


def _make_durable(log: IO[str]) -> None:
    log.flush()
    if log.name != os.devnull:
        os.fsync(log.fileno())


def _step(
    job: Job, source: ShareSource, share: Share, progress: float, scaler: torch.amp.GradScaler, asked: bool
) -> tuple[dict[str, Any], bool]:
    """Takes a step and counts it. Returns its row of metrics.jsonl, and whether any process was `asked` to stop.

    progress: share of the horizon done. Raises OutOfMemory."""
    rate = multiplier(job.recipe.schedule, job.state.step, min(progress, 1 - 1e-9))
    values, asked = _in_memory(job, source, share, rate, scaler, asked)
    job.state.step, job.state.tokens = job.state.step + 1, job.state.tokens + values["tokens"]
    lr = rate * job.optimizers[0].param_groups[0]["peak_lr"]
    return {"step": job.state.step, "lr": lr} | values | {"tokens": job.state.tokens}, asked


def _in_memory(
    job: Job, source: ShareSource, share: Share, rate: float, scaler: torch.amp.GradScaler, asked: bool
) -> tuple[dict[str, Any], bool]:
    """Returns what `train_step` returns. Where memory is not enough, it halves the micro-batches and tries again.

    The gradient is the same, in more parts. Raises OutOfMemory where that does not help."""
    sys.audit("lmkit.step", job.state.step + 1)
    while True:
        try:
            return step.train_step(job, rate, share, scaler, asked)
        except step.TooMuchAtOnce as e:
            job.model.zero_grad(set_to_none=True)
            longest = max(b.tokens.size(1) for b in share.batches)
            alone = max(b.tokens.size(0) for b in share.batches) == 1
            if job.world.size > 1 or alone or not job.halve_micro_batch(f"out of memory at step {job.state.step + 1}"):
                half = job.recipe.train.micro_batch // 2
                smaller = "a smaller model.context" if alone else f"train.micro_batch={half}"
                raise OutOfMemory(
                    f"memory is not enough for step {job.state.step + 1}, of rows of {longest} tokens: {e}\n"
                    f"  → {smaller}, {LESS}"
                ) from None
            again = source.again(job.state.step)
            share = Share(again.batches, share.counts, share.tokens, again.passes)
        except (RuntimeError, MemoryError) as e:
            if not step.out_of_memory(e):
                raise
            raise OutOfMemory(
                f"memory is not enough for the optimizer at step {job.state.step + 1}, whose weights may have moved in"
                f" part: {e}\n  → optimizer.name=sgd or adafactor keep less of each weight; or {LESS}"
            ) from None


def is_over(job: Job) -> bool:
    """Says whether a run that is resumed had come to its end.

    With a time budget the clock alone does not say so: the last evaluation may have taken less time than was kept free
    for it."""
    return (
        (job.state.finished != "" and job.state.finished == job.recipe.train.budget)
        or Rhythm(job).now >= 1
        or bool(job.patience and job.state.evaluations_since_best >= job.patience)
    )


def evaluate(job: Job, meter: TrainingMeter) -> tuple[dict[str, float], str]:
    """Returns validation scores of the model, or of its average if there is one, and what it writes, and shows both.

    It also updates the best scores in the job's state. Without held-out rows it returns no scores."""
    if not len(job.work.held_out):
        return {}, ""
    began = rhythm.clock()
    sys.audit("lmkit.evaluate", job.state.step)
    with job.average.as_model() if job.average else nullcontext():
        scores = _score(job)
        text = _sample(job) if job.sample else ""
    best = job.better(scores)
    if math.isfinite(scores.get(job.metric, math.nan)):
        job.state.top = job.top_score(scores[job.metric])
    job.state.evaluations_since_best = 0 if best else job.state.evaluations_since_best + 1
    if best:
        job.state.best = {"step": job.state.step} | scores
    meter.evaluated(scores, text, best)
    job.state.eval_seconds = rhythm.clock() - began
    return scores, text


def _score(job: Job) -> dict[str, float]:
    """Returns the scores of `job.score`. Where memory is not enough, it halves the micro-batches and tries again.

    Raises OutOfMemory where that does not help."""
    while True:
        try:
            return job.score()
        except (RuntimeError, MemoryError) as e:
            where = f"out of memory in the evaluation of step {job.state.step}"
            if not step.out_of_memory(e):
                raise
            if job.world.size > 1 or not job.halve_micro_batch(where):
                raise OutOfMemory(f"{where}: {e}\n  → {LESS}") from None


def _sample(job: Job) -> str:
    try:
        return job.sample() if job.sample else ""
    except (RuntimeError, MemoryError) as e:
        if not step.out_of_memory(e) or job.world.size > 1:
            raise
        return f"(no sample: {e})"
