"""What a checkpoint of a training run holds beside the model, and how it comes back: no pickle anywhere.

`model.safetensors` is the model to use. With an average of the weights (EMA) switched on that is the average, and
`training/weights.safetensors` holds the weights that training goes on from. Moments stand in
`training/optimizer.safetensors`; of a model whose weights are shared out (FSDP2) in `training/shards/`, where each
process writes its own, in the layout of torch.distributed.checkpoint, which any number of processes can read.
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
from lmkit.model.sharding import fill, local, whole
from lmkit.model.transformer import Transformer
from lmkit.recipe.tasks import LoraConfig
from lmkit.text.tokenizer import copy_tokenizer, read_object
from lmkit.training.distributed import sharding
from lmkit.training.optimizers.build import load_state_tensors, state_tensors

ADAPTER = "training/adapter.safetensors"
SHARDS = "training/shards"
RECIPE = "training/recipe.yaml"  # by which the steps up to here were trained
Piece = Callable[[Path], None]  # writes a part of a checkpoint into its folder


@dataclass
class State:
    """Where a run stands. Everything random follows from `step`, so there is no generator state to keep."""

    step: int = 0
    tokens: int = 0  # trained on, as `train.batch` counts them
    elapsed: float = 0.0  # seconds in the loop, over all starts
    beside: float = 0.0  # of these not in steps: evaluations, texts, checkpoints
    saving: float = 0.0  # and of these in checkpoints
    eval_seconds: float = 0.0  # what the last evaluation took
    save_seconds: float = 0.0  # what the longest save took
    reserve: float = 0.0  # seconds kept free at the end of a time budget for the last evaluation and save
    skipped: int = 0  # steps whose loss or gradient was not finite
    skipped_in_a_row: int = 0
    spikes: int = 0  # steps whose loss or gradient was far above those before
    losses: list[float] = field(default_factory=list)  # of the last steps, by which spikes are judged
    norms: list[float] = field(default_factory=list)
    passed_over: list[int] = field(default_factory=list)  # global batches left out after a rollback
    rollbacks: int = 0
    best: dict[str, float] | None = None  # step and scores of the best evaluation
    evaluations_since_best: int = 0
    finished: str = ""  # the budget that was used up
    before: dict[str, float] | None = None  # scores of the model that was started from, where they are compared
    scaler: dict[str, Any] = field(default_factory=dict)  # fp16 loss scale
    # where memory was not enough: the micro-batch of the recipe, and the smaller one that is used since
    micro_batch: list[int] | None = None


class Average:
    """Exponential moving average of the weights (Polyak & Juditsky 1992); of shards, where they are shared out."""

    def __init__(self, model: Transformer, decay: float):
        self.decay = decay
        self.params: list[Tensor] = [local(p.detach()) for p in model.parameters()]
        self.weights = [p.clone() for p in self.params]

    @torch.no_grad()
    def update(self) -> None:
        torch._foreach_lerp_(self.weights, self.params, 1 - self.decay)

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange the average and the weights in the model; a second call undoes it. All the memory it takes it takes
        at once, so that it is done whole or not at all."""
        spare = torch.empty_like(max(self.params, key=torch.numel)).flatten()
        for p, average in zip(self.params, self.weights, strict=True):
            kept = spare[: p.numel()].view_as(p).copy_(p)
            p.copy_(average)
            average.copy_(kept)

    @contextmanager
    def as_model(self) -> Iterator[None]:
        """The model is the average meanwhile."""
        self.swap()
        try:
            yield
        finally:
            self.swap()


@dataclass(frozen=True)
class Adapter:
    """What a run trains in place of all weights, and the folder of the model it changes."""

    config: LoraConfig
    base: str

    @cached_property
    def base_checksums(self) -> dict[str, str]:
        return adapter_base.weight_checksums(model_folder(self.base))


@torch.no_grad()
def snapshot(
    model: Transformer, optimizers: list[Optimizer], state: State, average: Average | None, tokenizer: Path,
    special: dict[str, Any], adapter: Adapter | None = None, copy: bool = False,
) -> tuple[list[Piece], dict[str, Tensor]]:  # fmt: skip
    """What to write, and of a model that is shared out the tensors that `sharding.save` is to write; all its processes
    must call together. copy: training goes on before all is written."""
    own: Callable[[Tensor], Tensor] = lambda t: t.detach().clone() if copy else t.detach()
    pieces: list[Piece] = []
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
    facts = asdict(state)  # a copy, down to the lists
    pieces.append(lambda folder: write_json(folder / "training/state.json", facts))
    held = {k: own(v) for k, v in state_tensors(optimizers, names).items()}
    if sharding.shared(model) and not moved:
        return pieces, held
    moments = {k: whole(v, moved.get(k.split("::")[0]) if v.dim() else None).contiguous() for k, v in held.items()}
    pieces.append(lambda folder: save_file(moments, folder / "training/optimizer.safetensors"))
    return pieces, {}


def model_piece(model: Transformer, tokenizer: Path, special: dict[str, Any], adapter: Adapter | None = None) -> Piece:
    """The Hugging Face folder: model and tokenizer; of an adapter that is not to be merged PEFT's."""
    save: Piece
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
    """The inverse of writing a `snapshot`, in place. Raises ModelError when the folder holds another kind of run."""
    if (folder / ADAPTER).is_file():
        load_adapter_tensors(model, load_file(folder / ADAPTER))
    else:
        from_hf(model, read_tensors(folder), str(folder))
    raw = folder / "training/weights.safetensors"
    if raw.exists() != (average is not None):
        raise ModelError(f"{folder}: train.ema was {'on' if raw.exists() else 'off'} when this checkpoint was written")
    if average:
        for mine, p in zip(average.weights, average.params, strict=True):
            mine.copy_(p)
        weights = load_file(raw)
        for n, p in model.named_parameters():
            fill(p, weights[n], model.moved_rows.get(n))
    named: dict[str, Tensor] = dict(model.named_parameters())
    try:
        if (folder / SHARDS).is_dir():
            load_state_tensors(optimizers, named, sharding.load(folder / SHARDS, named), model.moved_rows)
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
    """Set `model` to the mean of the checkpoints' weights (Vaswani et al. 2017, 6.1 average the last 5)."""
    total: dict[str, Tensor] = {}
    for folder in folders:
        for name, tensor in read_tensors(folder).items():
            total[name] = total[name] + tensor if name in total else tensor
    from_hf(model, {k: v / len(folders) for k, v in total.items()}, "average")
