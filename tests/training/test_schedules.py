import pytest
import torch
from torch.optim.lr_scheduler import CosineAnnealingLR

from lmkit.recipe.pretraining import ScheduleConfig
from lmkit.training.schedules import Horizon, horizon, multiplier

STEPS = 100


def curve(**settings) -> list[float]:
    c = ScheduleConfig(**settings)
    return [multiplier(c, s, s / STEPS) for s in range(STEPS)]


def test_warmup_rises_linearly_to_the_peak():
    for name in ("wsd", "cosine", "linear", "constant", "inverse_sqrt"):
        assert curve(name=name, warmup="10 steps")[:9] == pytest.approx([(s + 1) / 10 for s in range(9)])


def test_wsd_is_flat_then_linear_to_the_floor():
    c = curve(name="wsd", warmup="0 steps", decay=0.4, floor=0.1)
    assert c[:61] == [1.0] * 61
    assert c[80] == pytest.approx(0.1 + 0.9 * 0.5)
    assert c[99] == pytest.approx(0.1 + 0.9 * 0.01 / 0.4)


def test_cosine_equals_torchs():
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    theirs = CosineAnnealingLR(optimizer, STEPS, eta_min=0.1)
    for rate in curve(name="cosine", warmup="0 steps", floor=0.1):
        assert rate == pytest.approx(optimizer.param_groups[0]["lr"], abs=1e-6)
        optimizer.step()
        theirs.step()


def test_inverse_sqrt_is_vaswanis_rule_scaled_to_its_peak():
    c = curve(name="inverse_sqrt", warmup="16 steps")
    rule = [min(n**-0.5, n * 16**-1.5) for n in range(1, STEPS + 1)]
    assert c == pytest.approx([r / max(rule) for r in rule])


def test_horizons():
    assert horizon("2000 steps", 1024, 4, 99).steps == 2000
    assert horizon("10k tokens", 1024, 4, 99).steps == 10  # 9.8 batches
    assert horizon("2 epochs", 1024, 4, 99).steps == 50  # 49.5 batches
    assert horizon("1.5 min", 1024, 4, 99) == Horizon(None, 90.0)
