import pytest
import torch
import torch.nn.functional as F

from lmkit.model.kernels import rms_norm, squared_relu
from lmkit.model.loss import IGNORE, head_loss


@pytest.mark.parametrize("softcap", [None, 15.0])
def test_head_loss_and_gradients_equal_torch(softcap):
    """More rows than a chunk, some unscored; the sum is divided outside, as the loop does."""
    torch.manual_seed(0)
    hidden, weight = torch.randn(2, 600, 32), torch.randn(97, 32)
    labels = torch.randint(0, 97, (2, 600))
    labels[0, 5:40] = IGNORE
    results = []
    for fused in (True, False):
        h, w = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
        if fused:
            loss, hits = head_loss(h, w, labels, softcap)
        else:
            logits = F.linear(h, w)
            logits = logits if softcap is None else softcap * torch.tanh(logits / softcap)
            loss = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum", ignore_index=IGNORE)
            hits = ((logits.argmax(-1) == labels) & (labels != IGNORE)).sum()
        (loss / 1165).backward()
        results.append((loss, hits.float(), h.grad, w.grad))
    for got, want in zip(*results, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("own, theirs", [
    (lambda x: rms_norm(x, 1e-6), lambda x: F.rms_norm(x, (24,), None, 1e-6)),
    (squared_relu, lambda x: F.relu(x).square()),
], ids=["rms_norm", "squared_relu"])  # fmt: skip
def test_kernels_and_their_gradients_equal_torch(own, theirs):
    torch.manual_seed(0)
    x, g = torch.randn(5, 7, 24), torch.randn(5, 7, 24)
    results = []
    for f in (own, theirs):
        leaf = x.clone().requires_grad_()
        y = f(leaf)
        y.backward(g)
        results.append((y, leaf.grad))
    for got, want in zip(*results, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)
