"""Masks in texts, filled in by an encoder. Shapes: B texts, T tokens, V vocab_size."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import NamedTuple

import numpy as np
import torch

from lmkit.base.errors import UserError
from lmkit.base.order import by_length
from lmkit.generation.prompts import masked_ids
from lmkit.generation.sampling import check_finite
from lmkit.model.transformer import Transformer
from lmkit.objectives.build import need
from lmkit.objectives.collating import kept, padded
from lmkit.text.tokenizer import Tokenizer

TEXTS = 1024  # read at a time and sorted by length, so that little is padding
MAX_TOKENS = 16_384  # in one pass, padding included
MASKS = 256  # that meet the head at a time: their probabilities over the vocabulary are the largest tensor


class Candidate(NamedTuple):
    text: str  # of the token alone: a space in front and WordPiece's ## are part of it
    id: int
    probability: float


@dataclass(frozen=True)
class Filled:
    """What may stand in the place of one mask."""

    row: int  # the place of its text among those given
    position: int  # among the text's tokens, [CLS] included
    candidates: list[Candidate]  # likeliest first
    text: str  # the whole text with the likeliest token in the place of every mask


def fill(model: Transformer, tokenizer: Tokenizer, texts: Iterable[str], top_k: int = 5) -> Iterator[Filled]:
    """The `top_k` likeliest tokens for each mask, text by text; texts are read as they are needed. All masks of a text
    are predicted at once, so two side by side know nothing of each other's words. The model may be in training mode and
    is afterwards.

    Raises UserError for a text without a mask or longer than the context, ModelError for a tokenizer without a mask and
    for logits that are not finite."""
    if top_k < 1:
        raise UserError(f"top_k {top_k} is out of range\n  allowed: 1 or more")
    need(tokenizer, "filling masks", "mask")
    given = enumerate(texts)
    while some := list(islice(given, TEXTS)):
        rows = [(number, text, _framed(model, tokenizer, number, text)) for number, text in some]
        done = dict[int, list[Filled]]()
        for group in by_length(rows, lambda row: len(row[2]), MAX_TOKENS):
            with model.evaluating():
                done |= _predict(model, tokenizer, group, top_k)
        for number, _ in some:
            yield from done[number]


def _framed(model: Transformer, tokenizer: Tokenizer, number: int, text: str) -> np.ndarray:
    """(T,) int64."""
    ids, context = np.array(masked_ids(tokenizer, text)), model.config.context
    if tokenizer.mask_id not in ids:
        shown = text if len(text) <= 40 else f"{text[:40]}…"
        raise UserError(
            f"text {number + 1} has no mask: {shown!r}\n"
            f"  → write {tokenizer.special.mask} in the place of a word, and the model says which"
        )
    if len(ids) > context:
        raise UserError(
            f"text {number + 1} has {len(ids):,} tokens, which is beyond the model's context of {context:,}\n"
            "  → shorten it; what is near a mask tells most about it"
        )
    return ids


@torch.no_grad()
def _predict(
    model: Transformer, tokenizer: Tokenizer, group: list[tuple[int, str, np.ndarray]], top_k: int
) -> dict[int, list[Filled]]:
    """By the number of the text."""
    device, rows = model.embedding.weight.device, [ids for _, _, ids in group]
    pad = tokenizer.pad_id if model.config.position_padding_id is None else model.config.position_padding_id
    tokens, keep = padded(rows, pad or 0).to(device), kept(rows)
    states = model(tokens, None if keep is None else keep.to(device))[tokens == tokenizer.mask_id]  # (masks, D)
    found = [model.head(part).softmax(-1).topk(min(top_k, model.config.vocab_size)) for part in states.split(MASKS)]
    probabilities = torch.cat([f.values for f in found]).cpu()  # (masks, top_k)
    check_finite(probabilities)
    words = iter(zip(torch.cat([f.indices for f in found]).tolist(), probabilities.tolist(), strict=True))
    out = dict[int, list[Filled]]()
    for number, text, ids in group:
        places = np.flatnonzero(ids == tokenizer.mask_id).tolist()
        masks = [[Candidate(_spelled(tokenizer, i), i, p) for i, p in zip(*next(words), strict=True)] for _ in places]
        for place, candidates in zip(places, masks, strict=True):
            ids[place] = candidates[0].id
        filled = _spliced(tokenizer, text, ids.tolist(), places)
        out[number] = [Filled(number, place, some, filled) for place, some in zip(places, masks, strict=True)]
    return out


def _spelled(tokenizer: Tokenizer, *ids: int) -> str:
    return tokenizer.decode(ids, skip_special=False)


def _spliced(tokenizer: Tokenizer, text: str, ids: list[int], places: list[int]) -> str:
    """`text` with the tokens of `ids` at `places` where its masks are; the rest stays as it was written, which is more
    than a tokenizer could give back."""
    first, *rest = text.split(str(tokenizer.special.mask))
    wordpiece = tokenizer.definition["model"]["type"] == "WordPiece"
    for place, part in zip(places, rest, strict=True):
        before = ids[max(1, place - 1) : place]  # some decoders drop the space before a first word
        piece = _spelled(tokenizer, *before, ids[place])[len(_spelled(tokenizer, *before)) :]
        if wordpiece and piece.startswith(" "):  # a word: WordPiece says nothing of the space before it
            first += piece[1:] + part
        else:  # a piece that holds its space, or joins what is before it
            first = first.removesuffix(" ") + piece + part
    return first


def sample_fill(model: Transformer, tokenizer: Tokenizer, text: str) -> str:
    """`text` with its masks filled in: what an encoder in training knows; "" for a text without a mask. Leaves the
    model's mode and torch's random state alone.

    Raises UserError for a text longer than the context."""
    if tokenizer.special.mask is None or tokenizer.special.mask not in text:
        return ""
    return next(fill(model, tokenizer, [text], 1)).text
