"""Encoding large amounts of text: words recur, so their ids are remembered.

Byte-level and BERT tokenizers cut a text into words by a regular expression before anything else. At some places that
cut is certain whatever stands around it; the text between two of them is a unit, and a unit's ids depend on nothing but
the unit. Looking units up is several times faster than `tokenizers` alone, and gives the same ids."""

import re
from typing import Any

import numpy as np

from lmkit.text.tokenizer import Tokenizer

# GPT-4's split with at most two digits together, which suits small vocabularies (nanochat).
SPLIT = r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,2}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"
_CL100K = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
SAME_CUTS = {SPLIT, _CL100K % r"\p{N}{1,3}", _CL100K % r"\p{N}"}  # ours, Llama 3's, Qwen's
# Certain cuts: before a space or tab that follows a non-space, and after the last newline of a run of white space. The
# first alternative is only a fast way to say so for plain words. Python counts \x1c-\x1f as spaces and `tokenizers`
# does not, so no cut is made beside them or beside rare spaces.
GPT4_UNITS = re.compile(
    r" ?[!-~]++(?:(?= [!-~])|\n(?=[!-~]))|[^\S\r\n]*\S+(?:[^\S \t\r\n]\s*\S*)*(?:\s*[\r\n])?|\s*[\r\n]|\s+"
)
# GPT-2's: before any white space that follows a non-space.
GPT2_UNITS = re.compile(r" ?[!-~]++(?=[ \n][!-~])|\s*\S+(?:[\x1c-\x1f]\s*\S*)*|\s+")
BERT_UNITS = re.compile(r"[ \t\r\n]*[^ \t\r\n]+|[ \t\r\n]+")  # it deletes other control characters

CACHE_BYTES = 64_000_000  # about what the remembered units may take
UNIT_BYTES = 200  # what one takes beside its text


def unit_pattern(definition: dict[str, Any]) -> re.Pattern[str] | None:
    """What finds the units of the tokenizer with this tokenizer.json; None when no expression is known to be right."""
    added = [t for t in definition["added_tokens"] if not t["special"]]
    if any(re.search(r"\s", t["content"]) or t["lstrip"] or t["rstrip"] or t["single_word"] for t in added):
        return None
    split, normalizer = definition["pre_tokenizer"], definition["normalizer"]
    if split is None or (normalizer or {}).get("type") not in (None, "NFC", "BertNormalizer"):
        return None
    match split:
        case {"type": "BertPreTokenizer"}:
            return BERT_UNITS
        case {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True} if normalizer is None:
            return GPT2_UNITS
        case {
            "type": "Sequence",
            "pretokenizers": [
                {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False},
                {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False},
            ],
        } if pattern in SAME_CUTS:
            return GPT4_UNITS
    return None


class WordEncoder:
    """Documents to ids: what `Tokenizer.encode` gives, inside the tokenizer's document frame."""

    def __init__(self, tokenizer: Tokenizer):
        self.tokenizer = tokenizer
        self.dtype = id_type(tokenizer.vocab_size)
        self.start, self.end = (np.array(ids, self.dtype).tobytes() for ids in tokenizer.document_frame)
        self.pattern = unit_pattern(tokenizer.definition)
        self.known: dict[str, bytes] = {}  # unit -> its ids as bytes of self.dtype
        self.size = 0

    def __call__(self, texts: list[str]) -> tuple[bytes, np.ndarray]:
        """All ids one after the other as bytes of `dtype`, and the number of ids of each text (int64)."""
        if self.pattern is None:
            found = [np.array(ids, self.dtype).tobytes() for ids in self.tokenizer.encode_batch(texts)]
        else:
            units = [self.pattern.findall(text) for text in texts]
            self._learn(list(dict.fromkeys(u for us in units for u in us if u not in self.known)))
            found = [b"".join(map(self.known.__getitem__, us)) for us in units]
        if self.size > CACHE_BYTES:
            self.known, self.size = {}, 0
        lengths = (
            np.array([len(self.start) + len(ids) + len(self.end) for ids in found], np.int64) // self.dtype.itemsize
        )
        return b"".join([part for ids in found for part in (self.start, ids, self.end)]), lengths

    def _learn(self, units: list[str]) -> None:
        for unit, ids in zip(units, self.tokenizer.encode_batch(units), strict=True):
            self.known[unit] = np.array(ids, self.dtype).tobytes()
        self.size += sum(map(len, units)) + UNIT_BYTES * len(units)


def id_type(vocab_size: int) -> np.dtype:
    """Two bytes an id are enough up to 65,535 ids."""
    return np.dtype("<u2" if vocab_size <= 65_535 else "<u4")
