"""What a checkpoint of a training run holds beside the model, and how it comes back: no pickle anywhere.

`model.safetensors` is the model to use. With an average of the weights (EMA) switched on that is the average, and
`training/weights.safetensors` holds the weights that training goes on from.
"""

import json
import shutil
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.optim import Optimizer

from lmkit.downstream import LoraConfig
from lmkit.errors import ModelError
from lmkit.files import write_json
from lmkit.model.huggingface import from_hf, read_tensors, save_folder
from lmkit.model.lora import adapter_tensors, load_adapter_tensors, merged
from lmkit.model.peft_format import save_adapter
from lmkit.model.transformer import Transformer
from lmkit.training.optimizers import load_state_tensors, state_tensors

ADAPTER = "training/adapter.safetensors"


@dataclass
class State:
    """Where a run stands. Everything random follows from `step`, so there is no generator state to keep."""

    step: int = 0
    tokens: int = 0  # trained on, as `train.batch` counts them
    elapsed: float = 0.0  # seconds in the loop, over all starts
    eval_seconds: float = 0.0  # what an evaluation takes, with a margin
    reserve: float = 0.0  # seconds kept free at the end of a time budget for the last evaluation and save
    skipped: int = 0  # steps whose loss or gradient was not finite
    skipped_in_a_row: int = 0
    best: dict[str, float] | None = None  # step and scores of the best evaluation
    evaluations_since_best: int = 0
    scaler: dict[str, Any] = field(default_factory=dict)  # fp16 loss scale


class Average:
    """Exponential moving average of the weights (Polyak & Juditsky 1992)."""

    def __init__(self, model: Transformer, decay: float):
        self.decay = decay
        self.params: list[Tensor] = list(model.parameters())
        self.weights = [p.detach().clone() for p in self.params]

    @torch.no_grad()
    def update(self) -> None:
        torch._foreach_lerp_(self.weights, self.params, 1 - self.decay)

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange the average and the weights in the model; a second call undoes it."""
        for p, average in zip(self.params, self.weights, strict=True):
            kept = p.detach().clone()
            p.copy_(average)
            average.copy_(kept)


@dataclass(frozen=True)
class Adapter:
    """What a run trains in place of all weights, and the folder of the model it changes."""

    config: LoraConfig
    base: str


def write(
    folder: Path, model: Transformer, optimizers: list[Optimizer], state: State, average: Average | None,
    tokenizer: Path, special: dict[str, Any], adapter: Adapter | None = None,
) -> None:  # fmt: skip
    """Fill `folder`, which `Run.save` then makes visible at once."""
    if average:
        save_file({n: p.detach() for n, p in model.named_parameters()}, folder / "training/weights.safetensors")
        average.swap()
    write_model(folder, model, tokenizer, special, adapter)
    if average:
        average.swap()
    if adapter:
        save_file(adapter_tensors(model), folder / ADAPTER)
    names: dict[Tensor, str] = {p: n for n, p in model.named_parameters()}
    tensors = {k: v.detach().contiguous() for k, v in state_tensors(optimizers, names).items()}
    save_file(tensors, folder / "training/optimizer.safetensors")
    write_json(folder / "training/state.json", asdict(state))


def write_model(
    folder: Path, model: Transformer, tokenizer: Path, special: dict[str, Any], adapter: Adapter | None = None
) -> None:
    """The Hugging Face folder: model and tokenizer; of an adapter that is not to be merged PEFT's."""
    if adapter and not adapter.config.merge:
        save_adapter(model, adapter.config, folder, adapter.base, special)
    else:
        with merged(model) if adapter else nullcontext():
            save_folder(model, folder, special)
    for file in tokenizer.iterdir():
        shutil.copyfile(file, folder / file.name)


@torch.no_grad()
def read(folder: Path, model: Transformer, optimizers: list[Optimizer], average: Average | None) -> State:
    """The inverse of `write`, in place. Raises ModelError when the folder holds another kind of run."""
    if (folder / ADAPTER).is_file():
        load_adapter_tensors(model, load_file(folder / ADAPTER))
    else:
        from_hf(model, read_tensors(folder), str(folder))
    raw = folder / "training/weights.safetensors"
    if raw.exists() != (average is not None):
        raise ModelError(f"{folder}: train.ema was {'on' if raw.exists() else 'off'} when this checkpoint was written")
    if average:
        for mine, p in zip(average.weights, model.parameters(), strict=True):
            mine.copy_(p)
        weights = load_file(raw)
        for n, p in model.named_parameters():
            p.copy_(weights[n])
    names: dict[Tensor, str] = {p: n for n, p in model.named_parameters()}
    try:
        load_state_tensors(optimizers, names, load_file(folder / "training/optimizer.safetensors"))
    except KeyError as e:
        raise ModelError(f"{folder}: optimizer state of an unknown parameter {e}") from None
    return State(**json.loads((folder / "training/state.json").read_text()))


def average_models(folders: list[Path], model: Transformer) -> None:
    """Set `model` to the mean of the checkpoints' weights (Vaswani et al. 2017, 6.1 average the last 5)."""
    total: dict[str, Tensor] = {}
    for folder in folders:
        for name, tensor in read_tensors(folder).items():
            total[name] = total[name] + tensor if name in total else tensor
    from_hf(model, {k: v / len(folders) for k, v in total.items()}, "average")
