"""Many texts through a model, to look at what its layers make of them. Shapes: B texts, T tokens."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lmkit.base.display import note
from lmkit.base.order import by_length
from lmkit.pretrained import Pretrained
from lmkit.tasks.task import BATCH_TOKENS, MOST_TOKENS
from lmkit.text.tokenizer import frame_texts


class TextBatch(NamedTuple):
    """Texts of like length, padded on the right."""

    numbers: list[int]  # of the texts
    ids: Tensor  # (B, T)
    keep: Tensor  # (B, T) bool, True on real tokens
    cut: list[bool]  # whether each text was longer


def text_batches(loaded: Pretrained, texts: Sequence[str]) -> Iterator[TextBatch]:
    """Yields the texts, the longest first, cut to the model's context and at most to MOST_TOKENS."""
    tokenizer, c = loaded.needs_tokenizer(), loaded.config
    most = MOST_TOKENS if c.positions == "relative" else min(MOST_TOKENS, c.context)
    framed = frame_texts(tokenizer, texts, None, most)
    pad = loaded.special.get("pad_token_id") or 0
    rows = [f.ids or [pad] for f in framed]
    device = loaded.model.embedding.weight.device
    for group in by_length(range(len(rows)), lambda i: len(rows[i]), BATCH_TOKENS):
        longest = max(len(rows[i]) for i in group)
        ids = torch.tensor([rows[i] + [pad] * (longest - len(rows[i])) for i in group], device=device)
        lengths = torch.tensor([len(rows[i]) for i in group], device=device)
        yield TextBatch(
            group, ids, torch.arange(longest, device=device) < lengths[:, None], [framed[i].cut for i in group]
        )


def note_cut(cut: int, texts: int) -> None:
    """Notes how many texts were cut, if any were."""
    if cut:
        note(f"{cut:,} of {texts:,} texts are longer than the model reads, or than {MOST_TOKENS} tokens, and were cut")


@torch.no_grad()
def read_batch(loaded: Pretrained, batch: TextBatch) -> None:
    """Has the model read a batch, an encoder-decoder with its encoder alone; hooks see what its layers make of it."""
    if loaded.config.stacks == "encoder_decoder":
        loaded.model.encode(batch.ids, batch.keep)
    else:
        loaded.hidden(batch.ids, batch.keep)
