"""Fills in masks in texts with an encoder. Shapes: B texts, T tokens, D hidden_size, V vocab_size."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import NamedTuple

import numpy as np
import torch

from lmkit.base.errors import UserError
from lmkit.base.order import by_length
from lmkit.generation.prompts import masked_ids
from lmkit.generation.sampling import check_logits
from lmkit.model.transformer import Transformer
from lmkit.objectives.build import need
from lmkit.objectives.collating import kept, padded
from lmkit.text.tokenizer import Tokenizer

TEXTS = 1024  # texts that are read at a time and sorted by length, so that there is little padding
MAX_TOKENS = 16_384  # tokens in one pass, padding included
MASKS = 256  # masks in one pass of the head, since probabilities over the vocabulary are the largest tensor


class Candidate(NamedTuple):
    text: str  # the text of the token, with a space before it, or WordPiece's ##, where these are part of it
    id: int
    probability: float


@dataclass(frozen=True)
class Filled:
    """The likeliest tokens for one mask."""

    row: int  # the number of its text, from 0
    position: int  # the place of the mask among the text's tokens, [CLS] included
    candidates: list[Candidate]  # likeliest first
    text: str  # the whole text with the likeliest token in the place of every mask


def fill_masks(model: Transformer, tokenizer: Tokenizer, texts: Iterable[str], top_k: int = 5) -> Iterator[Filled]:
    """Yields the `top_k` likeliest tokens for each mask, text by text; it reads texts as it needs them.

    All masks of a text are predicted at once, so the prediction for one does not depend on the words for the others.
    The model keeps its mode, training or not. Raises UserError for a text without a mask or longer than the context,
    and ModelError for a tokenizer without a mask and for logits that are not finite."""
    if top_k < 1:
        raise UserError(f"top_k {top_k} is out of range\n  allowed: 1 or more")
    need(tokenizer, "filling masks", "mask")
    numbered = enumerate(texts)
    while chunk := list(islice(numbered, TEXTS)):
        rows = [(number, text, _framed(model, tokenizer, number, text)) for number, text in chunk]
        by_number = dict[int, list[Filled]]()
        for group in by_length(rows, lambda row: len(row[2]), MAX_TOKENS):
            with model.evaluating():
                by_number |= _predict(model, tokenizer, group, top_k)
        for number, _ in chunk:
            yield from by_number[number]


def _framed(model: Transformer, tokenizer: Tokenizer, number: int, text: str) -> np.ndarray:
    """Returns the ids of a text with its control tokens, (T,) int64. Raises UserError as `fill_masks` does."""
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
    """Returns what `fill_masks` yields for the texts of a group, by the number of the text.

    group: number, text and ids of each text; the masks in the ids are overwritten."""
    device, rows = model.embedding.weight.device, [ids for _, _, ids in group]
    pad = tokenizer.pad_id if model.config.position_padding_id is None else model.config.position_padding_id
    tokens, keep = padded(rows, pad or 0).to(device), kept(rows)
    states = model(tokens, None if keep is None else keep.to(device))[tokens == tokenizer.mask_id]  # (masks, D)
    best = [model.head(part).softmax(-1).topk(min(top_k, model.config.vocab_size)) for part in states.split(MASKS)]
    probabilities = torch.cat([f.values for f in best]).cpu()  # (masks, top_k)
    check_logits(probabilities)
    words = iter(zip(torch.cat([f.indices for f in best]).tolist(), probabilities.tolist(), strict=True))
    out = dict[int, list[Filled]]()
    for number, text, ids in group:
        places = np.flatnonzero(ids == tokenizer.mask_id).tolist()
        masks = [[Candidate(_spelled(tokenizer, i), i, p) for i, p in zip(*next(words), strict=True)] for _ in places]
        for place, candidates in zip(places, masks, strict=True):
            ids[place] = candidates[0].id
        filled = _spliced(tokenizer, text, ids.tolist(), places)
        out[number] = [Filled(number, place, likeliest, filled) for place, likeliest in zip(places, masks, strict=True)]
    return out


def _spelled(tokenizer: Tokenizer, *ids: int) -> str:
    return tokenizer.decode(ids, skip_special=False)


def _spliced(tokenizer: Tokenizer, text: str, ids: list[int], places: list[int]) -> str:
    """Returns `text` with the tokens of `ids` at `places` instead of its masks.

    The rest stays exactly as it was written; decoding all ids could change it."""
    result, *rest = text.split(str(tokenizer.special.mask))
    wordpiece = tokenizer.definition["model"]["type"] == "WordPiece"
    for place, part in zip(places, rest, strict=True):
        before = ids[max(1, place - 1) : place]  # some decoders drop the space before a first word
        piece = _spelled(tokenizer, *before, ids[place])[len(_spelled(tokenizer, *before)) :]
        if wordpiece and piece.startswith(" "):  # a word; in WordPiece, its token does not include the space before it
            result += piece[1:] + part
        else:  # a token that includes its space, or continues the word before it
            result = result.removesuffix(" ") + piece + part
    return result


def sample_fill(model: Transformer, tokenizer: Tokenizer, text: str) -> str:
    """Returns `text` with its masks filled in, as a sample of what an encoder in training knows.

    It is "" for a text without a mask. The model's mode and torch's random state do not change. Raises UserError for a
    text longer than the context."""
    if tokenizer.special.mask is None or tokenizer.special.mask not in text:
        return ""
    return next(fill_masks(model, tokenizer, [text], 1)).text
