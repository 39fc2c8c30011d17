"""The learning rate as a multiple of its peak, and the horizon of a run in steps, tokens, epochs or time."""

import math
from dataclasses import dataclass

from lmkit.base.units import count, seconds, split_quantity
from lmkit.recipe.pretraining import ScheduleConfig

WARMUP_AT_MOST = 0.2  # the largest share of the horizon that a warm-up in steps may take


def multiplier(c: ScheduleConfig, step: int, progress: float) -> float:
    """Returns the learning rate, divided by its peak, for the step about to be taken.

    step: steps already done. progress: share of the horizon already done, in [0, 1). `wsd` is warm-up, stable, linear
    decay (Hu et al. 2024); `inverse_sqrt` is Vaswani et al. 2017, 5.3, scaled to peak at the end of the warm-up. A
    warm-up in steps ends after a fifth of the horizon at the latest.
    """
    number, unit = split_quantity(c.warmup)
    share = unit == "%"
    by_steps = lambda: max((step + 1) / number, progress / WARMUP_AT_MOST)
    warmed = (progress * 100 / number if share else by_steps()) if number else 1.0
    if warmed < 1:
        return warmed
    start = number / 100 if share else 0.0
    remaining = min(1.0, (1 - progress) / (1 - start))  # share that is left of the time after the warm-up
    match c.name:
        case "constant":
            return 1.0
        case "inverse_sqrt":
            return warmed**-0.5
        case "linear":
            shape = remaining
        case "cosine":
            shape = 0.5 * (1 + math.cos(math.pi * (1 - remaining)))
        case "wsd":
            shape = min(1.0, (1 - progress) / c.decay) if c.decay else 1.0
    return c.floor + (1 - c.floor) * shape


@dataclass(frozen=True)
class Horizon:
    """The end of a run: after `steps`, or after `seconds` of training."""

    steps: int | None
    seconds: float | None = None


def horizon(budget: str, batch_tokens: int, batch_rows: int, num_rows: int) -> Horizon:
    """Returns the horizon of a budget as `2000 steps`, `10M tokens`, `2 epochs` or `3 min`.

    A step takes `batch_rows` of the `num_rows` of an epoch."""
    number, unit = split_quantity(budget)
    match unit:
        case "" | "step":
            return Horizon(count(budget, "step"))
        case "token":
            return Horizon(math.ceil(number / batch_tokens))
        case "epoch":
            return Horizon(math.ceil(number * num_rows / batch_rows))
        case _:
            return Horizon(None, seconds(budget))
