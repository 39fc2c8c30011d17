"""What a model makes of a text, layer by layer: losses of its tokens, attention, and the words of each layer.

Shapes: T tokens, V vocab_size, L layers, H heads."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor

from lmkit.base.errors import UserError
from lmkit.generation.prompts import masked_ids, prompt_ids, source_ids
from lmkit.model import layers
from lmkit.model.heads import Head
from lmkit.model.transformer import Stack
from lmkit.pretrained import HEADS, Pretrained
from lmkit.text.tokenizer import frame_texts, token_texts

LOSSES = "losses of tokens"


class ReadToken(NamedTuple):
    """A token, what the model gave it, and what it would rather have read there."""

    text: str
    log_prob: float | None  # nats; None for a first token, which nothing predicts
    alternatives: list[tuple[str, float]]  # the likeliest tokens and their probabilities


def check_view(loaded: Pretrained, view: str) -> None:
    """Raises UserError, which names the views that there are, for one that this model does not have."""
    c = loaded.config
    views = [LOSSES, "--lens"] if isinstance(loaded.model.head, Head) else []
    views += ["--attribute"] if c.head != "none" else []
    views += ["--attention", "--nearest", "--probe", "--neuron"]
    if view not in views:
        why = f"{loaded.folder} is a {c.spec.cls}: {HEADS[c.head]}"
        raise UserError(f"{why}, and has no view of {view}\n  allowed: {', '.join(views)}")


def text_ids(loaded: Pretrained, text: str) -> list[int]:
    """Returns the ids of a text, as the model reads it. Raises UserError for a text that is longer than the context."""
    tokenizer, c = loaded.needs_tokenizer(), loaded.config
    if not isinstance(loaded.model.head, Head):
        ids = frame_texts(tokenizer, [text])[0].ids
    elif c.stacks == "encoder":
        ids = masked_ids(tokenizer, text)
    else:
        ids = prompt_ids(tokenizer, text) if c.stacks == "decoder" else source_ids(tokenizer, text)
    if not ids or (len(ids) > c.context and c.positions != "relative"):
        raise UserError(f"the text has {len(ids):,} tokens, and {loaded.folder} reads 1 to {c.context:,}")
    return ids


def decoder_ids(loaded: Pretrained, target: str | None) -> list[int] | None:
    """Returns what the decoder beside an encoder has read once it has written `target`, None being nothing.

    It is None for a model without such a decoder, and for one whose decoder reads the text of the encoder once more.
    Raises UserError for a target that these do not write."""
    c = loaded.config
    if c.stacks != "encoder_decoder" or c.head not in ("lm", "none"):
        if target is not None:
            raise UserError(
                f"--target is what an encoder-decoder writes from the text, and {loaded.folder} writes none"
            )
        return None
    forced = loaded.special.get("forced_bos_token_id")
    first = [loaded.decoder_start] if forced is None else [loaded.decoder_start, forced]
    return first + loaded.needs_tokenizer().for_targets.encode(target or "")


def token_losses(loaded: Pretrained, text: str, target: str | None = None, most: int = 5) -> list[ReadToken]:
    """Returns every token of a text: given those before it (decoders), given all others (encoders, which read it once
    for each token, with a mask in its place: Salazar et al. 2020), or of `target`, given the text (encoder-decoders).

    Raises UserError for a model that predicts no words."""
    c, tokenizer = loaded.config, loaded.needs_tokenizer()
    check_view(loaded, LOSSES)
    written = decoder_ids(loaded, target)
    if written is not None and target is None:
        raise UserError("the losses of an encoder-decoder are those of what it writes from the text\n  → --target TEXT")
    ids = text_ids(loaded, text)
    if c.stacks == "encoder":
        if tokenizer.mask_id is None:
            raise UserError(f"{loaded.folder}: the tokenizer has no mask")
        rows = torch.tensor(ids).repeat(len(ids) - 2, 1)
        rows[torch.arange(len(rows)), torch.arange(1, len(ids) - 1)] = tokenizer.mask_id
        logits = torch.stack([loaded.logits(row[None])[0, i] for i, row in enumerate(rows, 1)])
        read = ids[1:-1]
    elif written is None or target is None:
        logits, read = loaded.logits([ids])[0, :-1], ids[1:]
    else:
        ends = [tokenizer.eos_id] if tokenizer.eos_id is not None else []
        read = tokenizer.for_targets.encode(target) + ends
        first = len(written) + len(ends) - len(read) - 1  # the place that predicts the first token
        logits = loaded.logits([ids], decoder_input_ids=[written])[0, first : first + len(read)]
    log_probs = logits.log_softmax(-1)
    best = log_probs.topk(min(most, log_probs.size(-1)))
    word = lambda token: tokenizer.decode([token], skip_special=False)
    texts = token_texts(tokenizer, ids[:1] + read if c.stacks == "decoder" else read)
    tokens = [
        ReadToken(text, float(row[token]), [(word(i), math.exp(v)) for i, v in zip(at, values, strict=True)])
        for text, token, row, at, values in zip(
            texts[len(texts) - len(read) :], read, log_probs, best.indices.tolist(), best.values.tolist(), strict=True
        )
    ]
    return tokens if c.stacks != "decoder" else [ReadToken(texts[0], None, []), *tokens]


def attention_weights(loaded: Pretrained, ids: list[int], written: list[int] | None = None) -> dict[str, list[Tensor]]:
    """Returns the attention of each layer, (H, T, T): how much each token (rows) takes from each (columns); by the
    names of transformers: `attentions`, or of encoder-decoders `encoder_attentions`, `decoder_attentions` and
    `cross_attentions`, whose columns are the tokens of the encoder.

    written: what the decoder beside an encoder reads, as `decoder_ids` returns it."""
    with _recorded() as recorded:
        loaded.hidden([ids], decoder_input_ids=None if written is None else [written])
    weights = [w[0] for w in recorded]
    if loaded.model.encoder is None or loaded.model.decoder is None:
        return {"attentions": weights}
    n = len(loaded.model.encoder.order)
    return {
        "encoder_attentions": weights[:n],
        "decoder_attentions": weights[n::2],
        "cross_attentions": weights[n + 1 :: 2],
    }


@contextmanager
def _recorded() -> Iterator[list[Tensor]]:
    """Keeps the weights of every attention that is computed in a `with` block."""
    weights, attend = list[Tensor](), layers.attend

    def recording(
        q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool, rate: float, scale: float | None,
        softcap: float | None = None,
    ) -> Tensor:  # fmt: skip
        keys = k.repeat_interleave(q.size(1) // k.size(1), dim=1)
        scores = (q @ keys.mT).float() * (q.size(-1) ** -0.5 if scale is None else scale)
        scores = scores if softcap is None else softcap * torch.tanh(scores / softcap)
        seen = torch.ones(q.size(2), k.size(2), dtype=torch.bool, device=q.device).tril_() if causal else mask
        if seen is not None:
            scores = scores.masked_fill(~seen, -math.inf) if seen.dtype == torch.bool else scores + seen
        weights.append(scores.softmax(-1).detach())
        return attend(q, k, v, mask, causal, rate, scale, softcap)

    layers.attend = recording
    try:
        yield weights
    finally:
        layers.attend = attend


@torch.no_grad()
def lens(loaded: Pretrained, ids: list[int], written: list[int] | None = None) -> Tensor:
    """Returns what the head makes of the states after each layer, (L, T, V) logits; those of the last layer are the
    model's (nostalgebraist 2020, the logit lens). Of encoder-decoders they are those of the decoder, at `written`.

    Raises UserError for a model that predicts no words."""
    check_view(loaded, "--lens")
    stack, head = loaded.model.stacks[-1], loaded.model.head
    with layer_states(stack) as states:
        loaded.hidden([ids], decoder_input_ids=None if written is None else [written])
    return torch.stack([head(stack.norm(state))[0] for state in states[1:]])


@contextmanager
def layer_states(stack: Stack) -> Iterator[list[Tensor]]:
    """Keeps the states (B, T, D) that the first layer reads and those after each layer, before the final norm, of every
    text that a stack reads in a `with` block."""
    states = list[Tensor]()
    keep = lambda _, __, out: states.append(out)
    hooks = [part.register_forward_hook(keep) for part in (stack.inputs, *stack.blocks)]
    try:
        yield states
    finally:
        for hook in hooks:
            hook.remove()
