"""Weights in the form in which a CPU writes fastest: the model computes the same, or almost the same with 8 bits.

A text is written a token at a time, so that every product is one row, or a few, with a matrix that is read from memory
as a whole; its time is that of the reading."""

import threading
from typing import Any

import torch
from torch import Tensor, nn

from lmkit.base.errors import ModelError, UserError
from lmkit.model.heads import Head
from lmkit.model.transformer import Transformer


def arrange(model: Transformer) -> None:
    """Stores matrices column by column where a product of one row with them is then faster, in the place of the model's
    own. The model computes the same with them, but trains slower.

    On the CPUs measured those with more rows than columns are read up to 1.9 times as fast, others slower."""
    for module in model.modules():
        if isinstance(module, nn.Linear | Head):
            rows, columns = module.weight.shape
            if rows >= columns:
                module.weight.data = module.weight.data.t().contiguous().t()


class PackedLinear(nn.Module):
    """A linear layer with its weight in the order in which oneDNN multiplies a few rows with it: on the CPUs measured 2
    to 64 rows are 1.2 to 1.9 times as fast as by `F.linear`. The numbers are the same, but for rounding."""

    def __init__(self, weight: Tensor, bias: Tensor | None, packed: Tensor | None = None):
        """packed: the weight in that order, where it is there already."""
        super().__init__()
        self.packed, self.bias = packed, bias
        if packed is None:
            self.packed = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), None)

    def forward(self, x: Tensor) -> Tensor:
        """Returns (..., O) for x (..., I)."""
        return torch.ops.mkldnn._linear_pointwise.default(x, self.packed, self.bias, "none", [], "")


COARSE = 63  # the largest number of 7 bits
FINE = 126  # parts of the distance between two of them
KEPT_ROWS = 64  # memory for larger inputs is not kept
MEMORY = threading.local()


class Int8Linear(nn.Module):
    """A linear layer with weights of 8 bits, and a scale for each output (Dettmers et al. 2022, LLM.int8(), 3.1).

    Its input is rounded as well, to two numbers of 7 bits with a scale for each row: sums of products stay within the
    16 bits in which CPUs without VNNI hold them. One such number alone cost a Llama of 135M 3% in bits per byte; the
    second is a second row of a product whose time is that of reading the weights."""

    def __init__(self, weight: Tensor, bias: Tensor | None, packed: Any = None):
        """packed: the rounded weight, where it is there already."""
        super().__init__()
        self.packed, self.bias, self.width, self.least = packed, bias, weight.size(1), torch.tensor(1e-30)
        if packed is None:
            scales = weight.abs().amax(1).clamp(min=1e-12).double() / 127
            zeros = torch.zeros(len(weight), dtype=torch.long)
            rounded = torch.quantize_per_channel(weight.float(), scales, zeros, 0, torch.qint8)
            self.packed = torch.ops.quantized.linear_prepack(rounded, None)

    def forward(self, x: Tensor) -> Tensor:
        """Returns (..., O) in float32 for x (..., I)."""
        rows = x.float().reshape(-1, self.width)
        both, coarse, fine = _memory(len(rows), self.width)
        unit = torch.add(self.least, torch.linalg.vector_norm(rows, torch.inf, 1, keepdim=True), alpha=1 / COARSE)
        scaled = rows / unit  # from -63 to 63
        torch.round(scaled, out=coarse)
        torch.sub(scaled, coarse, out=fine).mul_(FINE)
        y = torch.ops.quantized.linear_dynamic.default(both, self.packed, True)
        high, low, _ = y.split((len(rows), len(rows), 1))
        out = high.add_(low, alpha=1 / FINE).mul_(unit)
        return (out if self.bias is None else out.add_(self.bias)).view(*x.shape[:-1], -1)


def _memory(rows: int, width: int) -> tuple[Tensor, Tensor, Tensor]:
    """Returns this thread's memory for an input of 7 bits, and in it the coarse and the fine numbers.

    torch rounds a whole batch with one scale, from its largest and its smallest number. The last row has both, so that
    no row depends on the others, and whole numbers stay what they are."""
    kept = MEMORY.__dict__.setdefault("inputs", {})
    if (rows, width) in kept:
        return kept[rows, width]
    both = torch.zeros(2 * rows + 1, width)
    both[-1, :2] = torch.tensor([63.5, -63.5])
    parts = both, both[:rows], both[rows:-1]
    if rows <= KEPT_ROWS:
        kept[rows, width] = parts
    return parts


def replace_layers(
    model: Transformer, kind: type[Int8Linear] | type[PackedLinear], packed: dict[int, Any] | None = None
) -> None:
    """Gives the model layers of this kind in the place of all its linear layers and of its head. Embeddings, norms and
    attention stay as they are.

    packed: what is made of each weight, by the address of its memory; it is filled in, so that models which share
    weights share this too. These weights must live as long as it is used."""
    packed = {} if packed is None else packed
    for module in list(model.modules()):
        for name, part in module.named_children():
            if isinstance(part, nn.Linear | Head):
                weight, bias = part.weight.data, part.word_bias if isinstance(part, Head) else part.bias
                layer = kind(weight, bias, packed.get(weight.data_ptr()))
                packed[weight.data_ptr()] = layer.packed
                if isinstance(part, Head):
                    part.product = layer
                else:
                    setattr(module, name, layer)


def prepare(model: Transformer, quant: str | None, rows: int, packed: dict[int, Any] | None = None) -> None:
    """Gives a model that only writes from now on its weights in the form that is read fastest. Elsewhere than on a CPU
    they stay as they are.

    quant: `int8` for weights of 8 bits; rows: about how many tokens it reads at a time; packed: as for
    `replace_layers`. Raises UserError for another `quant`, and ModelError for one that is not possible here."""
    if quant not in (None, "int8"):
        raise UserError(f"--quant {quant!r}\n  allowed: int8; `lmkit export --to gguf --quant` has more, for llama.cpp")
    device, like = model.embedding.weight.device.type, model.embedding.weight.dtype
    if quant and (device != "cpu" or torch.backends.quantized.engine not in ("x86", "fbgemm")):
        place = device if device != "cpu" else "this CPU"
        raise ModelError(f"weights of 8 bits need an x86 CPU, and the model is on {place}\n  → leave out --quant")
    if quant:
        replace_layers(model, Int8Linear, packed)
    elif device == "cpu" and rows == 1:
        arrange(model)
    elif device == "cpu" and like == torch.float32 and hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        replace_layers(model, PackedLinear, packed)
