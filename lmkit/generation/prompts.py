"""Turns texts into the ids that a model continues, answers or fills in.

Text that spells a control token is ordinary text: a `</s>` in a prompt is four characters. The one exception is a gap.
Where an encoder or an encoder-decoder reads the text, `tokenizer.special.mask` ([MASK], <mask>) and T5's sentinels
(<extra_id_0>, <extra_id_1>, ...) become the tokens they name, if the tokenizer has them. One space before a gap belongs
to the gap, because in training a token is removed from a text together with the space before it."""

from lmkit.objectives.build import frame
from lmkit.text.languages import PairFrame, plain_frame
from lmkit.text.tokenizer import Tokenizer


def prompt_ids(tokenizer: Tokenizer, text: str, control_tokens: bool = False) -> list[int]:
    """Returns the ids that a decoder continues: the tokens of `text`, after BOS where the tokenizer itself adds one.

    control_tokens: names of control tokens in the text stand for these tokens. If that makes no ids, they are BOS, or
    EOS where there is no BOS, so that the model begins a new text. Raises UserError for text that is not Unicode."""
    ids = tokenizer.first_ids + (tokenizer.encode_control(text) if control_tokens else tokenizer.encode(text))
    return ids or [i for i in (tokenizer.bos_id, tokenizer.eos_id) if i is not None][:1]


def source_ids(tokenizer: Tokenizer, text: str, frame: PairFrame | None = None) -> list[int]:
    """Returns the ids that the encoder of an encoder-decoder reads: `text` with gaps, between the control tokens that
    documents had in training, or those of `frame`.

    Raises UserError for text that is not Unicode."""
    frame = plain_frame(tokenizer) if frame is None else frame
    return frame.before_source + _with_gaps(tokenizer, text) + frame.after_source


def masked_ids(tokenizer: Tokenizer, text: str) -> list[int]:
    """Returns the ids that an encoder reads: [CLS], `text` with gaps, [SEP].

    Raises UserError for text that is not Unicode, and ModelError for a tokenizer without such tokens."""
    first, last = frame(tokenizer)
    return [first, *_with_gaps(tokenizer, text), last]


def end_ids(tokenizer: Tokenizer) -> frozenset[int]:
    """Returns the tokens that end a generated document: EOS, or where there is none the BOS of the next document."""
    end = tokenizer.bos_id if tokenizer.eos_id is None else tokenizer.eos_id
    return frozenset() if end is None else frozenset((end,))


def _with_gaps(tokenizer: Tokenizer, text: str) -> list[int]:
    for gap in tokenizer.gaps:
        text = text.replace(f" {gap}", gap)
    return tokenizer.with_gaps.encode(text)
