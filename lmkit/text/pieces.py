"""What the pieces of a vocabulary are: where words begin, which end a sentence, which are ordinary text."""

import re
import unicodedata
from typing import Any

import numpy as np

from lmkit.base.errors import UserError
from lmkit.text.tokenizer import Tokenizer, byte_alphabet
from lmkit.text.tokenizer_classes import SPACE

# Thai to Lao, Burmese, Khmer, kana, Han: text without spaces, where every character counts as a word (BERT does so for
# Han). Otherwise a whole line would be one word, longer than anything that is ever masked.
UNSPACED = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]"
)
STOPS = (".", "!", "?", "…", "。", "！", "？")
CLOSERS = " \t\"'`)]}”’»›」』）】》"
BYTE = re.compile(r"<0x([0-9A-F]{2})>")  # how byte fallback names its pieces


def word_starts(tokenizer: Tokenizer) -> np.ndarray:
    """(V,) bool: whether a piece begins a word. False for ids that the vocabulary lacks.

    A word is letters, marks and digits without a space between them; every other character, and every character of a
    script without spaces, begins one of its own. WordPiece says which pieces continue a word; elsewhere the piece's
    first character tells. A byte-level piece that begins with a part of a character continues the word, except with
    the first byte of a three- or four-byte character, which is mostly a symbol or a script without spaces. A control
    token begins one too, so that no word reaches over it.

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
    """(V,) bool: whether a sentence ends with a piece: it has a line break, or is a stop with nothing but spaces,
    quotes and brackets behind it. Never a control token, nor a stop whose bytes are spread over several pieces."""
    ends = np.zeros(tokenizer.vocab_size, bool)
    kind = _kind(tokenizer)
    for piece, i in tokenizer.vocab.items():
        if i not in tokenizer.special_ids:
            text = _content(tokenizer, piece, i, kind).decode("utf-8", "replace")
            ends[i] = "\n" in text or text.rstrip(CLOSERS).endswith(STOPS)
    return ends


def ordinary_ids(tokenizer: Tokenizer) -> np.ndarray:
    """(n,) int64, ascending: the ids that stand for text. What a mask may be replaced by (`tasks.masking.corrupt`)."""
    return np.array(sorted(set(tokenizer.vocab.values()) - tokenizer.special_ids), np.int64)


def _kind(tokenizer: Tokenizer) -> str | None:
    """How the tokenizer spells spaces: wordpiece, byte-level, sentencepiece; None for any other way."""
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
    """The steps of a normalizer, pre-tokenizer or decoder, out of any sequences."""
    if part is None:
        return []
    nested = next((part[k] for k in ("normalizers", "pretokenizers", "decoders") if k in part), None)
    return [part] if nested is None else [s for p in nested for s in _steps(p)]


_BYTE_OF = {char: byte for byte, char in enumerate(byte_alphabet())}


def _content(tokenizer: Tokenizer, piece: str, token_id: int, kind: str | None) -> bytes:
    """The UTF-8 text a piece adds to a line; a part of a character where the piece is one."""
    if kind == "byte-level" and all(c in _BYTE_OF for c in piece):  # an added token is spelled as it is
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
