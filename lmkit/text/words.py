"""Encodes large amounts of text fast: it remembers the ids of words, since words recur.

Byte-level and BERT tokenizers first cut a text into words by a regular expression. At some places there is always a
cut, whatever text is around it. The text between two such places is a unit, whose ids depend only on the unit. Looking
up units is several times faster than `tokenizers` alone, and gives the same ids."""

import re
from dataclasses import dataclass
from typing import Any

import numpy as np

from lmkit.text.tokenizer import Tokenizer, byte_alphabet

# GPT-4's split, but with at most two digits in a word, which is better for small vocabularies (nanochat).
TWO_DIGITS_SPLIT = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,2}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"
)
_CL100K = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
SAME_CUTS = {
    TWO_DIGITS_SPLIT,
    _CL100K % r"\p{N}{1,3}",
    _CL100K % r"\p{N}",
}  # the second is Llama 3's, the third Qwen's and ours
GPT2_SPLIT = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
# There is always a cut before a space or tab that follows a non-space, and after the last newline of a run of white
# space. The first alternative of the expression is only faster for plain words. Python counts \x1c-\x1f as spaces and
# `tokenizers` does not, so no cut is made beside them or beside rare spaces.
GPT4_UNITS = re.compile(
    r" ?[!-~]++(?:(?= [!-~])|\n(?=[!-~]))|[^\S\r\n]*\S+(?:[^\S \t\r\n]\s*\S*)*(?:\s*[\r\n])?|\s*[\r\n]|\s+"
)
# With GPT-2's split, there is always a cut before white space that follows a non-space.
GPT2_UNITS = re.compile(r" ?[!-~]++(?=[ \n][!-~])|\s*\S+(?:[\x1c-\x1f]\s*\S*)*|\s+")
BERT_UNITS = re.compile(r"[ \t\r\n]*[^ \t\r\n]+|[ \t\r\n]+")  # BERT deletes other control characters

CACHE_BYTES = 256_000_000  # about how much memory the remembered units may take, in all processes together
UNIT_BYTES = 200  # bytes that a unit takes besides its text
VISIBLE = dict(enumerate(byte_alphabet()[:128]))  # the characters by which a byte-level model spells ASCII


@dataclass(frozen=True)
class Cuts:
    """Expressions that cut text."""

    units: re.Pattern[str]  # finds units
    words: re.Pattern[str] | None = None  # finds words in a unit of ASCII: the tokenizer's own split


def find_cuts(definition: dict[str, Any]) -> Cuts | None:
    """Returns how to cut text for the tokenizer with this tokenizer.json; None where no expression is known to be
    right."""
    added = [t for t in definition["added_tokens"] if not t["special"]]
    if any(re.search(r"\s", t["content"]) or t["lstrip"] or t["rstrip"] or t["single_word"] for t in added):
        return None
    split, normalizer = definition["pre_tokenizer"], definition["normalizer"]
    if split is None or (normalizer or {}).get("type") not in (None, "NFC", "BertNormalizer"):
        return None
    finer = not added  # an added token may hold a cut of the split
    match split:
        case {"type": "BertPreTokenizer"}:
            return Cuts(BERT_UNITS)
        case {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True} if normalizer is None:
            return Cuts(GPT2_UNITS, _ascii(GPT2_SPLIT) if finer else None)
        case {
            "type": "Sequence",
            "pretokenizers": [
                {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False},
                {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False},
            ],
        } if pattern in SAME_CUTS:
            return Cuts(GPT4_UNITS, _ascii(pattern) if finer else None)
    return None


def _ascii(split: str) -> re.Pattern[str]:
    """Returns a split in Python's syntax, which is right only for ASCII text."""
    inside = re.sub(r"\[[^]]*\]", lambda m: m[0].replace(r"\p{L}", "A-Za-z").replace(r"\p{N}", "0-9"), split)
    return re.compile(inside.replace(r"\p{L}", "[A-Za-z]").replace(r"\p{N}", "[0-9]"), re.ASCII)


class WordEncoder:
    """Encodes documents: the ids of `Tokenizer.encode`, with the control tokens before and after a document."""

    def __init__(self, tokenizer: Tokenizer, processes: int = 1):
        """processes: how many encoders share the machine's memory."""
        self.tokenizer, self.processes = tokenizer, processes
        self.dtype = id_type(tokenizer.vocab_size)
        self.start, self.end = (np.array(ids, self.dtype).tobytes() for ids in tokenizer.document_frame)
        self.cuts = find_cuts(tokenizer.definition)
        self.known: dict[str, bytes] = {}  # unit or word -> its ids as bytes of self.dtype
        self.size = 0

    def __call__(self, texts: list[str]) -> tuple[bytes, np.ndarray]:
        """Returns all ids one after the other as bytes of `dtype`, and the number of ids of each text (int64)."""
        if self.cuts is None:
            encoded = [np.array(ids, self.dtype).tobytes() for ids in self.tokenizer.encode_batch(texts)]
        else:
            units = [self.cuts.units.findall(text) for text in texts]
            self._learn({u for us in units for u in us if u not in self.known})
            encoded = [b"".join(map(self.known.__getitem__, us)) for us in units]
        if self.size > CACHE_BYTES // self.processes:
            self.known, self.size = {}, 0
        lengths = (
            np.array([len(self.start) + len(ids) + len(self.end) for ids in encoded], np.int64) // self.dtype.itemsize
        )
        return b"".join([part for ids in encoded for part in (self.start, ids, self.end)]), lengths

    def _learn(self, units: set[str]) -> None:
        """Encodes and remembers these units, those of ASCII word by word.

        Units are long and often new, but their words rarely are. The model alone encodes an ASCII word in a third of
        the time that the whole of `tokenizers` takes."""
        split = self.cuts.words if self.cuts else None
        plain = {unit for unit in units if unit.isascii()} if split else set()
        words = {unit: split.findall(unit) for unit in plain} if split else {}
        model = self.tokenizer.backend.model
        for word in {word for parts in words.values() for word in parts if word not in self.known}:
            self._remember(word, [token.id for token in model.tokenize(word.translate(VISIBLE))])
        for unit, parts in words.items():
            if len(parts) > 1:
                self.known[unit] = b"".join(map(self.known.__getitem__, parts))
                self.size += len(unit) + UNIT_BYTES
        rest = list(units - plain)
        for unit, ids in zip(rest, self.tokenizer.encode_batch(rest), strict=True):
            self._remember(unit, ids)

    def _remember(self, text: str, ids: list[int]) -> None:
        self.known[text] = np.array(ids, self.dtype).tobytes()
        self.size += len(text) + UNIT_BYTES


def id_type(vocab_size: int) -> np.dtype:
    """Returns the type in which ids are stored: two bytes per id are enough up to 65,535 ids, else four."""
    return np.dtype("<u2" if vocab_size <= 65_535 else "<u4")
