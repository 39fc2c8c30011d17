"""Texts and pairs of texts as a model reads them: the control tokens its own tokenizer.json puts around them."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from lmkit.base.errors import ModelError, UserError
from lmkit.text.tokenizer import Tokenizer

CHUNK = 4_000_000  # characters encoded at a time: an encoding takes a hundred times the memory of its text
LONGEST = 1_000_000  # characters of a text that are looked at: its beginning and its end, far more than any model reads


class Framed(NamedTuple):
    ids: list[int]  # control tokens included
    types: list[int]  # which text of a pair each token is of, as BERT counts them
    offsets: list[tuple[int, int]]  # the characters each token stands for; (0, 0) for control tokens
    texts: list[int | None]  # 0, 1: the text each token is of; None for control tokens
    cut: bool  # it was longer

    def without_middle(self, length: int) -> "Framed":
        """Cut to `length` tokens of which the text's own are a quarter from its beginning and the rest from its end:
        of the ways to shorten that Sun et al. 2019 (5.3.1) compare, the best on long reviews and news."""
        if len(self.ids) <= length:
            return self
        before = next((i for i, text in enumerate(self.texts) if text is not None), 0)
        control = self.texts.count(None)
        begin = before + (length - control) // 4
        end = len(self.ids) - (length - begin)
        ids, types, offsets, texts, _ = self
        return Framed(
            ids[:begin] + ids[end:], types[:begin] + types[end:], offsets[:begin] + offsets[end:],
            texts[:begin] + texts[end:], True,
        )  # fmt: skip


def frame_texts(
    tokenizer: Tokenizer, texts: Sequence[str], pairs: Sequence[str] | None = None, max_length: int = 0
) -> list[Framed]:
    """Each text, or text and its pair, framed and cut to `max_length` tokens (0: not cut) as transformers does: at the
    end, or where `truncation_side` of the tokenizer says so at the beginning; of a pair the longer text first. Raises
    UserError for text that is not valid Unicode."""
    backend = tokenizer.backend
    if max_length:
        side = tokenizer.settings.get("truncation_side") or "right"
        if side not in ("left", "right"):
            raise ModelError(f"tokenizer_config.json: truncation_side: {side!r}\n  allowed: left, right")
        backend.enable_truncation(max_length, strategy="longest_first", direction=side)
    sides = [[_ends(text) for text in side] for side in (texts, pairs) if side is not None]
    framed = []
    try:
        for part in _chunks(list(zip(*sides, strict=True))):
            for e in backend.encode_batch(part if pairs is not None else [text for (text,) in part]):
                framed.append(Framed(e.ids, e.type_ids, e.offsets, e.sequence_ids, bool(e.overflowing)))
    except (TypeError, UnicodeEncodeError) as e:
        raise UserError(f"a text is not valid Unicode: {e}") from None
    finally:
        backend.no_truncation()
    return framed


def _ends(text: str) -> str:
    return text if len(text) <= LONGEST else text[: LONGEST // 2] + text[-LONGEST // 2 :]


def _chunks(inputs: list[tuple[str, ...]]) -> Iterator[list[tuple[str, ...]]]:
    """All inputs in order, in lists of about CHUNK characters."""
    part, size = list[tuple[str, ...]](), 0
    for texts in inputs:
        part.append(texts)
        size += sum(map(len, texts))
        if size >= CHUNK:
            yield part
            part, size = [], 0
    if part:
        yield part
