"""A recipe's `optimizer:` section -> torch optimizers over every parameter, each exactly once."""

import re
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from lmkit.errors import UserError
from lmkit.model.transformer import Transformer
from lmkit.recipe import OptimizerConfig
from lmkit.training.muon import Muon
from lmkit.training.scaled_adamw import ScaledAdamW


def build_optimizers(model: Transformer, c: OptimizerConfig) -> list[Optimizer]:
    """Muon takes the matrices inside blocks and AdamW the rest; any other optimizer takes everything that is not
    frozen. Decay applies to matrices only. Each group carries `peak_lr`, which the schedule multiplies."""
    named: dict[str, Tensor] = {n: p for n, p in model.named_parameters() if p.requires_grad}
    for rule in c.groups:
        if not any(re.search(rule.match, n) for n in named):
            raise UserError(
                f"optimizer.groups: no parameter matches {rule.match!r}\n  → names look like {next(iter(named))}"
            )
    matrices = {n for n, p in named.items() if ".blocks." in n and p.dim() == 2}
    built: list[Optimizer] = []
    if c.name == "muon":
        rows = {p: model.row_blocks(n) for n, p in named.items() if n in matrices}
        muon = [(n, c.lr, c.weight_decay) for n in matrices]
        built.append(Muon(_groups(named, muon, c), lr=0.0, momentum=c.momentum, row_blocks=rows))
        rest = [(n, c.embedding_lr if n.startswith("embedding") else c.head_lr, 0.0) for n in named.keys() - matrices]
        built.append(_adamw(_groups(named, rest, c), c))
    else:
        decayed = [(n, c.lr, c.weight_decay if p.dim() == 2 else 0.0) for n, p in named.items()]
        built.append(_plain(c, _groups(named, decayed, c)))
    covered = [id(p) for o in built for g in o.param_groups for p in g["params"]]
    assert sorted(covered) == sorted(map(id, named.values())), "a parameter is in no optimizer group, or in two"
    return built


def _groups(
    named: dict[str, Tensor], wanted: Iterable[tuple[str, float | None, float]], c: OptimizerConfig
) -> list[dict]:
    """Parameters of equal (learning rate, weight decay) together, after the recipe's own `groups` rules."""
    together: dict[tuple[float, float], list[Tensor]] = {}
    for name, lr, decay in sorted(wanted):
        assert lr is not None, "the learning rates are filled in when the recipe is resolved"
        for rule in c.groups:
            if re.search(rule.match, name):
                lr = lr * rule.lr_scale
                decay = decay if rule.weight_decay is None else rule.weight_decay
        together.setdefault((lr, decay), []).append(named[name])
    return [{"params": p, "lr": lr, "peak_lr": lr, "weight_decay": decay} for (lr, decay), p in together.items()]


def _adamw(groups: list[dict], c: OptimizerConfig) -> Optimizer:
    return torch.optim.AdamW(groups, lr=0.0, betas=c.betas, eps=c.eps, fused=_fusible(groups))


def _plain(c: OptimizerConfig, groups: list[dict]) -> Optimizer:
    match c.name:
        case "adamw":
            return _adamw(groups, c)
        case "adam":
            return torch.optim.Adam(groups, lr=0.0, betas=c.betas, eps=c.eps, fused=_fusible(groups))
        case "sgd":
            return torch.optim.SGD(groups, lr=0.0, momentum=c.momentum, nesterov=c.nesterov)
        case "adagrad":
            return torch.optim.Adagrad(groups, lr=0.0, eps=c.eps)
        case "adadelta":
            return torch.optim.Adadelta(groups, lr=0.0, eps=c.eps)
        case "adamw_rms":
            return ScaledAdamW(groups, lr=0.0, betas=c.betas, eps=c.eps)
        case "adafactor":
            return torch.optim.Adafactor(groups, lr=0.0)
    raise AssertionError(c.name)


def _fusible(groups: list[dict]) -> bool:
    return all(p.device.type in ("cpu", "cuda") for g in groups for p in g["params"])


def state_tensors(optimizers: list[Optimizer], names: dict[Tensor, str]) -> dict[str, Tensor]:
    """`parameter::key` -> tensor, for safetensors."""
    return {
        f"{names[p]}::{key}": value
        for o in optimizers
        for p, state in o.state.items()
        for key, value in state.items()
        if isinstance(value, Tensor)
    }


def load_state_tensors(optimizers: list[Optimizer], names: dict[Tensor, str], tensors: dict[str, Tensor]) -> None:
    """The inverse of `state_tensors`, onto the parameters' devices. Raises KeyError for tensors of no parameter."""
    by_name: dict[str, tuple[Optimizer, Tensor]] = {
        names[p]: (o, p) for o in optimizers for g in o.param_groups for p in g["params"]
    }
    for full, value in tensors.items():
        name, key = full.split("::")
        optimizer, p = by_name[name]
        state: dict[str, Any] = optimizer.state[p]
        state[key] = value.to(p.device if value.dim() else "cpu" if not _on_device(optimizer) else p.device)


def _on_device(optimizer: Optimizer) -> bool:
    """Fused optimizers keep their step counter beside the parameters, others on the CPU."""
    return bool(optimizer.param_groups[0].get("fused"))
