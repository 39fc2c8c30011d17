"""Builds torch optimizers from a recipe's `optimizer:` section; each parameter is in exactly one of them."""

import re
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from lmkit.base.errors import UserError
from lmkit.model.sharding import fill_tensor, is_shared_out
from lmkit.model.transformer import Transformer
from lmkit.recipe.pretraining import OptimizerConfig
from lmkit.training.optimizers.muon import Muon, Spread, alone
from lmkit.training.optimizers.scaled_adamw import ScaledAdamW


def build_optimizers(model: Transformer, c: OptimizerConfig, spread: Spread = alone) -> list[Optimizer]:
    """Returns the optimizers of all parameters that are not frozen.

    Muon gets the matrices inside blocks, and AdamW the rest; any other optimizer gets everything. Weight decay applies
    to matrices only. Each group has `peak_lr`, which the schedule multiplies. spread: how several processes share
    Muon's work. Raises UserError for a rule of `optimizer.groups` that matches no parameter."""
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
        moved = {named[n]: r for n, r in model.moved_rows.items() if n in matrices}
        groups = _groups(named, muon, c)
        built.append(Muon(groups, lr=0.0, momentum=c.momentum, row_blocks=rows, moved_rows=moved, spread=spread))
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
    """Returns groups of parameters with the same learning rate and weight decay, after the recipe's rules in `groups`.

    wanted: name, learning rate and weight decay of each parameter, before these rules."""
    together: dict[tuple[float, float, Any], list[Tensor]] = {}
    for name, lr, decay in sorted(wanted):
        assert lr is not None, "the learning rates are filled in when the recipe is resolved"
        for rule in c.groups:
            if re.search(rule.match, name):
                lr = lr * rule.lr_scale
                decay = decay if rule.weight_decay is None else rule.weight_decay
        mesh = getattr(named[name], "device_mesh", None)  # torch's fused steps need tensors of one mesh
        together.setdefault((lr, decay, mesh), []).append(named[name])
    return [{"params": p, "lr": lr, "peak_lr": lr, "weight_decay": decay} for (lr, decay, _), p in together.items()]


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
    """Returns the tensors of the optimizers' state for safetensors, by names such as `parameter::key`."""
    return {
        f"{names[p]}::{key}": value
        for o in optimizers
        for p, state in o.state.items()
        for key, value in state.items()
        if isinstance(value, Tensor)
    }


def load_state_tensors(
    optimizers: list[Optimizer], named: dict[str, Tensor], tensors: dict[str, Tensor], moved: dict[str, Tensor]
) -> None:
    """Puts what `state_tensors` returned back into the optimizers, on the parameters' devices and shards.

    moved: as `Transformer.moved_rows`. Raises KeyError for tensors of an unknown parameter."""
    owner = {id(p): o for o in optimizers for g in o.param_groups for p in g["params"]}
    for full, value in tensors.items():
        name, key = full.split("::")
        p = named[name]
        optimizer = owner[id(p)]
        state: dict[str, Any] = optimizer.state[p]
        if key == "step":  # fused optimizers need it on the parameters' device, others on the CPU
            state[key] = value.reshape(()).to(p.device if optimizer.param_groups[0].get("fused") else "cpu")
        elif is_shared_out(value) or value.shape != p.shape:
            state[key] = value.to(p.device)
        else:
            state[key] = torch.zeros_like(p, dtype=value.dtype)
            fill_tensor(state[key], value, moved.get(name))
