"""Muon (Jordan et al. 2024): momentum whose update is orthogonalised, for the matrices inside the blocks.

torch.optim.Muon runs its Newton-Schulz iterations in bfloat16, one matrix at a time, which is 28 to 50 times slower on
a CPU without bf16. Here matrices of equal shape are batched, in float32 on a CPU and in bf16 on a GPU.
"""

from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from lmkit.model.sharding import fill_tensor, like, local, whole

COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # Jordan et al.'s polynomial: steep at 0, singular values end in 0.7..1.2
ITERATIONS = 5


def orthogonalize(m: Tensor) -> Tensor:
    """Returns the matrices m (n, rows, columns) with singular values near 1, by Newton-Schulz iterations."""
    dtype = torch.bfloat16 if m.is_cuda else torch.float32
    wide = m.size(1) <= m.size(2)
    x = (m if wide else m.mT).to(dtype)
    x = x / (x.flatten(1).norm(dim=1)[:, None, None] + 1e-7)
    a, b, c = COEFFICIENTS
    for _ in range(ITERATIONS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x if wide else x.mT).to(m.dtype)


Spread = Callable[[Callable[[Tensor], Tensor], Tensor], Tensor]  # applies a function to rows, on one process or several


def alone(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Returns `function` of x (n, ...), computed by this process alone."""
    return function(x)


class Muon(torch.optim.Optimizer):
    """Muon for matrices. The step is lr * sqrt(max(1, rows / columns)); weight decay is decoupled.

    params: matrices. row_blocks: for each parameter, the number of rows of each matrix that is stacked in it (fused
    projections); these are orthogonalised one by one. Where each process holds a part of a matrix, the parts are
    gathered first, and with `spread` each process orthogonalises a share of the matrices. moved_rows: for each
    parameter, where its rows were before tensor parallelism moved them."""

    def __init__(
        self, params: Any, lr: float, momentum: float = 0.95, weight_decay: float = 0.0,
        row_blocks: Mapping[Any, list[int]] | None = None, moved_rows: Mapping[Any, Tensor] | None = None,
        spread: Spread = alone,
    ):  # fmt: skip
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})
        self.row_blocks, self.moved_rows, self.spread = dict(row_blocks or {}), dict(moved_rows or {}), spread

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            if not params:
                continue
            for p in params:
                if "momentum" not in self.state[p]:
                    self.state[p]["momentum"] = torch.zeros_like(p)
            grads, weights = [local(p.grad) for p in params], [local(p) for p in params]
            buffers = [local(self.state[p]["momentum"]) for p in params]
            torch._foreach_lerp_(buffers, grads, 1 - group["momentum"])
            updates = list(torch._foreach_lerp(grads, buffers, group["momentum"]))  # Nesterov
            self._orthogonalize_all(params, updates)
            torch._foreach_mul_(weights, 1 - group["lr"] * group["weight_decay"])
            torch._foreach_add_(weights, updates, alpha=-group["lr"])

    def _orthogonalize_all(self, params: list[Tensor], updates: list[Tensor]) -> None:
        """Orthogonalises the updates in place, all matrices of one shape as one batch.

        updates: the parts that this process holds."""
        shared = [like(p, u) for p, u in zip(params, updates, strict=True)]
        wholes = [whole(u, self.moved_rows.get(p)) for p, u in zip(params, shared, strict=True)]
        by_shape: dict[tuple[int, int], list[Tensor]] = defaultdict(list)
        for p, update in zip(params, wholes, strict=True):
            for part in update.split(self.row_blocks.get(p, [p.size(0)])):
                by_shape[part.size(0), part.size(1)].append(part)
        for (rows, columns), parts in by_shape.items():
            scaled = self.spread(orthogonalize, torch.stack(parts)) * max(1.0, rows / columns) ** 0.5
            torch._foreach_copy_(parts, list(scaled.unbind()))
        for p, update, full in zip(params, shared, wholes, strict=True):
            if update is not full:
                fill_tensor(update, full, self.moved_rows.get(p))
