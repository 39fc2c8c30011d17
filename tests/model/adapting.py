"""Tiny models with adapters that do something, and their logits beside those of transformers and PEFT."""

import torch

from lmkit.model.lora import adapter_tensors, add_lora
from lmkit.model.transformer import Transformer
from lmkit.recipe.tasks import LoraConfig
from tests.model.families import decoder_inputs, inputs, ours, reference

TOLERANCE = 2e-5
SMALL = LoraConfig(rank=3, alpha=6.0)


@torch.no_grad()
def logits(model: Transformer, theirs) -> torch.Tensor:
    feed = inputs(theirs)
    targets = None
    if model.config.stacks == "encoder_decoder":  # heads for labels read what is written, shifted by one
        targets = decoder_inputs() if model.config.head == "lm" else feed["input_ids"].roll(1, 1)
    keep = feed["attention_mask"].bool()
    states = model(feed["input_ids"], keep, types=feed.get("token_type_ids"), targets=targets)
    if model.config.head != "sequence":
        out = model.head(states)
        return out if targets is not None else out[keep]
    end = theirs.config.eos_token_id
    last = keep.sum(1) - 1 if model.head.pool == "last" else feed["input_ids"].eq(-1 if end is None else end).int()
    return model.head(states, last if last.dim() == 1 else last.cumsum(1).argmax(1), keep)


@torch.no_grad()
def their_logits(wrapped, theirs, head: str) -> torch.Tensor:
    feed = inputs(theirs)
    seq2seq = theirs.config.is_encoder_decoder
    if seq2seq:
        feed["decoder_input_ids"] = decoder_inputs() if head == "lm" else feed["input_ids"].roll(1, 1)
    out = wrapped.eval()(**feed)
    found = torch.stack((out.start_logits, out.end_logits), -1) if head == "span" else out.logits
    return found if seq2seq or head == "sequence" else found[feed["attention_mask"].bool()]


@torch.no_grad()
def shake(parameters: dict[str, torch.Tensor]) -> None:
    """What training would do to them: away from zero, and from the lengths DoRA starts with."""
    g = torch.Generator().manual_seed(3)
    for name, p in sorted(parameters.items()):
        noise = torch.randn(p.shape, generator=g)
        p.copy_(p * (1 + 0.1 * noise) if "magnitude" in name else p + 0.1 * noise)


def adapted(name: str, head: str, config: LoraConfig = SMALL) -> tuple[Transformer, torch.nn.Module]:
    """Ours with adapters that do something, and the model of transformers it was."""
    theirs = reference(name, head)
    model = ours(theirs)
    add_lora(model, config, seed=1)
    shake(adapter_tensors(model))
    return model, theirs


def merging(want: torch.Tensor) -> float:
    """How far rounding alone takes logits when a change is added to the weights instead of to what they give, or where
    a CPU sums up in an order of its own."""
    return 1e-5 * max(1.0, want.abs().max().item())


def close(got: torch.Tensor, want: torch.Tensor, tolerance: float = TOLERANCE) -> bool:
    return got.shape == want.shape and (got - want).abs().max().item() <= tolerance
