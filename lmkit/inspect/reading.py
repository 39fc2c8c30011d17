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
from lmkit.pretrained import Pretrained
from lmkit.text.tokenizer import frame_texts


class ReadToken(NamedTuple):
    """A token, what the model gave it, and what it would rather have read there."""

    text: str
    log_prob: float | None  # nats; None for a first token, which nothing predicts
    alternatives: list[tuple[str, float]]  # the likeliest tokens and their probabilities


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


def token_losses(loaded: Pretrained, text: str, target: str | None = None, most: int = 5) -> list[ReadToken]:
    """Returns every token of a text: given those before it (decoders), given all others (encoders, which read it once
    for each token, with a mask in its place: Salazar et al. 2020), or of `target`, given the text (encoder-decoders).

    Raises UserError for a model that predicts no words."""
    c, tokenizer = loaded.config, loaded.needs_tokenizer()
    if not isinstance(loaded.model.head, Head):
        raise UserError(f"{loaded.folder} is a {c.spec.cls}, which predicts no words\n  → --attribute")
    if (target is None) != (c.stacks != "encoder_decoder"):
        raise UserError(
            "--target is what an encoder-decoder writes from the text; it needs one, and no other model does"
        )
    ids = text_ids(loaded, text)
    if c.stacks == "encoder":
        if tokenizer.mask_id is None:
            raise UserError(f"{loaded.folder}: the tokenizer has no mask")
        rows = torch.tensor(ids).repeat(len(ids) - 2, 1)
        rows[torch.arange(len(rows)), torch.arange(1, len(ids) - 1)] = tokenizer.mask_id
        logits = torch.stack([loaded.logits(row[None])[0, i] for i, row in enumerate(rows, 1)])
        read = ids[1:-1]
    elif target is None:
        logits, read = loaded.logits([ids])[0, :-1], ids[1:]
    else:
        ends = [tokenizer.eos_id] if tokenizer.eos_id is not None else []
        read = tokenizer.for_targets.encode(target) + ends
        logits = loaded.logits([ids], decoder_input_ids=[[loaded.decoder_start, *read[:-1]]])[0]
    log_probs = logits.log_softmax(-1)
    best = log_probs.topk(min(most, log_probs.size(-1)))
    word = lambda token: tokenizer.decode([token], skip_special=False)
    tokens = [
        ReadToken(word(token), float(row[token]), [(word(i), math.exp(v)) for i, v in zip(at, values, strict=True)])
        for token, row, at, values in zip(read, log_probs, best.indices.tolist(), best.values.tolist(), strict=True)
    ]
    return tokens if c.stacks != "decoder" else [ReadToken(word(ids[0]), None, []), *tokens]


def attention_weights(loaded: Pretrained, ids: list[int]) -> list[Tensor]:
    """Returns the attention of each layer, (H, T, T): how much each token (rows) takes from each (columns).

    Raises UserError for encoder-decoders."""
    if loaded.config.stacks == "encoder_decoder":
        raise UserError("--attention is of decoders and encoders")
    with _recorded() as weights:
        loaded.hidden([ids])
    return [w[0] for w in weights]


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
def lens(loaded: Pretrained, ids: list[int]) -> Tensor:
    """Returns what the head makes of the states after each layer, (L, T, V) logits; those of the last layer are the
    model's (nostalgebraist 2020, the logit lens).

    Raises UserError for a model that predicts no words, and for encoder-decoders."""
    if loaded.config.stacks == "encoder_decoder" or not isinstance(loaded.model.head, Head):
        raise UserError(f"--lens is of decoders and encoders that predict words, and {loaded.folder} is neither")
    [stack] = loaded.model.stacks
    states = list[Tensor]()
    hooks = [block.register_forward_hook(lambda _, __, out: states.append(out)) for block in stack.blocks]
    try:
        loaded.hidden([ids])
    finally:
        for hook in hooks:
            hook.remove()
    return torch.stack([loaded.model.head(stack.norm(state))[0] for state in states])
