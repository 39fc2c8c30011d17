"""Low-rank adapters (LoRA, Hu et al. 2022; DoRA, Liu et al. 2024), and which parameters a fine-tuning run changes.

A matrix W (out, in) becomes W + scale * B A with A (rank, in) and B (rows, rank); W itself is frozen. Where one of our
matrices holds several of transformers' (queries, keys and values; gate and up), each has an A and a B of its own, as
PEFT trains them.
"""

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lmkit.architecture.tensor_names import tensor_names
from lmkit.base.errors import ModelError, UserError, did_you_mean
from lmkit.model.heads import TaskHead
from lmkit.model.layers import Dropout
from lmkit.model.transformer import Transformer
from lmkit.recipe.tasks import LoraConfig

ADDED = re.compile(r"\.(lora_a|lora_b\.\d+|magnitude\.\d+)$")  # names of the parameters of adapters


class Part(NamedTuple):
    """Rows of a matrix that are adapted by themselves. rank 0: not at all."""

    rows: int
    rank: int
    scale: float


class LoraLinear(nn.Module):
    """A linear layer, which is to be frozen (`freeze_base`), and the change to it that is learnt."""

    scale: Tensor

    def __init__(self, base: nn.Linear, parts: list[Part], dropout: float = 0.0, dora: bool = False):
        """parts: from the first row to the last. The change is zero until `reset` and training, or a file, fill it."""
        super().__init__()
        weight = base.weight.detach()
        self.base, self.parts, self.dropout = base, parts, Dropout(dropout)
        self.ranks = [part.rank for part in parts]
        self.lora_a = nn.Parameter(weight.new_zeros(sum(self.ranks), base.in_features))  # of all parts, stacked
        self.lora_b = nn.ParameterList(
            nn.Parameter(weight.new_zeros(part.rows, part.rank), requires_grad=part.rank > 0) for part in parts
        )
        scales = [part.scale for part in parts for _ in range(part.rank)]
        self.register_buffer("scale", weight.new_tensor(scales), persistent=False)  # (ranks,)
        self.magnitude: nn.ParameterList | None = None
        if dora:
            lengths = weight.norm(dim=1).split([part.rows for part in parts])
            self.magnitude = nn.ParameterList(
                nn.Parameter(length[: part.rows if part.rank else 0].clone(), requires_grad=part.rank > 0)
                for length, part in zip(lengths, parts, strict=True)
            )

    @torch.no_grad()
    def reset(self, generator: torch.Generator) -> None:
        """A: Kaiming's uniform with a = sqrt(5), as PEFT draws it; B stays zero, so nothing changes yet."""
        self.lora_a.copy_(nn.init.kaiming_uniform_(torch.empty(self.lora_a.shape), a=5**0.5, generator=generator))

    def change(self) -> Tensor:
        """(out, in): what is added to the weight, before DoRA sets the lengths of its rows."""
        scaled = (self.lora_a * self.scale[:, None]).split(self.ranks)
        return torch.cat([b @ a for a, b in zip(scaled, self.lora_b, strict=True)])

    def row_factor(self) -> Tensor:
        """(out,): DoRA's learnt length of each row over the length it has; 1 for rows that are not adapted. The length
        it has is a constant for the gradient (Liu et al. 2024, 4.3)."""
        assert self.magnitude is not None
        with torch.no_grad(), torch.autocast(self.lora_a.device.type, enabled=False):
            lengths = (self.base.weight + self.change()).norm(dim=1).split([part.rows for part in self.parts])
        pairs = zip(self.magnitude, lengths, strict=True)
        return torch.cat([m / length if m.numel() else torch.ones_like(length) for m, length in pairs])

    @torch.no_grad()
    def merged_weight(self) -> Tensor:
        """(out, in): the weight of a plain layer that computes the same."""
        weight = self.base.weight + self.change()
        return weight if self.magnitude is None else weight * self.row_factor()[:, None]

    def forward(self, x: Tensor) -> Tensor:
        """x: (..., in) -> (..., out)."""
        low = F.linear(self.dropout(x), self.lora_a) * self.scale  # (..., ranks)
        parts = zip(low.split(self.ranks, dim=-1), self.lora_b, strict=True)
        change = torch.cat([F.linear(h, b) for h, b in parts], dim=-1)  # (..., out); zeros where the rank is 0
        if self.magnitude is None:
            return self.base(x) + change
        # PEFT drops out what W reads here, too; we drop out only what the adapter reads, as without DoRA.
        y = F.linear(x, self.base.weight) + change
        out = y * self.row_factor()
        return (out if self.base.bias is None else out + self.base.bias).to(y.dtype)


# ---------------------------------------------------------------- in and out of a model


def adapters(model: Transformer) -> dict[str, LoraLinear]:
    """Those of the model, by the name of the layer they change."""
    return {name: module for name, module in model.named_modules() if isinstance(module, LoraLinear)}


def linears(model: Transformer) -> dict[str, nn.Linear]:
    """The layers that can be adapted, by name. Raises UserError for a model that has adapters."""
    if adapters(model):
        raise UserError("the model has adapters already\n  → merge these first")
    return {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}


def part_heights(model: Transformer, name: str) -> list[int]:
    """Rows of each of transformers' matrices that our layer `name` holds."""
    weight = f"{name}.weight"
    one = len(tensor_names(model.config)[name]) == 1
    return [model.get_parameter(weight).size(0)] if one else model.row_blocks(weight)


def place(model: Transformer, name: str, module: nn.Module) -> None:
    """Put `module` where the layer `name` was."""
    parent, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(parent), leaf, module)


def add_lora(model: Transformer, config: LoraConfig, seed: int = 0) -> None:
    """Adapt the layers inside blocks that `config.targets` name, and freeze everything else but a head for labels.

    One seed gives the same adapters on any machine. Raises UserError for a target that no layer matches, with the
    names there are, and for a model that has adapters."""
    inside = {name: linear for name, linear in linears(model).items() if ".blocks." in name}
    wanted = {name for pattern in config.targets for name in _matching("lora.targets", pattern, inside)}
    generator = torch.Generator().manual_seed(seed)
    for name in (name for name in inside if name in wanted):  # in the model's order, whatever that of the patterns
        parts = [Part(rows, config.rank, config.alpha / config.rank) for rows in part_heights(model, name)]
        lora = LoraLinear(inside[name], parts, config.dropout, config.dora)
        lora.reset(generator)
        place(model, name, lora.train(model.training))
    freeze_base(model)


def freeze_base(model: Transformer) -> None:
    """Leave what learns of a model with adapters: these, and a head for labels, where that learns."""
    for name, p in model.named_parameters():
        if not _learns(model, name):
            p.requires_grad_(False)


def _learns(model: Transformer, name: str) -> bool:
    """Whether the parameter belongs to an adapter, or to a head for labels, which is new to the task."""
    return bool(ADDED.search(name)) or (isinstance(model.head, TaskHead) and name.startswith("head."))


def merge_lora(model: Transformer) -> None:
    """Fold all adapters into the weights: a plain model again, all of it trainable."""
    for name, lora in adapters(model).items():
        lora.base.weight.data = lora.merged_weight()
        place(model, name, lora.base)
    model.requires_grad_(True)


@contextmanager
def merged(model: Transformer) -> Iterator[None]:
    """Inside, a plain model with plain names that computes the same, to be saved; after it, the adapters again and the
    frozen weights bit for bit. Holds a second copy of the adapted matrices, of nothing else."""
    kept: list[tuple[str, LoraLinear, Tensor]] = []
    try:
        for name, lora in adapters(model).items():
            kept.append((name, lora, lora.base.weight.data))
            lora.base.weight.data = lora.merged_weight()
            place(model, name, lora.base)
        yield
    finally:
        for name, lora, weight in kept:
            lora.base.weight.data = weight
            place(model, name, lora)


def adapter_tensors(model: Transformer) -> dict[str, Tensor]:
    """What a run with adapters learns, under our names: the adapters and a head for labels. Nothing is copied."""
    return {name: p.detach() for name, p in model.named_parameters() if _learns(model, name) and p.numel()}


@torch.no_grad()
def load_adapter_tensors(model: Transformer, tensors: dict[str, Tensor]) -> None:
    """The inverse of `adapter_tensors`, into a model that has the same adapters. Raises ModelError for others."""
    mine = adapter_tensors(model)
    problems = [f"missing {name}" for name in mine.keys() - tensors.keys()]
    problems += [f"left over {name}" for name in tensors.keys() - mine.keys()]
    for name in mine.keys() & tensors.keys():
        if mine[name].shape != tensors[name].shape:
            problems.append(f"{name}: shape {tuple(tensors[name].shape)}, the model has {tuple(mine[name].shape)}")
    if problems:
        raise ModelError("the adapter's tensors do not fit the model:\n  " + "\n  ".join(sorted(problems)[:20]))
    for name, p in mine.items():
        p.copy_(tensors[name])


# ---------------------------------------------------------------- freezing


def freeze(model: Transformer, patterns: tuple[str, ...]) -> tuple[int, int]:
    """Freeze the parameters whose names these regular expressions find; `body` is all but the head. Adapters are never
    meant, and a head that shares the embedding's weights has none of its own: it follows the embedding.

    Returns how many numbers are trained, and how many there are. Raises UserError, and changes nothing, for a pattern
    that finds none, with names like it, and where nothing would be left to train."""
    own = {name.replace(".base.", "."): p for name, p in model.named_parameters() if not ADDED.search(name)}
    frozen: dict[str, nn.Parameter] = {}
    for pattern in patterns:
        body = [name for name in own if not name.startswith(("head.", "pairs."))]
        names = body if pattern == "body" else _matching("freeze", pattern, own)
        frozen |= {name: own[name] for name in names}
    if not any(p.requires_grad for p in set(model.parameters()) - set(frozen.values())):
        raise UserError(f"freeze: {', '.join(map(repr, patterns))} leaves nothing to train\n  → freeze less")
    for p in frozen.values():
        p.requires_grad_(False)
    return trainable(model)


def trainable(model: Transformer) -> tuple[int, int]:
    """How many numbers are trained, and how many there are; shared ones count once."""
    sizes = [(p.numel(), p.requires_grad) for p in model.parameters()]
    return sum(n for n, learns in sizes if learns), sum(n for n, _ in sizes)


def _matching(key: str, pattern: str, names: Iterable[str]) -> list[str]:
    """The names in which the regular expression is found. Raises UserError for none, and for what is no expression."""
    names = list(names)
    try:
        found = [name for name in names if re.search(pattern, name)]
    except re.error as e:
        raise UserError(f"{key}: {pattern!r} is not a regular expression: {e}") from None
    if not found:
        first = {re.sub(r"\.\d+\.", ".0.", name) for name in names}  # those of one block stand for all
        raise UserError(f"{key}: no name matches {pattern!r}{did_you_mean(pattern, first)}")
    return found
