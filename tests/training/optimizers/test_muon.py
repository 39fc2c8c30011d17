import pytest
import torch

from lmkit.training.optimizers.muon import Muon, orthogonalize


@pytest.mark.parametrize("shape", [(3, 16, 48), (2, 48, 16), (1, 32, 32)])
def test_singular_values_end_near_one(shape):
    m = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    values = torch.linalg.svdvals(orthogonalize(m))
    assert 0.6 < values.min() < values.max() < 1.3


def test_a_step_equals_torchs_muon():
    """torch's own runs in bfloat16, hence the tolerance; decay, momentum and scaling must agree exactly in form."""
    torch.manual_seed(0)
    start, grads = torch.randn(24, 16), [torch.randn(24, 16) for _ in range(3)]
    results = []
    for make in (
        lambda p: Muon([p], lr=0.1, momentum=0.9, weight_decay=0.2),
        lambda p: torch.optim.Muon([p], lr=0.1, momentum=0.9, weight_decay=0.2, nesterov=True, adjust_lr_fn="original"),
    ):
        p = torch.nn.Parameter(start.clone())
        optimizer = make(p)
        for g in grads:
            p.grad = g.clone()
            optimizer.step()
        results.append(p.detach())
    torch.testing.assert_close(*results, rtol=0, atol=0.01)


def test_stacked_matrices_move_as_if_apart():
    """A fused projection of blocks 8 and 4 rows high is orthogonalised block by block."""
    torch.manual_seed(0)
    weights, grad = torch.randn(12, 16), torch.randn(12, 16)
    fused = torch.nn.Parameter(weights.clone())
    fused.grad = grad.clone()
    Muon([fused], lr=0.1, row_blocks={fused: [8, 4]}).step()
    apart = [torch.nn.Parameter(w.clone()) for w in weights.split([8, 4])]
    for p, g in zip(apart, grad.split([8, 4]), strict=True):
        p.grad = g.clone()
    Muon(apart, lr=0.1).step()
    torch.testing.assert_close(fused, torch.cat(apart))
