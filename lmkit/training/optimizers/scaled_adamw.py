"""AdamW whose step is in units of each tensor's own size, as in Adafactor; with it, AdamW can train T5 (nanoT5)."""

from collections.abc import Callable
from typing import Any

import torch

from lmkit.model.sharding import local, whole

SMALLEST = 1e-3  # the smallest size, so that a tensor of zeros can change (Shazeer & Stern 2018, algorithm 4)


class ScaledAdamW(torch.optim.Optimizer):
    """AdamW with the step lr * max(1e-3, RMS(parameter)) * Adam's step; weight decay is decoupled, and scaled too."""

    def __init__(
        self, params: Any, lr: float, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8,
        weight_decay: float = 0.0,
    ):  # fmt: skip
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            (beta1, beta2), params = group["betas"], [p for p in group["params"] if p.grad is not None]
            if not params:
                continue
            for p in params:
                if not self.state[p]:
                    self.state[p]["step"] = torch.zeros(())
                    self.state[p]["exp_avg"], self.state[p]["exp_avg_sq"] = torch.zeros_like(p), torch.zeros_like(p)
            grads, states = [local(p.grad) for p in params], [self.state[p] for p in params]
            first, second = ([local(s[key]) for s in states] for key in ("exp_avg", "exp_avg_sq"))
            torch._foreach_lerp_(first, grads, 1 - beta1)
            torch._foreach_mul_(second, beta2)
            torch._foreach_addcmul_(second, grads, grads, 1 - beta2)
            roots = torch._foreach_sqrt(second)
            for p, state, m, root in zip(params, states, first, roots, strict=True):
                state["step"] += 1
                n = float(state["step"])
                size = whole(p.norm()) / p.numel() ** 0.5  # stays on the device, so the CPU need not wait
                weight = local(p)
                root.div_((1 - beta2**n) ** 0.5).add_(group["eps"])
                update = (m / (1 - beta1**n)).div_(root).add_(weight, alpha=group["weight_decay"])
                weight.sub_(update * (group["lr"] * size.clamp(min=SMALLEST)))
