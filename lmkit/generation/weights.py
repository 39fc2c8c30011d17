"""Weights in the form in which a CPU writes fastest: the model computes the same, or almost the same with 8 bits.

A text is written a token at a time, so that every product is one row, or a few, with a matrix that is read from memory
as a whole; its time is that of the reading."""

import torch
from torch import Tensor, nn

from lmkit.base.errors import ModelError, UserError
from lmkit.model.heads import Head
from lmkit.model.transformer import Transformer


def arrange(model: Transformer) -> None:
    """Stores matrices column by column where a product of one row with them is then faster, in the place of the model's
    own. The model computes the same with them, but trains slower.

    On the CPUs measured those with more rows than columns are read up to 1.7 times as fast, others slower."""
    if model.embedding.weight.device.type != "cpu":
        return
    for module in model.modules():
        if isinstance(module, nn.Linear | Head):
            rows, columns = module.weight.shape
            if rows >= columns:
                module.weight.data = module.weight.data.t().contiguous().t()


EDGE = 1.001  # a little above 1, so that rounding of floats brings no number beyond it
STEP = 2 * EDGE / 127  # between two numbers of 7 bits from -EDGE to EDGE


class Int8Linear(nn.Module):
    """A linear layer with weights of 8 bits, and a scale for each output (Dettmers et al. 2022, LLM.int8(), 3.1).

    Its input is rounded as well, to two numbers of 7 bits with a scale for each row: sums of products stay within the
    16 bits in which CPUs without VNNI hold them. One such number alone cost a Llama of 135M 3% in bits per byte; the
    second is a second row of a product whose time is that of reading the weights."""

    def __init__(self, weight: Tensor, bias: Tensor | None):
        super().__init__()
        scales = weight.abs().amax(1).clamp(min=1e-12).double() / 127
        zeros = torch.zeros(len(weight), dtype=torch.long)
        rounded = torch.quantize_per_channel(weight.float(), scales, zeros, 0, torch.qint8)
        self.packed, self.bias = torch.ops.quantized.linear_prepack(rounded, None), bias
        # torch rounds a whole batch with one scale, from its largest and its smallest number. This row has both, so
        # that no row depends on the others.
        self.fence = torch.zeros(1, weight.size(1))
        self.fence[0, :2] = torch.tensor([EDGE, -EDGE])

    def forward(self, x: Tensor) -> Tensor:
        """Returns (..., O) in float32 for x (..., I)."""
        rows = x.flatten(0, -2).float()
        n = len(rows)
        largest = torch.linalg.vector_norm(rows, torch.inf, 1, keepdim=True).clamp_(min=1e-30)
        scaled = rows * (1 / STEP / largest)
        both = self.fence.new_empty(2 * n + 1, rows.size(1))
        coarse = torch.round(scaled, out=both[:n]).clamp_(-63, 63)
        torch.sub(scaled, coarse, out=both[n:-1]).mul_(2)  # from -1 to 1
        coarse.mul_(STEP)
        both[-1:] = self.fence
        y = torch.ops.quantized.linear_dynamic.default(both, self.packed, True)
        out = y[:n].add_(y[n:-1], alpha=STEP / 2).mul_(largest)
        return (out if self.bias is None else out.add_(self.bias)).view(*x.shape[:-1], -1)


def quantise(model: Transformer) -> None:
    """Gives the model weights of 8 bits in all its linear layers and its head, for writing on a CPU.

    Embeddings, norms and attention stay as they are. Raises ModelError for a model on another device, or where torch
    has no such products on this CPU."""
    device = model.embedding.weight.device.type
    if device != "cpu" or torch.backends.quantized.engine not in ("x86", "fbgemm"):
        place = device if device != "cpu" else "this CPU"
        raise ModelError(f"weights of 8 bits need an x86 CPU, and the model is on {place}\n  → leave out --quant")
    for module in list(model.modules()):
        for name, part in module.named_children():
            if isinstance(part, nn.Linear):
                setattr(module, name, Int8Linear(part.weight.data, part.bias))
            elif isinstance(part, Head):
                part.product = Int8Linear(part.weight.data, part.word_bias)


def prepare(model: Transformer, quant: str | None) -> None:
    """Arranges the weights of a model that only writes from now on, or gives it such of 8 bits with quant `int8`.

    Raises UserError for another `quant`, and what `quantise` raises."""
    if quant not in (None, "int8"):
        raise UserError(
            f"--quant {quant!r}\n  allowed: int8; `lmkit export --to gguf --quant` knows more for llama.cpp"
        )
    if quant:
        quantise(model)
    else:
        arrange(model)
