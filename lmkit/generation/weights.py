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


COARSE = 63  # the largest number of 7 bits
FINE = 126  # parts of the distance between two of them


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
        self.width, self.least = weight.size(1), torch.tensor(1e-30)
        self._batch: tuple[Tensor, Tensor, Tensor] | None = None  # memory for a batch: both numbers, coarse, fine

    def _memory(self, rows: int) -> tuple[Tensor, Tensor, Tensor]:
        """Returns memory for the input of so many rows, and in it the coarse and the fine numbers.

        torch rounds a whole batch with one scale, from its largest and its smallest number. The last row has both, so
        that no row depends on the others, and whole numbers stay what they are."""
        if self._batch is None or len(self._batch[1]) != rows:
            both = torch.zeros(2 * rows + 1, self.width)
            both[-1, :2] = torch.tensor([63.5, -63.5])
            self._batch = both, both[:rows], both[rows:-1]
        return self._batch

    def forward(self, x: Tensor) -> Tensor:
        """Returns (..., O) in float32 for x (..., I)."""
        rows = x.float().reshape(-1, self.width)
        both, coarse, fine = self._memory(len(rows))
        unit = torch.add(self.least, torch.linalg.vector_norm(rows, torch.inf, 1, keepdim=True), alpha=1 / COARSE)
        scaled = rows / unit  # from -63 to 63
        torch.round(scaled, out=coarse)
        torch.sub(scaled, coarse, out=fine).mul_(FINE)
        high, low, _ = torch.ops.quantized.linear_dynamic.default(both, self.packed, True).split(
            (len(rows), len(rows), 1)
        )
        out = high.add_(low, alpha=1 / FINE).mul_(unit)
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
