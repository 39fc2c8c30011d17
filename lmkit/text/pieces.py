"""Properties of the pieces of a vocabulary: which begin a word, which end a sentence, which are ordinary text."""

import re
import unicodedata
from typing import Any

import numpy as np

from lmkit.base.errors import UserError
from lmkit.text.tokenizer import Tokenizer, byte_alphabet
from lmkit.text.tokenizer_classes import SPACE

# Thai to Lao, Burmese, Khmer, kana and Han have no spaces between words, so every character counts as a word, as BERT
# does it for Han. Otherwise a whole line would be one word, which is too long to be masked.
UNSPACED = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]"
)
STOPS = (".", "!", "?", "…", "。", "！", "？")
CLOSERS = " \t\"'`)]}”’»›」』）】》"
BYTE = re.compile(r"<0x([0-9A-F]{2})>")  # the names of pieces of byte fallback


def word_starts(tokenizer: Tokenizer) -> np.ndarray:
    """Returns for each piece whether it begins a word, (V,) bool; False for ids that the vocabulary lacks.

    A word is letters, marks and digits without a space between them; every other character, and every character of a
    script without spaces, begins a word of its own. In WordPiece, pieces that continue a word are marked; elsewhere the
    first character of the piece decides. A byte-level piece that begins with a part of a character continues the word,
    unless it is the first byte of a three- or four-byte character, which is mostly a symbol or of a script without
    spaces. A control token begins a word too, so that no word reaches over it.

    Raises UserError for a tokenizer that does not mark where words begin."""
    kind = _kind(tokenizer)
    bytes_only = kind == "byte-level" and tokenizer.definition["model"].get("merges") == []
    if kind is None or bytes_only:
        raise UserError(
            "whole_word needs a tokenizer whose pieces show where words begin: WordPiece, byte-level BPE or "
            f"sentencepiece; this one {'cuts text into bytes' if bytes_only else 'does not'}\n"
            "  → set whole_word to false, or train the tokenizer with type wordpiece, bpe, unigram or sentencepiece"
        )
    starts = np.zeros(tokenizer.vocab_size, bool)
    prefix = tokenizer.definition["model"].get("continuing_subword_prefix")
    for piece, i in tokenizer.vocab.items():
        if i in tokenizer.special_ids:
            starts[i] = True
        elif kind == "wordpiece":
            starts[i] = not piece.startswith(prefix)
        else:
            starts[i] = _begins_word(_content(tokenizer, piece, i, kind))
    return starts


def sentence_ends(tokenizer: Tokenizer) -> np.ndarray:
    """Returns for each piece whether it ends a sentence, (V,) bool.

    It does if it has a line break, or a full stop or the like with only spaces, quotes and brackets after it. Control
    tokens never do, nor stops whose bytes are spread over several pieces."""
    ends = np.zeros(tokenizer.vocab_size, bool)
    kind = _kind(tokenizer)
    for piece, i in tokenizer.vocab.items():
        if i not in tokenizer.special_ids:
            text = _content(tokenizer, piece, i, kind).decode("utf-8", "replace")
            ends[i] = "\n" in text or text.rstrip(CLOSERS).endswith(STOPS)
    return ends


def ordinary_ids(tokenizer: Tokenizer) -> np.ndarray:
    """Returns the ids that stand for text, (n,) int64, ascending. Masking may put them in the place of other tokens."""
    return np.array(sorted(set(tokenizer.vocab.values()) - tokenizer.special_ids), np.int64)


def _kind(tokenizer: Tokenizer) -> str | None:
    """Returns how the tokenizer spells spaces: wordpiece, byte-level, sentencepiece; None for any other way."""
    definition = tokenizer.definition
    if definition["model"]["type"] == "WordPiece":
        return "wordpiece"
    steps = [s for part in ("normalizer", "pre_tokenizer", "decoder") for s in _steps(definition[part])]
    if any(s["type"] == "ByteLevel" for s in steps):
        return "byte-level"
    if any(SPACE in (s.get("replacement"), s.get("content"), (s.get("pattern") or {}).get("String")) for s in steps):
        return "sentencepiece"  # a Metaspace step, or Replace steps that do the same
    return None


def _steps(part: dict[str, Any] | None) -> list[dict[str, Any]]:
    """Returns the steps of a normalizer, pre-tokenizer or decoder, those inside sequences included."""
    if part is None:
        return []
    nested = next((part[k] for k in ("normalizers", "pretokenizers", "decoders") if k in part), None)
    return [part] if nested is None else [s for p in nested for s in _steps(p)]


_BYTE_OF = {char: byte for byte, char in enumerate(byte_alphabet())}


def _content(tokenizer: Tokenizer, piece: str, token_id: int, kind: str | None) -> bytes:
    """Returns the UTF-8 text that a piece adds to a line; it may be a part of a character."""
    if kind == "byte-level" and all(c in _BYTE_OF for c in piece):  # others are added tokens, whose name is their text
        return bytes(_BYTE_OF[c] for c in piece)
    if kind == "sentencepiece":
        if tokenizer.definition["model"].get("byte_fallback") and (byte := BYTE.fullmatch(piece)):
            return bytes([int(byte[1], 16)])
        return piece.replace(SPACE, " ").encode()
    return piece.encode()


def _begins_word(content: bytes) -> bool:
    text = content.decode("utf-8", "replace")
    if text.startswith("\ufffd"):  # a part of a character
        return content[0] >= 0xE0
    in_word = text[:1].isalnum() or unicodedata.category(text[:1] or " ").startswith("M")
    return not in_word or UNSPACED.match(text) is not None
