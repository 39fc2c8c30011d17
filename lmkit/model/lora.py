"""Low-rank adapters (LoRA, Hu et al. 2022; DoRA, Liu et al. 2024), and which parameters a fine-tuning run changes.

A matrix W (out, in) becomes W + scale * B A with A (rank, in) and B (rows, rank); W itself is frozen. One of our
matrices may hold several matrices of transformers (queries, keys and values; gate and up). Then each of these has an A
and a B of its own, as PEFT trains them.
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
    """Rows of a matrix that have an A and a B of their own. With rank 0 they are not adapted."""

    rows: int
    rank: int
    scale: float


class LoraLinear(nn.Module):
    """A linear layer, which `freeze_base` freezes, and the change to it that is learnt."""

    scale: Tensor

    def __init__(self, base: nn.Linear, parts: list[Part], dropout: float = 0.0, dora: bool = False):
        """parts: all rows of the matrix, from the first to the last.

        The change is zero until it is trained after `reset`, or read from a file."""
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
        """Fills A with Kaiming's uniform distribution with a = sqrt(5), as PEFT does; B stays zero, so the layer still
        computes what its base computes."""
        self.lora_a.copy_(nn.init.kaiming_uniform_(torch.empty(self.lora_a.shape), a=5**0.5, generator=generator))

    def change(self) -> Tensor:
        """Returns what is added to the weight, (out, in), before DoRA sets the lengths of the rows."""
        scaled = (self.lora_a * self.scale[:, None]).split(self.ranks)
        return torch.cat([b @ a for a, b in zip(scaled, self.lora_b, strict=True)])

    def row_factor(self) -> Tensor:
        """Returns DoRA's factor of each row, (out,): its learnt length divided by its length in W + change.

        It is 1 for rows that are not adapted. The gradient treats the length in W + change as a constant (Liu et al.
        2024, 4.3)."""
        assert self.magnitude is not None
        with torch.no_grad(), torch.autocast(self.lora_a.device.type, enabled=False):
            lengths = (self.base.weight + self.change()).norm(dim=1).split([part.rows for part in self.parts])
        pairs = zip(self.magnitude, lengths, strict=True)
        return torch.cat([m / length if m.numel() else torch.ones_like(length) for m, length in pairs])

    @torch.no_grad()
    def merged_weight(self) -> Tensor:
        """Returns the weight (out, in) of a plain layer that computes the same."""
        weight = self.base.weight + self.change()
        return weight if self.magnitude is None else weight * self.row_factor()[:, None]

    def forward(self, x: Tensor) -> Tensor:
        """Returns (..., out) for x (..., in)."""
        low = F.linear(self.dropout(x), self.lora_a) * self.scale  # (..., ranks)
        parts = zip(low.split(self.ranks, dim=-1), self.lora_b, strict=True)
        change = torch.cat([F.linear(h, b) for h, b in parts], dim=-1)  # (..., out); zeros where the rank is 0
        if self.magnitude is None:
            return self.base(x) + change
        # With DoRA, PEFT applies dropout to the input of W too; here it applies to the adapter's input only.
        y = F.linear(x, self.base.weight) + change
        out = y * self.row_factor()
        return (out if self.base.bias is None else out + self.base.bias).to(y.dtype)


# ---------------------------------------------------------------- in and out of a model


def adapters(model: Transformer) -> dict[str, LoraLinear]:
    """Returns the adapters of the model, by the name of the layer that each changes."""
    return {name: module for name, module in model.named_modules() if isinstance(module, LoraLinear)}


def linears(model: Transformer) -> dict[str, nn.Linear]:
    """Returns the layers that can be adapted, by name. Raises UserError for a model that has adapters already."""
    if adapters(model):
        raise UserError("the model has adapters already\n  → merge these first")
    return {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}


def part_heights(model: Transformer, name: str) -> list[int]:
    """Returns the number of rows of each of transformers' matrices that our layer `name` holds."""
    weight = f"{name}.weight"
    one = len(tensor_names(model.config)[name]) == 1
    return [model.get_parameter(weight).size(0)] if one else model.row_blocks(weight)


def place(model: Transformer, name: str, module: nn.Module) -> None:
    """Puts `module` in the place of the layer `name`."""
    parent, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(parent), leaf, module)


def add_lora(model: Transformer, config: LoraConfig, seed: int = 0) -> None:
    """Adapts the layers inside blocks that `config.targets` name, and freezes everything else except a head for labels.

    One seed gives the same adapters on any machine. Raises UserError for a target that no layer matches, with the
    names that exist, and for a model that has adapters already."""
    inside = {name: linear for name, linear in linears(model).items() if ".blocks." in name}
    wanted = {name for pattern in config.targets for name in _matching("lora.targets", pattern, inside)}
    generator = torch.Generator().manual_seed(seed)
    for name in (name for name in inside if name in wanted):  # in the model's order, so that a seed means one thing
        parts = [Part(rows, config.rank, config.alpha / config.rank) for rows in part_heights(model, name)]
        lora = LoraLinear(inside[name], parts, config.dropout, config.dora)
        lora.reset(generator)
        place(model, name, lora.train(model.training))
    freeze_base(model)


def freeze_base(model: Transformer) -> None:
    """Freezes everything in a model with adapters, except the adapters and a head for labels.

    Parameters that were frozen before stay frozen."""
    for name, p in model.named_parameters():
        if not _learns(model, name):
            p.requires_grad_(False)


def _learns(model: Transformer, name: str) -> bool:
    """Says whether the parameter belongs to an adapter, or to a head for labels, which is new to the task."""
    return bool(ADDED.search(name)) or (isinstance(model.head, TaskHead) and name.startswith("head."))


def merge_lora(model: Transformer) -> None:
    """Adds all adapters to the weights, so that the model is a plain one again, with all parameters trainable."""
    for name, lora in adapters(model).items():
        lora.base.weight.data = lora.merged_weight()
        place(model, name, lora.base)
    model.requires_grad_(True)


@contextmanager
def merged(model: Transformer) -> Iterator[None]:
    """Makes the model a plain one with plain names that computes the same, for the time of a `with` block, to save it.

    Afterwards the adapters are back, and the frozen weights are the same bit for bit. Meanwhile memory holds a second
    copy of the adapted matrices, and of nothing else."""
    replaced: list[tuple[str, LoraLinear, Tensor]] = []
    try:
        for name, lora in adapters(model).items():
            replaced.append((name, lora, lora.base.weight.data))
            lora.base.weight.data = lora.merged_weight()
            place(model, name, lora.base)
        yield
    finally:
        for name, lora, weight in replaced:
            lora.base.weight.data = weight
            place(model, name, lora)


def adapter_tensors(model: Transformer) -> dict[str, Tensor]:
    """Returns what a run with adapters learns, under our names: the adapters and a head for labels, without a copy."""
    return {name: p.detach() for name, p in model.named_parameters() if _learns(model, name) and p.numel()}


@torch.no_grad()
def load_adapter_tensors(model: Transformer, tensors: dict[str, Tensor]) -> None:
    """Puts what `adapter_tensors` returned back into a model with the same adapters.

    Raises ModelError for a model with other adapters."""
    own = adapter_tensors(model)
    problems = [f"missing {name}" for name in own.keys() - tensors.keys()]
    problems += [f"left over {name}" for name in tensors.keys() - own.keys()]
    for name in own.keys() & tensors.keys():
        if own[name].shape != tensors[name].shape:
            problems.append(f"{name}: shape {tuple(tensors[name].shape)}, the model has {tuple(own[name].shape)}")
    if problems:
        raise ModelError("the adapter's tensors do not fit the model:\n  " + "\n  ".join(sorted(problems)[:20]))
    for name, p in own.items():
        p.copy_(tensors[name])


# ---------------------------------------------------------------- freezing


def freeze(model: Transformer, patterns: tuple[str, ...]) -> tuple[int, int]:
    """Freezes the parameters in whose names one of the regular expressions is found; `body` means all but the head.

    Adapters are never frozen. A head that shares the embedding's weights is frozen with the embedding. Returns how many
    numbers are trained, and how many the model has. Raises UserError, and changes nothing, for a pattern that is found
    in no name, with similar names, and where nothing would be left to train."""
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
    """Returns how many numbers are trained, and how many the model has; shared parameters count once."""
    sizes = [(p.numel(), p.requires_grad) for p in model.parameters()]
    return sum(n for n, learns in sizes if learns), sum(n for n, _ in sizes)


def _matching(key: str, pattern: str, names: Iterable[str]) -> list[str]:
    """Returns the names in which the regular expression is found.

    Raises UserError where it is found in none, and where it is not a regular expression."""
    names = list(names)
    try:
        matches = [name for name in names if re.search(pattern, name)]
    except re.error as e:
        raise UserError(f"{key}: {pattern!r} is not a regular expression: {e}") from None
    if not matches:
        examples = {re.sub(r"\.\d+\.", ".0.", name) for name in names}  # the names of one block are enough as a hint
        raise UserError(f"{key}: no name matches {pattern!r}{did_you_mean(pattern, examples)}")
    return matches
