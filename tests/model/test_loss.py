import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from lmkit.model import kernels
from lmkit.model.kernels import cpu_attention, dropout, rms_norm, squared_relu
from lmkit.model.loss import CHUNK, IGNORE, head_loss, label_log_probs
from lmkit.objectives.causal_lm import PromptedLM


def fairseq_smoothed(logits, labels, epsilon):
    """fairseq's label_smoothed_nll_loss, written from its definition: eps / (V - 1) on every other word."""
    logprobs = F.log_softmax(logits, dim=-1)
    nll, spread = -logprobs.gather(1, labels[:, None]).sum(), -logprobs.sum()
    each = epsilon / (logits.size(1) - 1)
    return (1 - epsilon - each) * nll + each * spread


@pytest.mark.parametrize(("softcap", "biased", "smoothing"), [
    (None, False, 0.0), (15.0, False, 0.0), (None, True, 0.0), (None, True, 0.1), (None, False, 0.3),
])  # fmt: skip
def test_head_loss_and_gradients_equal_torch(softcap, biased, smoothing):
    """More rows than a chunk; the sum is divided outside, as the loop does."""
    torch.manual_seed(0)
    hidden, weight, bias = torch.randn(1165, 32), torch.randn(97, 32), torch.randn(97)
    labels = torch.randint(0, 97, (1165,))
    results = []
    for fused in (True, False):
        h, w, b = (t.clone().requires_grad_() for t in (hidden, weight, bias))
        if fused:
            loss, hits, nats = head_loss(h, w, labels, softcap, b if biased else None, smoothing)
        else:
            logits = F.linear(h, w, b if biased else None)
            logits = logits if softcap is None else softcap * torch.tanh(logits / softcap)
            nats = F.cross_entropy(logits, labels, reduction="sum").detach()
            loss = fairseq_smoothed(logits, labels, smoothing)
            hits = (logits.argmax(-1) == labels).sum()
        (loss / 1165).backward()
        results.append((loss, hits.float(), nats, h.grad, w.grad) + ((b.grad,) if biased else ()))
    for got, want in zip(*results, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)


def plain_log_probs(hidden, weight, labels, softcap, bias):
    logits = F.linear(hidden, weight, bias)
    logits = logits if softcap is None else softcap * torch.tanh(logits / softcap)
    return F.log_softmax(logits.float(), dim=-1).gather(1, labels[:, None]).squeeze(1)


def rows_and_gradients(log_probs, precision, softcap, biased):
    """Sums over seven rows, each of which counts differently in what is minimised, and the gradient of every input."""
    torch.manual_seed(0)
    inputs = [torch.randn(1165, 32), 0.5 * torch.randn(97, 32), *([torch.randn(97)] if biased else [])]
    labels, owner = torch.randint(0, 97, (1165,)), torch.randint(0, 7, (1165,))
    hidden, weight, *bias = leaves = [t.requires_grad_() for t in inputs]
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        each = log_probs(hidden, weight, labels, softcap, bias[0] if biased else None)
    assert each.dtype == torch.float32 and each.shape == (1165,)
    sums = torch.zeros(7).index_add(0, owner, each)
    F.logsigmoid(sums / 500 * torch.tensor([3.0, -2.0, 1.0, 0.0, 0.5, -0.1, 2.0])).sum().backward()  # as DPO's
    return [sums.detach(), *(leaf.grad for leaf in leaves)]


@pytest.mark.parametrize(("softcap", "biased"), [(None, False), (15.0, False), (None, True), (15.0, True)])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_log_probs_of_rows_and_their_gradients_equal_torch(precision, softcap, biased):
    """More rows than two chunks. In bf16 both are as far from float32 as its eight bits say."""
    got = rows_and_gradients(label_log_probs, precision, softcap, biased)
    want = rows_and_gradients(plain_log_probs, "fp32", softcap, biased)
    if precision == "fp32":
        for a, b in zip(got, want, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
        return
    theirs = rows_and_gradients(plain_log_probs, "bf16", softcap, biased)
    for a, b, exact in zip(got, theirs, want, strict=True):
        assert (a - exact).norm() < max(1.5 * (b - exact).norm(), 2e-3 * exact.norm())


class Largest(TorchDispatchMode):
    """Remembers how many numbers the largest tensor has that is made inside."""

    numbers = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        for t in made if isinstance(made, tuple | list) else [made]:
            if isinstance(t, torch.Tensor):
                self.numbers = max(self.numbers, t.numel())
        return made


@pytest.mark.parametrize(("loss", "fits"), [
    (lambda *given: head_loss(*given).loss, True),
    (lambda *given: label_log_probs(*given).sum(), True),
    (lambda *given: plain_log_probs(*given, None, None).sum(), False),
], ids=["head_loss", "label_log_probs", "plain"])  # fmt: skip
def test_no_more_than_a_chunk_of_logits_ever_exists(loss, fits):
    hidden, weight = torch.randn(4 * CHUNK, 8, requires_grad=True), torch.randn(301, 8, requires_grad=True)
    with Largest() as largest:
        loss(hidden, weight, torch.randint(0, 301, (4 * CHUNK,))).backward()
    assert (largest.numbers <= CHUNK * 301) == fits


@pytest.mark.parametrize("family", ["gpt2", "bert", "t5"])
def test_a_model_says_how_likely_each_row_of_a_batch_is(family):
    """Rows of several lengths, one with nothing to score. T5's and GPT-2's heads share the embedding's weights, whose
    gradient has both parts; BERT's has a layer and a bias."""
    from tests.model.families import ours, reference

    torch.manual_seed(0)
    lengths, model = (9, 4, 6), ours(reference(family)).eval()
    examples = [
        {"tokens": np.arange(n) + 5, "labels": np.where(np.arange(n) < 2, IGNORE, np.arange(n) + 6), "documents": [0]}
        for n in lengths
    ]
    examples[2]["labels"][:] = IGNORE
    batch = PromptedLM(pad=0).collate(examples)
    results = []
    for chunked in (True, False):
        model.zero_grad()
        states = model(batch.tokens, targets=batch.tokens)
        if chunked:
            each = model.word_log_probs(states, batch.labels)
        else:
            scored = batch.labels != IGNORE
            each = F.log_softmax(model.head(states), -1).gather(2, batch.labels.where(scored, 0)[..., None])[..., 0]
            each = each * scored
        sums = each.sum(1)
        (sums * torch.tensor([1.0, -0.5, 2.0])).sum().backward()
        results.append([each, sums, *(p.grad for p in model.parameters() if p.grad is not None)])
    assert results[0][1][2] == 0
    for got, want in zip(*results, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


def test_only_scored_positions_meet_the_head():
    from tests.model.families import ours, reference

    model = ours(reference("bert"))
    states, labels = torch.randn(2, 40, 32), torch.full((2, 40), IGNORE)
    labels[0, 3], labels[1, 7:9] = 5, 6
    met = []
    model.head.dense.register_forward_hook(lambda module, given, made: met.append(given[0].shape))
    scores = model.head.loss(states, labels)
    assert met == [(3, 32)]
    wanted = F.cross_entropy(model.head(states).flatten(0, 1), labels.flatten(), reduction="sum")
    torch.testing.assert_close(scores.loss, wanted, rtol=1e-5, atol=1e-6)


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


@pytest.mark.parametrize("rate", [0.0, 0.4])
@pytest.mark.parametrize("scale", [1.0, 0.25])
@pytest.mark.parametrize(("rows", "in_cache"), [(1, 2**18), (3, 2**18), (1, 1), (3, 1)])
def test_attention_of_the_cpu_equals_torch(rows, in_cache, scale, rate, monkeypatch):
    """With dropout, torch is given what was kept: values that name the key make it visible."""
    monkeypatch.setattr(kernels, "IN_CACHE", in_cache)
    torch.manual_seed(0)
    parts = [torch.randn(3, 5, 2, 8).transpose(1, 2), torch.randn(3, 2, 7, 8), torch.randn(3, 2, 7, 8)]
    bias = torch.randn(rows, 2, 5, 7).masked_fill(torch.rand(rows, 1, 5, 7) < 0.2, float("-inf"))
    bias[..., 0] = 0.5
    g, results = torch.randn(3, 2, 5, 8), []
    torch.manual_seed(1)
    seen = cpu_attention(*parts[:2], torch.eye(7).expand(3, 2, 7, 7), bias, rate, scale)  # (3, 2, 5, 7): the weights
    kept = (seen > 0).float() / (1 - round(rate * 2**16) / 2**16)
    assert not rate or 0.25 < (seen == 0)[(bias > -math.inf).expand_as(seen)].float().mean() < 0.5

    def ours(q, k, v, b):
        torch.manual_seed(1)
        return cpu_attention(q, k, v, b, rate, scale)

    def theirs(q, k, v, b):
        return (torch.softmax(q @ k.mT * scale + b, -1) * kept) @ v

    for f in (ours, theirs):
        leaves = [t.clone().requires_grad_() for t in (*parts, bias)]
        y = f(*leaves)
        y.backward(g)
        results.append((y, *(leaf.grad for leaf in leaves)))
    for got, want in zip(*results, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)
    if not rate:
        want = F.scaled_dot_product_attention(*parts, bias, scale=scale)
        torch.testing.assert_close(results[0][0], want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("shape", [(1, 1, 5, 7), (3, 1, 1, 7), (3, 1, 5, 7)])
def test_attention_of_the_cpu_reads_masks_as_torch_does(shape):
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 2, 5, 8), torch.randn(3, 2, 7, 8), torch.randn(3, 2, 7, 8)
    mask = torch.rand(shape) < 0.6
    mask[..., 0] = True
    want = F.scaled_dot_product_attention(q, k, v, mask)
    torch.testing.assert_close(cpu_attention(q, k, v, mask, 0.0, 8**-0.5), want, rtol=1e-5, atol=1e-6)


def test_attention_of_the_cpu_in_bf16_scores_in_float32():
    """Scores of 20 and more: rounded to bf16 they would be off by a tenth, and so would the weights."""
    torch.manual_seed(0)
    q, k, v = (torch.randn(3, 2, 9, 16).bfloat16() for _ in range(3))
    bias = torch.randn(1, 2, 9, 9)
    leaves = [t.clone().requires_grad_() for t in (q, k, v, bias)]
    got = cpu_attention(*leaves, 0.0, 2.0)
    got.sum().backward()
    full = [t.float().requires_grad_() for t in (q, k, v, bias)]
    want = F.scaled_dot_product_attention(*full, scale=2.0)
    want.sum().backward()
    assert got.dtype == torch.bfloat16 and (q.float() @ k.float().mT * 2).abs().max() > 20
    torch.testing.assert_close(got.float(), want, rtol=0.01, atol=0.02)
    for a, b in zip(leaves, full, strict=True):
        assert (a.grad.float() - b.grad).norm() < 0.02 * b.grad.norm()


def test_dropout_keeps_what_it_should_and_says_so_to_its_gradient():
    """The share, the scale, independence of neighbours; the gradient goes where the value came from."""
    torch.manual_seed(0)
    x = torch.full((200, 1001), 2.0, requires_grad=True)
    y = dropout(x, 0.1)
    y.sum().backward()
    dropped = (y == 0).double()
    assert abs(dropped.mean() - 0.1) < 4 * (0.09 / x.numel()) ** 0.5
    assert torch.equal(y.detach() / 2, x.grad)
    assert set(x.grad.unique().tolist()) == {0.0, y.max().item() / 2}
    assert y.max().item() == pytest.approx(2 / 0.9, rel=1e-4)
    for lag in range(1, 9):  # 1-3: out of one draw of 64 bits
        both = (dropped.flatten()[lag:] * dropped.flatten()[:-lag]).mean()
        assert abs(both - 0.01) < 5 * (0.0099 / x.numel()) ** 0.5
    torch.manual_seed(0)
    assert torch.equal(dropout(x, 0.1), y)
    assert torch.equal(dropout(x, 0.0), x)
