"""Everything a training run needs, built from a resolved recipe and the tokens it trains on."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch.optim import Optimizer

from lmkit.architecture.model_config import ModelConfig
from lmkit.base.display import note
from lmkit.base.errors import DataError, UserError
from lmkit.base.order import nth_left
from lmkit.base.units import show_bytes, show_count
from lmkit.data.tokens.store import TokenStore
from lmkit.generation.engine import sample_text
from lmkit.generation.filling import sample_fill
from lmkit.generation.prompts import masked_ids, prompt_ids, source_ids
from lmkit.model.initial import init_weights
from lmkit.model.loss import CHUNK
from lmkit.model.transformer import Transformer
from lmkit.objectives.build import Work, build_objective
from lmkit.plan.memory import activation_bytes, moment_bytes, parameters
from lmkit.recipe.finetuning import FinetuneRecipe
from lmkit.recipe.optimizers import OPTIMIZERS
from lmkit.recipe.pretraining import ModelSection, Recipe
from lmkit.text.tokenizer import Tokenizer
from lmkit.training.checkpoints import Adapter, Average, State
from lmkit.training.distributed.world import ALONE, Parallel, World
from lmkit.training.optimizers.build import build_optimizers
from lmkit.training.precision import (
    BF16_REPAYS_FROM,
    autocast,
    choose_compile,
    choose_device,
    choose_precision,
    multiplies_bf16,
)
from lmkit.training.schedules import Horizon, horizon
from lmkit.training.validation import validate

Listeners = Sequence[Callable[[dict[str, Any]], None]]  # each is given every row of metrics.jsonl
CPU_MICRO_TOKENS = 4096  # measured on two cores: larger is not faster, and memory grows with it


@dataclass
class Job:
    """Everything a run needs, built by `build_pretraining` or `training.finetune`."""

    recipe: Recipe | FinetuneRecipe
    model: Transformer
    parallel: Parallel  # the model as all processes of the run train it together
    work: Work  # the objective, its rows and the held-out rows
    horizon: Horizon
    batch_rows: int  # rows per optimizer step
    device: torch.device
    precision: str
    optimizers: list[Optimizer]
    average: Average | None
    tokenizer: Tokenizer
    tokenizer_folder: Path  # the folder whose tokenizer files are copied into every checkpoint
    special: dict[str, Any]  # ids of control tokens for config.json: bos_token_id, eos_token_id, ...
    score: Callable[[], dict[str, float]]  # returns scores on held-out rows with the weights as they are now
    metric: str = "val_loss"  # the score that decides which checkpoint is best
    higher: bool = False  # whether a higher `metric` is better
    share_of: int = 0  # `metric` is a share of so many rows, so it has a standard error; 0: another kind of score
    scored_rows: int = 0  # the number of rows that `score` reads
    closing: float = 0.0  # the time of scoring after the last step, in evaluations
    patience: int = 0  # stop after this many evaluations without a better one; 0: never
    sample: Callable[[], str] | None = None  # returns a text that the model writes with its weights as they are now
    adapter: Adapter | None = None  # the adapter that is trained instead of all weights
    state: State = field(default_factory=State)
    world: World = ALONE
    listeners: Listeners = ()

    def batch_of(self, step: int) -> int:
        """Returns the number of the global batch that step `step` (from 0) reads."""
        return nth_left(step, self.state.passed_over)

    def use_micro_batch(self, tokens: int) -> None:
        train = self.recipe.train.model_copy(update={"micro_batch": tokens})
        self.recipe = self.recipe.model_copy(update={"train": train})

    def halve_micro_batch(self, why: str) -> bool:
        """Halves the micro-batch from now on, and tells the user why. Returns False where it is one token already.

        Checkpoints written from now on record it, so a resume uses it too."""
        micro, before = self.recipe.train.micro_batch, self.state.micro_batch
        if micro == 1:
            return False
        note(f"{why}: micro-batches of {micro // 2:,} tokens from now on")
        self.use_micro_batch(micro // 2)
        self.state.micro_batch = [before[0] if before else micro, micro // 2]
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        return True

    @property
    def progress(self) -> dict[str, Any]:
        """Returns the progress of the run for status.json: steps, of how many (None with a time budget), tokens and the
        best scores, `metric` first."""
        s = self.state
        best = s.best and {"step": s.best["step"], self.metric: s.best[self.metric]} | s.best
        sources = {"sources": self.sources(s.step)} if self.work.mixture else {}
        counts = {"step": s.step, "horizon": self.horizon.steps, "tokens": s.tokens}
        return counts | {"best": best, "skipped": s.skipped} | sources

    def sources(self, step: int) -> dict[str, dict[str, float]]:
        """Returns, of each source that has a weight, its share, the rows that were read of it before step `step`, and
        how often that is all of it."""
        data, mixture = self.recipe.data, self.work.mixture
        if mixture is None:
            return {}
        drawn = mixture.drawn(self.batch_of(step) * self.batch_rows)
        return {
            name: {"share": weight / sum(data.weights), "rows": rows, "epochs": rows / size}
            for name, weight, rows, size in zip(data.sources, data.weights, drawn, mixture.sizes, strict=True)
        }

    def tell_sources(self, step: int) -> None:
        """Tells how often each source that has a weight was, or will be, read before step `step`."""
        for line in self.source_lines(step):
            note(f"source   {line} by step {step:,}")

    def source_lines(self, step: int) -> list[str]:
        """Returns a line for each source that has a weight, with how often it was read before step `step`."""
        return [
            f"{name}: share {s['share']:.1%}, {s['rows']:,} rows, {s['epochs']:.2f} epochs"
            for name, s in self.sources(step).items()
        ]

    def better(self, scores: dict[str, float]) -> bool:
        """Says whether these are the best scores so far.

        Scores of `metric` that are within one standard error of the highest so far count as equal (the rule of Breiman
        et al. 1984); of those, and of scores that are equal, the lower loss is better."""
        new, best = scores.get(self.metric, math.nan), self.state.best
        if not math.isfinite(new):
            return False
        if best is None:
            return True
        ahead = 1 if self.higher else -1
        top = self.top_score(new)
        error = math.sqrt(top * (1 - top) / self.share_of) if self.share_of else 0.0
        as_good = [ahead * (top - value) <= error for value in (new, best[self.metric])]
        if all(as_good):
            return scores.get("val_loss", math.inf) < best.get("val_loss", math.inf)
        return as_good[0]

    def top_score(self, new: float) -> float:
        """Returns the best score of `metric` among `new` and those before."""
        known = [new] if self.state.top is None else [new, self.state.top]
        known += [self.state.best[self.metric]] if self.state.best else []
        return max(known) if self.higher else min(known)


def build_pretraining(recipe: Recipe, store: TokenStore, model: Transformer | None = None, world: World = ALONE) -> Job:
    """Returns the job of a recipe for pretraining.

    model: one that was trained before; None for a new one. Raises DataError where the text is shorter than one batch,
    and UserError for what this machine cannot do."""
    train, context = recipe.train, recipe.model.context
    tokenizer = store.tokenizer
    work = build_objective(recipe, store, tokenizer)
    batch_rows = max(1, round(train.batch / work.row_tokens))
    _check_enough(work, batch_rows, store, recipe)
    if model is None:
        model = Transformer(recipe.model)
        init_weights(model, train.seed)
    job = build_job(
        recipe,
        model,
        work,
        batch_rows,
        tokenizer,
        store.tokenizer_path,
        static=recipe.model.causal,
        world=world,
        ragged=store.pairs,
    )
    limit = min(len(work.held_out), math.ceil(recipe.evaluate.tokens / work.row_tokens))
    job.score, job.scored_rows = lambda: held_out_scores(job, limit), limit
    if recipe.parallel.tensor == 1:
        job.sample = _sampler(job, recipe, tokenizer)
    if not len(work.held_out):
        size = store.split("validation").num_tokens
        note(
            f"no validation: the {size:,} tokens held out fill no row of {context} tokens, so no checkpoint is the best"
        )
    return job


def fit_vocabulary(model: ModelSection, tokenizer: Tokenizer) -> ModelSection:
    """Returns the model section with an embedding for each entry of the tokenizer.

    Raises UserError where the section's own `vocab_size` is smaller than that."""
    size = tokenizer.vocab_size
    wanted = model.vocab_size or math.ceil(size / 64) * 64
    if wanted < size:
        raise UserError(
            f"model.vocab_size {wanted} is smaller than the tokenizer's {size:,} entries\n  → model.vocab_size=0"
        )
    if model.vocab_size and wanted > 1.5 * size:
        note(
            f"model.vocab_size {wanted:,} leaves {wanted - size:,} rows without a token\n  → model.vocab_size=0 fits it"
        )
    changes = {"vocab_size": wanted}
    if "position_padding_id" in model.table.coded:  # RoBERTa counts positions from its padding token + 1
        pad = tokenizer.pad_id or 0
        changes |= {"position_padding_id": pad, "position_offset": pad + 1}
    return model.model_copy(update=changes)


def build_job(
    recipe: Recipe | FinetuneRecipe, model: Transformer, work: Work, batch_rows: int, tokenizer: Tokenizer,
    tokenizer_folder: Path, static: bool, world: World, ragged: bool = False,
) -> Job:  # fmt: skip
    """Returns a job for this model, and moves the model to its device.

    static: all rows have one length, as compilation needs it; ragged: rows have any length. Raises UserError for what
    this machine, or this number of processes, cannot do."""
    train, c = recipe.train, model.config
    device = choose_device(train.device)
    precision = choose_precision(train.precision, device)
    if batch_rows < world.data_size:
        raise UserError(
            f"train.batch is {batch_rows} rows a step, fewer than the {world.data_size} processes that share them\n"
            "  → a larger train.batch, or fewer processes"
        )
    _check_shared(recipe, world, precision)
    if precision == "fp16" and c.positions == "relative":
        raise UserError("train.precision fp16 overflows in T5, whose attention scores nothing scales\n  → bf16 or fp32")
    batch_tokens = train.batch if isinstance(train.batch, int) else round(batch_rows * work.row_tokens)
    ends = horizon(train.budget, batch_tokens, batch_rows, len(work.rows))
    fitting = -world.most(-_most_tokens(c, device))  # the smallest over all processes, which share one recipe
    full_rows = isinstance(recipe, Recipe)  # rows of pretraining are full; those of fine-tuning differ in length
    micro = train.micro_batch or (_whole_rows(c.context, batch_rows, fitting) if full_rows else max(fitting, c.context))
    model.to(device)
    compiled = choose_compile(train, device, _expected_seconds(model, ends, batch_tokens), static, ragged)
    for stack in model.stacks:
        stack.recompute = train.recompute
        for block in stack.blocks if compiled else ():
            block.compile()
    parallel = Parallel(model, world, recipe.parallel, precision)
    resolved = train.model_copy(update={"micro_batch": micro, "compile": "on" if compiled else "off"})
    roles = ["bos", "eos", "pad", *(r for r in ("cls", "sep") if getattr(tokenizer, f"{r}_id") is not None)]
    special = {f"{role}_token_id": getattr(tokenizer, f"{role}_id") for role in roles}
    special["suppress_tokens"] = list(tokenizer.unused_ids(c.vocab_size))
    return Job(
        recipe=recipe.model_copy(update={"train": resolved}), model=model, parallel=parallel, work=work, horizon=ends,
        batch_rows=batch_rows, device=device, precision=precision,
        optimizers=build_optimizers(model, recipe.optimizer, world.spread),
        average=Average(model, train.ema) if train.ema else None, tokenizer=tokenizer,
        tokenizer_folder=tokenizer_folder, special=special, score=dict, world=world,
    )  # fmt: skip


def held_out_scores(job: Job, limit: int) -> dict[str, float]:
    """Returns the loss on the first `limit` held-out rows, and the scores that follow from it."""
    with autocast(job.precision, job.device):
        return validate(job.parallel, job.work, limit, job.recipe.train.micro_batch, job.device)


def _check_shared(recipe: Recipe | FinetuneRecipe, world: World, precision: str) -> None:
    if not world.sharded:
        return
    if precision == "fp16":
        raise UserError(
            "train.precision fp16 has a scale for each process, which shards cannot share\n  → bf16 or fp32"
        )
    if not OPTIMIZERS[recipe.optimizer.name].shards:
        raise UserError(
            f"optimizer.name {recipe.optimizer.name} needs whole matrices, and parallel shares them out\n"
            "  → muon or adamw"
        )


def _sampler(job: Job, recipe: Recipe, tokenizer: Tokenizer) -> Callable[[], str] | None:
    """Returns a function that writes a sample from the prompt `evaluate.sample`; None where the recipe wants none.

    A decoder continues the prompt, an encoder fills in its masks, and an encoder-decoder answers it. Raises UserError
    for a prompt longer than the context, and for one without a mask where an encoder needs it."""
    evaluate, c, seed, model = recipe.evaluate, recipe.model, recipe.train.seed, job.model
    prompt, most = evaluate.sample, evaluate.sample_tokens
    if prompt is None or not (prompt or c.causal):
        return None
    read = prompt_ids if c.causal else source_ids if c.stacks == "encoder_decoder" else masked_ids
    length = len(read(tokenizer, prompt)) + c.causal
    if length > c.context:
        raise UserError(f"evaluate.sample has {length} tokens, which fills model.context {c.context}\n  → shorten it")
    write: Callable[[], str] = lambda: sample_text(model, tokenizer, prompt, most, seed)
    if c.stacks == "encoder":
        mask = str(tokenizer.special.mask)  # the task needs one too
        if mask not in prompt:
            raise UserError(f"evaluate.sample has no {mask} to fill in\n  → write one, or evaluate.sample=null")
        write = lambda: sample_fill(model, tokenizer, prompt)
    return lambda: job.parallel.by_first(lambda: " ".join(write().split()))


def _check_enough(work: Work, batch_rows: int, store: TokenStore, recipe: Recipe) -> None:
    rows = len(work.rows)
    if rows >= batch_rows:
        return
    if not rows:
        raise DataError(f"the training split makes no row: {work.note}\n  → more text, or a smaller model.context")
    context, fits = recipe.model.context, math.floor(rows * work.row_tokens)
    raise DataError(
        f"the training split has {store.split('train').num_tokens:,} tokens, fewer than one batch of"
        f" {recipe.train.batch:,} ({rows} of {batch_rows} rows of up to {context})\n"
        f"  → train.batch='{fits} tokens', a smaller model.context, or more text"
    )


def _most_tokens(c: ModelConfig, device: torch.device) -> int:
    """Returns how many tokens of a forward pass, padding included, fit into memory; on a CPU, into its caches."""
    if device.type != "cuda":
        return CPU_MICRO_TOKENS
    free, _ = torch.cuda.mem_get_info(device)
    return int(0.5 * free / activation_bytes(c, 2))


def _whole_rows(context: int, rows: int, most: int) -> int:
    """Returns the tokens of a micro-batch: the largest of equal parts of a batch, of whole rows and at most `most`
    tokens. The batch has `rows` rows of `context` tokens. One row is always allowed."""
    return context * max(n for n in range(1, rows + 1) if rows % n == 0 and n * context <= max(most, context))


def _expected_seconds(model: Transformer, ends: Horizon, batch: int) -> float:
    """Returns roughly how many seconds the run takes, to decide on compilation.

    It assumes 6 FLOP per parameter and token, and 60 GFLOP/s, the speed of a laptop."""
    if ends.seconds is not None:
        return ends.seconds
    assert ends.steps is not None
    return ends.steps * batch * 6 * sum(model.num_parameters().values()) / 60e9


def describe_pretraining(job: Job, store: TokenStore) -> list[str]:
    """Returns lines that show a reader everything that was inferred, with the important numbers."""
    recipe, train = job.recipe, job.recipe.train
    split, held_out = store.split("train"), store.split("validation")
    tokens_a_step = round(job.batch_rows * job.work.row_tokens)
    if job.horizon.steps is not None:
        tokens = job.horizon.steps * tokens_a_step
        epochs = job.horizon.steps * job.batch_rows / len(job.work.rows)
        length = f"{job.horizon.steps:,} steps × {tokens_a_step:,} tokens = {show_count(tokens)} ({epochs:.2f} epochs)"
    else:
        length = f"{train.budget}, {tokens_a_step:,} tokens a step"
    lost = sum(store.manifest["problems"]["counts"].values())
    return [
        describe_model(job),
        f"data     {split.num_documents:,} documents, {show_count(split.num_tokens)} tokens; held out"
        f" {held_out.num_documents:,} documents, {show_count(held_out.num_tokens)} tokens"
        + (f"; {lost:,} times something was left out or changed: {store.path / 'card.txt'}" if lost else ""),
        f"rows     {recipe.task.name}: {job.work.note}",
        f"train    {length} · {recipe.optimizer.name} · peak lr {recipe.optimizer.lr:.3g} · {recipe.schedule.name}",
        describe_machine(job, math.ceil(tokens_a_step / train.micro_batch)),
    ]


def describe_model(job: Job) -> str:
    c, parts = job.model.config, {k: v for k, v in job.model.num_parameters().items() if v}
    by_part = ", ".join(f"{show_count(v)} {k}" for k, v in parts.items())
    return (
        f"model    {c.family} · {_layers(c)} × {c.hidden_size} · {c.num_heads} heads · context {c.context}"
        f" · {show_count(sum(parts.values()))} parameters ({by_part})"
    )


def describe_machine(job: Job, micro_batches: int) -> str:
    train = job.recipe.train
    wide = job.model.config.hidden_size >= BF16_REPAYS_FROM
    unused = train.precision == "auto" and job.precision == "fp32" and wide and multiplies_bf16(job.device)
    faster = " (train.precision=bf16 is faster here)" if unused else ""
    return (
        f"machine  {job.device} · {job.precision}{faster} · micro-batch {train.micro_batch:,} tokens × {micro_batches}"
        f" · compile {train.compile} · memory ≈ {show_bytes(_memory(job))}"
    )


def _layers(model: ModelConfig) -> str:
    return f"{model.num_layers}" + (f" + {model.num_decoder_layers}" if model.num_decoder_layers else "") + " layers"


def _memory(job: Job) -> float:
    """Returns the memory of training in bytes: weights; gradients, moments and averages of the trained parameters;
    activations of one micro-batch, or of a whole step that is less; a chunk of logits and its gradient."""
    train, c = job.recipe.train, job.model.config
    total, trained = _sizes(job.model)
    fixed = 4 * (total + trained * (1 + _numbers_beside(job)))
    number = 4 if job.precision == "fp32" else 2
    tokens = min(train.micro_batch, round(job.batch_rows * job.work.row_tokens))
    return fixed + tokens * activation_bytes(c, number, recompute=train.recompute) + 8 * CHUNK * c.vocab_size


def checkpoint_bytes(job: Job) -> float:
    """Returns the size of one checkpoint in bytes: weights, or those of the adapter alone where one is trained, and
    moments and averages of the trained parameters."""
    total, trained = _sizes(job.model)
    return 4 * ((trained if job.adapter else total) + trained * _numbers_beside(job))


def _sizes(model: Transformer) -> tuple[int, int]:
    """Returns how many parameters the model has, and how many of them are trained."""
    parameters = list(model.parameters())
    return sum(p.numel() for p in parameters), sum(p.numel() for p in parameters if p.requires_grad)


def _numbers_beside(job: Job) -> float:
    """Returns how many numbers the moments and the average hold per trained parameter."""
    count = parameters(job.model.config)
    moments = moment_bytes(count, job.recipe.optimizer.name) / (4 * count.total)
    return moments + (1 if job.recipe.train.ema else 0)
