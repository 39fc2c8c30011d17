import pytest
import torch

from lmkit.base.errors import UserError
from lmkit.model.initial import init_weights
from lmkit.model.transformer import Transformer
from lmkit.recipe.defaults import expand_pretraining
from lmkit.recipe.pretraining import Recipe
from lmkit.training.optimizers.build import build_optimizers, load_state_tensors, state_tensors
from lmkit.training.optimizers.scaled_adamw import ScaledAdamW
from lmkit.training.schedules import multiplier

NAMES = ["muon", "adamw", "adam", "sgd", "adagrad", "adadelta", "adafactor", "adamw_rms"]


def make(family: str = "gpt2", **optimizer):
    tree = {
        "model": {"family": family, "depth": 1, "context": 16, "vocab_size": 64},
        "data": {"train": "x"},
        "optimizer": optimizer,
    }
    recipe = Recipe.model_validate(expand_pretraining(tree))
    model = Transformer(recipe.model)
    init_weights(model)
    return model, build_optimizers(model, recipe.optimizer)


def step(model, optimizers):
    tokens = torch.randint(0, 64, (2, 16), generator=torch.Generator().manual_seed(0))
    model.head(model(tokens)).logsumexp(-1).sum().backward()
    for o in optimizers:
        for group in o.param_groups:
            group["lr"] = group["peak_lr"]
        o.step()
        o.zero_grad()


@pytest.mark.parametrize("name", NAMES)
def test_state_survives_a_round_trip_bit_for_bit(name):
    """Two steps, save, load into a fresh optimizer, one more step: as three steps without the break."""
    settings = {"name": name, "momentum": 0.9}
    straight, optimizers = make(**settings)
    for _ in range(2):
        step(straight, optimizers)
    saved = {k: v.clone() for k, v in state_tensors(optimizers, {p: n for n, p in straight.named_parameters()}).items()}
    resumed, fresh = make(**settings)
    resumed.load_state_dict(straight.state_dict())
    load_state_tensors(fresh, dict(resumed.named_parameters()), saved, {})
    for model, opts in ((straight, optimizers), (resumed, fresh)):
        step(model, opts)
    assert saved
    assert all(torch.equal(a, b) for a, b in zip(straight.parameters(), resumed.parameters(), strict=True))


def test_decay_is_for_matrices_and_rules_make_exceptions():
    rules = [{"match": "embedding", "lr_scale": 0.5, "weight_decay": 0.0}]
    model, (optimizer,) = make(name="adamw", lr=0.1, weight_decay=0.3, groups=rules)
    got = {id(p): (g["peak_lr"], g["weight_decay"]) for g in optimizer.param_groups for p in g["params"]}
    for name, p in model.named_parameters():
        want = (0.05, 0.0) if "embedding" in name else (0.1, 0.3 if p.dim() == 2 else 0.0)
        assert got[id(p)] == want, name


def test_a_rule_that_matches_nothing_is_an_error():
    with pytest.raises(UserError, match="no parameter matches 'embeding'"):
        make(groups=[{"match": "embeding"}])


def test_scaled_adamw_is_adamw_in_units_of_each_tensor():
    """Against torch's own AdamW, whose learning rate is set to lr * max(1e-3, RMS) of one tensor before each step."""
    torch.manual_seed(0)
    for start in (torch.randn(6, 5) * 3, torch.zeros(7)):
        ours, theirs = (start.clone().requires_grad_() for _ in range(2))
        settings = {"betas": (0.8, 0.9), "eps": 1e-6, "weight_decay": 0.1}
        mine, reference = ScaledAdamW([ours], lr=0.02, **settings), torch.optim.AdamW([theirs], lr=0.0, **settings)
        for _ in range(5):
            ours.grad = torch.randn(start.shape)
            theirs.grad = ours.grad.clone()
            reference.param_groups[0]["lr"] = 0.02 * max(1e-3, float(theirs.detach().square().mean().sqrt()))
            mine.step()
            reference.step()
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-7)


def test_the_2017_transformer_follows_its_schedule():
    tree = {
        "model": {"preset": "transformer-base"}, "data": {"train": "x", "target": "de"},
        "optimizer": {"name": "adam"}, "schedule": {"name": "inverse_sqrt", "warmup": "4000 steps"},
        "train": {"budget": "100k steps", "batch": 25_000},
    }  # fmt: skip
    recipe = Recipe.model_validate(expand_pretraining(tree))
    assert (recipe.optimizer.betas, recipe.optimizer.eps) == ((0.9, 0.98), 1e-9)
    for n in (1, 100, 4000, 4001, 50_000):
        rate = recipe.optimizer.lr * multiplier(recipe.schedule, n - 1, n / 1e5)
        assert rate == pytest.approx(512**-0.5 * min(n**-0.5, n * 4000**-1.5), rel=2e-3)


def test_adafactor_with_inverse_sqrt_is_t5s():
    """1 / sqrt(max(n, 10,000)), here after a linear warm-up instead of a plateau."""
    tree = {
        "model": {"preset": "t5-small"}, "data": {"train": "x"}, "optimizer": {"name": "adafactor"},
        "schedule": {"name": "inverse_sqrt", "warmup": "10000 steps"}, "train": {"budget": "1M steps", "batch": 65536},
    }  # fmt: skip
    recipe = Recipe.model_validate(expand_pretraining(tree))
    for n in (10_000, 40_000, 1_000_000):
        assert recipe.optimizer.lr * multiplier(recipe.schedule, n - 1, n / 1e6) == pytest.approx(n**-0.5)
