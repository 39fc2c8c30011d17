"""Writes and reads what a checkpoint holds besides the model. No file is a pickle.

`model.safetensors` is the model to use. If an average of the weights (EMA) is switched on, it is the average, and
`training/weights.safetensors` holds the weights that training goes on from. Moments are in
`training/optimizer.safetensors`. If processes share the weights (FSDP2), moments are in `training/shards/`, where each
process writes its own part, in the layout of torch.distributed.checkpoint, which any number of processes can read.
"""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.optim import Optimizer

from lmkit.base.errors import ModelError
from lmkit.base.files import write_json
from lmkit.base.runs import model_folder
from lmkit.generation.rules import GENERATION_CONFIG, with_settings
from lmkit.model.formats import adapter_base
from lmkit.model.formats.huggingface import from_hf, read_tensors, to_hf, write_folder
from lmkit.model.formats.peft import adapter_writer
from lmkit.model.lora import adapter_tensors, load_adapter_tensors, merged
from lmkit.model.sharding import fill_tensor, is_shared_out, local, whole
from lmkit.model.transformer import Transformer
from lmkit.recipe.tasks import LoraConfig
from lmkit.text.tokenizer import copy_tokenizer, read_object
from lmkit.training.optimizers.build import load_state_tensors, state_tensors

ADAPTER = "training/adapter.safetensors"
SHARDS = "training/shards"
RECIPE = "training/recipe.yaml"  # the recipe with which the steps up to here were trained
PieceWriter = Callable[[Path], None]  # writes a part of a checkpoint into its folder


@dataclass
class State:
    """The progress of a run. Everything random follows from `step`, so no state of a generator is saved."""

    step: int = 0
    tokens: int = 0  # tokens trained on, as `train.batch` counts them
    elapsed: float = 0.0  # seconds in the loop, over all starts of the run
    beside: float = 0.0  # the seconds of `elapsed` outside steps: evaluations, sample texts, checkpoints
    saving: float = 0.0  # the seconds of `beside` in which checkpoints were saved
    eval_seconds: float = 0.0  # seconds of the last evaluation
    save_seconds: float = 0.0  # seconds of the longest save
    reserve: float = 0.0  # seconds kept free at the end of a time budget for the last evaluation and save
    skipped: int = 0  # steps whose loss or gradient was not finite
    skipped_in_a_row: int = 0
    spikes: int = 0  # steps whose loss or gradient was far above those before
    losses: list[float] = field(default_factory=list)  # losses of the last steps, to recognise spikes
    norms: list[float] = field(default_factory=list)  # norms of their gradients
    passed_over: list[int] = field(default_factory=list)  # global batches left out after a rollback
    rollbacks: int = 0
    best: dict[str, float] | None = None  # step and scores of the best evaluation
    top: float | None = None  # the best score of the job's metric in any evaluation
    evaluations_since_best: int = 0
    finished: str = ""  # the budget that was used up
    before: dict[str, float] | None = None  # scores of the model before training, where a task compares with them
    scaler: dict[str, Any] = field(default_factory=dict)  # fp16 loss scale
    # Set where memory was not enough: the micro-batch of the recipe, and the smaller one that is used since.
    micro_batch: list[int] | None = None


class Average:
    """Exponential moving average of the weights (Polyak & Juditsky 1992). Each process averages the part it holds."""

    def __init__(self, model: Transformer, decay: float):
        self.decay = decay
        self.params: list[Tensor] = [local(p.detach()) for p in model.parameters()]
        self.weights = [p.clone() for p in self.params]

    @torch.no_grad()
    def update(self) -> None:
        torch._foreach_lerp_(self.weights, self.params, 1 - self.decay)

    @torch.no_grad()
    def swap(self) -> None:
        """Exchanges the average and the weights in the model; a second call undoes it.

        It allocates all its memory first, so that it fails before any weight is changed, or not at all."""
        spare = torch.empty_like(max(self.params, key=torch.numel)).flatten()
        for p, average in zip(self.params, self.weights, strict=True):
            current = spare[: p.numel()].view_as(p).copy_(p)
            p.copy_(average)
            average.copy_(current)

    @contextmanager
    def as_model(self) -> Iterator[None]:
        """Gives the model the average's weights for the time of a `with` block."""
        self.swap()
        try:
            yield
        finally:
            self.swap()


@dataclass(frozen=True)
class Adapter:
    """The adapter that a run trains instead of all weights, and the folder of the model that it changes."""

    config: LoraConfig
    base: str

    @cached_property
    def base_checksums(self) -> dict[str, str]:
        return adapter_base.weight_checksums(model_folder(self.base))


@torch.no_grad()
def snapshot(
    model: Transformer, optimizers: list[Optimizer], state: State, average: Average | None, tokenizer: Path,
    special: dict[str, Any], adapter: Adapter | None = None, copy: bool = False,
) -> tuple[list[PieceWriter], dict[str, Tensor]]:  # fmt: skip
    """Returns functions that write the parts of a checkpoint, and tensors for `sharding.save`.

    There are such tensors only where processes share the model; all of them must call together. copy: copies the
    tensors, so that training can go on before they are written."""
    own: Callable[[Tensor], Tensor] = lambda t: t.detach().clone() if copy else t.detach()
    pieces: list[PieceWriter] = []
    moved = model.moved_rows
    if average:
        raw = {n: whole(own(p), moved.get(n)) for n, p in model.named_parameters()}
        pieces.append(lambda folder: save_file(raw, folder / "training/weights.safetensors"))
    with average.as_model() if average else nullcontext():
        pieces.append(model_piece(model, tokenizer, special, adapter))
    if adapter:
        adapted = {n: own(t) for n, t in adapter_tensors(model).items()}
        pieces.append(lambda folder: save_file(adapted, folder / ADAPTER))
    names: dict[Tensor, str] = {p: n for n, p in model.named_parameters()}
    facts = asdict(state)  # a copy, its lists included
    pieces.append(lambda folder: write_json(folder / "training/state.json", facts))
    states = {k: own(v) for k, v in state_tensors(optimizers, names).items()}
    if any(map(is_shared_out, model.parameters())) and not moved:
        return pieces, states
    moments = {k: whole(v, moved.get(k.split("::")[0]) if v.dim() else None).contiguous() for k, v in states.items()}
    pieces.append(lambda folder: save_file(moments, folder / "training/optimizer.safetensors"))
    return pieces, {}


def model_piece(
    model: Transformer, tokenizer: Path, special: dict[str, Any], adapter: Adapter | None = None
) -> PieceWriter:
    """Returns a function that writes the Hugging Face folder of model and tokenizer.

    For an adapter that is not to be merged, it writes PEFT's folder instead."""
    save: PieceWriter
    if adapter and not adapter.config.merge:
        save = adapter_writer(model, adapter.config, adapter.base, special)
    else:
        with merged(model) if adapter else nullcontext():
            tensors = dict(to_hf(model))
        save = lambda folder: write_folder(model.config, tensors, folder, special)

    segments = model.config.type_vocab_size > 1

    def write(folder: Path) -> None:
        save(folder)
        if adapter and not adapter.config.merge:
            write_json(folder / adapter_base.FILE, adapter.base_checksums)
        ids = read_object(folder / GENERATION_CONFIG)
        copy_tokenizer(tokenizer, folder, segments)
        if chosen := read_object(tokenizer / GENERATION_CONFIG):
            write_json(folder / GENERATION_CONFIG, with_settings(ids, chosen))

    return write


@torch.no_grad()
def read(folder: Path, model: Transformer, optimizers: list[Optimizer], average: Average | None) -> State:
    """Reads a checkpoint into model, optimizers and average, in place. Returns the state of the run.

    Raises ModelError where the folder holds another kind of run."""
    if (folder / ADAPTER).is_file():
        load_adapter_tensors(model, load_file(folder / ADAPTER))
    else:
        from_hf(model, read_tensors(folder), str(folder))
    raw = folder / "training/weights.safetensors"
    if raw.exists() != (average is not None):
        raise ModelError(f"{folder}: train.ema was {'on' if raw.exists() else 'off'} when this checkpoint was written")
    if average:
        for weight, p in zip(average.weights, average.params, strict=True):
            weight.copy_(p)
        weights = load_file(raw)
        for n, p in model.named_parameters():
            fill_tensor(p, weights[n], model.moved_rows.get(n))
    named: dict[str, Tensor] = dict(model.named_parameters())
    try:
        if (folder / SHARDS).is_dir():
            from lmkit.training.distributed.sharding import load_shards

            load_state_tensors(optimizers, named, load_shards(folder / SHARDS, named), model.moved_rows)
        else:
            moments = load_file(folder / "training/optimizer.safetensors")
            load_state_tensors(optimizers, named, moments, model.moved_rows)
    except KeyError as e:
        raise ModelError(f"{folder}: optimizer state of an unknown parameter {e}") from None
    try:
        return State(**json.loads((folder / "training/state.json").read_text()))
    except TypeError as e:
        raise ModelError(f"{folder}: written by another version of lmkit: {e}") from None


def average_models(folders: list[Path], model: Transformer) -> None:
    """Sets `model` to the mean of the checkpoints' weights (Vaswani et al. 2017, 6.1 average the last 5)."""
    total: dict[str, Tensor] = {}
    for folder in folders:
        for name, tensor in read_tensors(folder).items():
            total[name] = total[name] + tensor if name in total else tensor
    from_hf(model, {k: v / len(folders) for k, v in total.items()}, "average")
