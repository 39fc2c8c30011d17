"""Texts into the ids that a model goes on from, answers or completes.

Text that spells a control token is ordinary text: a `</s>` in a prompt is four characters. The one exception is a gap.
Where an encoder or an encoder-decoder reads the text, `tokenizer.special.mask` ([MASK], <mask>) and T5's sentinels
(<extra_id_0>, <extra_id_1>, ...) become the tokens they name, if its tokenizer has them. One space before a gap belongs
to it, for so it was in training: what was taken out of a text there is a token together with the space before it."""

from lmkit.objectives.build import frame
from lmkit.text.tokenizer import Tokenizer


def prompt_ids(tokenizer: Tokenizer, text: str) -> list[int]:
    """What a decoder goes on from: the tokens of `text`, behind BOS where the tokenizer's own rule puts one. An empty
    text without that is what follows a BOS, or the end of a document.

    Raises UserError for text that is not Unicode."""
    ids = tokenizer.first_ids + tokenizer.encode(text)
    return ids or [i for i in (tokenizer.bos_id, tokenizer.eos_id) if i is not None][:1]


def source_ids(tokenizer: Tokenizer, text: str) -> list[int]:
    """What an encoder beside a decoder reads: `text`, with gaps, framed as the documents in training were.

    Raises UserError for text that is not Unicode."""
    before, after = tokenizer.document_frame
    return before + _with_gaps(tokenizer, text) + after


def masked_ids(tokenizer: Tokenizer, text: str) -> list[int]:
    """What an encoder alone reads: [CLS], `text` with gaps, [SEP].

    Raises UserError for text that is not Unicode, ModelError for a tokenizer without such a frame."""
    first, last = frame(tokenizer)
    return [first, *_with_gaps(tokenizer, text), last]


def end_ids(tokenizer: Tokenizer) -> frozenset[int]:
    """What a generated document ends with: EOS, or where there is none the BOS of the next document."""
    end = tokenizer.bos_id if tokenizer.eos_id is None else tokenizer.eos_id
    return frozenset() if end is None else frozenset((end,))


def _with_gaps(tokenizer: Tokenizer, text: str) -> list[int]:
    for gap in tokenizer.gaps:
        text = text.replace(f" {gap}", gap)
    return tokenizer.with_gaps.encode(text)
