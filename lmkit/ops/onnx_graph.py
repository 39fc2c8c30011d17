"""Writes a model as an ONNX graph: ids in, logits out, for any number of rows and any length."""

import logging
import warnings
from pathlib import Path

import torch
from torch import Tensor, nn

from lmkit.base.errors import ModelError, UserError
from lmkit.pretrained import Pretrained

MOST_INSIDE = 400_000_000  # weights that one file holds, whose format ends at 2 GB; more are kept beside it


class Logits(nn.Module):
    """The computation of `Pretrained.logits` without its checks, which cannot be part of a graph."""

    def __init__(self, loaded: Pretrained):
        super().__init__()
        self.model, self.loaded = loaded.model.requires_grad_(False), loaded  # torch chooses kernels by it

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, decoder_input_ids: Tensor | None = None
    ) -> Tensor:
        keep = attention_mask.bool() if attention_mask is not None else None
        if self.model.config.causal and self.model.config.sliding_window is not None:
            keep = torch.ones_like(input_ids).bool()  # with a mask, no length is a case of its own
        targets = decoder_input_ids
        if targets is None and self.model.config.stacks == "encoder_decoder":
            targets = self.loaded.shifted(input_ids)
        return self.loaded.apply_head(self.model(input_ids, keep, targets=targets), input_ids, keep)


def write_onnx(loaded: Pretrained, path: Path) -> None:
    """Writes a file whose inputs are input_ids, with an encoder attention_mask, and where a decoder beside it writes
    decoder_input_ids; all (batch, length) int64. Its output is `logits`.

    Raises UserError without the packages that write it, ModelError for a model that cannot be traced."""
    c = loaded.config
    try:
        import onnxscript  # noqa: F401 - torch asks for it
    except ImportError:
        raise UserError('ONNX files need the packages of pip install "lmkit[onnx]"') from None
    if c.head == "none":
        raise ModelError(f"{loaded.folder}: a {c.spec.cls} has no head, so there are no logits to export")
    lengths = {"input_ids": 5, "attention_mask": 5, "decoder_input_ids": 4}  # of the rows that are traced
    writes = c.stacks == "encoder_decoder" and c.head == "lm"
    names = list(lengths)[: 1 if c.causal else 3 if writes else 2]
    example = {name: torch.ones(3, lengths[name], dtype=torch.long) for name in names}
    axes = {name: {0: "batch", 1: f"length_{lengths[name]}"} for name in names}
    numbers = sum(p.numel() for p in loaded.model.parameters())
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it warns of packages that nothing here needs
    try:
        with warnings.catch_warnings(action="ignore", category=FutureWarning):  # of the exporter about itself
            torch.onnx.export(
                Logits(loaded).eval(), (), str(path), kwargs=example, dynamic_shapes=axes, output_names=["logits"],
                dynamo=True, external_data=numbers > MOST_INSIDE, verbose=False,
            )  # fmt: skip
    except Exception as e:  # the exporter raises errors of many types for what it cannot trace
        raise ModelError(f"{loaded.folder}: a {c.spec.cls} cannot be written as ONNX: {str(e).splitlines()[-1]}") from e
