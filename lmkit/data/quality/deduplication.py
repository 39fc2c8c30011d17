"""Documents that were seen before, by 64-bit keys: of the whole text, or of MinHash signatures (Broder 1997) in the
setting of FineWeb: 5-grams of words, 14 buckets of 8 hashes. Two texts of Jaccard similarity s have the same key of
some bucket with probability 1 - (1 - s^8)^14: a half at 0.68, 92% at 0.8."""

import hashlib
from array import array

from lmkit.base.errors import UserError
from lmkit.data.quality.decontamination import ngrams

SHINGLE, BUCKETS, HASHES = 5, 14, 8
SEED = 1


def key_of(content: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "little") or 1  # 0: an empty place


def exact_keys(text: str) -> list[int]:
    """Returns the key of a text."""
    return [key_of(text.encode())]


def near_keys(text: str) -> list[int]:
    """Returns a key for each bucket of hashes. Equal texts have equal keys, alike texts most likely one in common.
    Raises UserError where the library is missing."""
    try:
        from rensa import RMinHash
    except ImportError:
        raise UserError('near duplicates need rensa\n  → pip install "lmkit[data]"') from None
    signature = RMinHash(num_perm=BUCKETS * HASHES, seed=SEED)
    signature.update(list(ngrams(text, SHINGLE)) or [text])  # of a text with fewer words: equal ones alone
    hashes = array("I", signature.digest())
    return [key_of(bytes([i]) + hashes[i * HASHES : (i + 1) * HASHES].tobytes()) for i in range(BUCKETS)]


KEYS = {"exact": exact_keys, "near": near_keys}
NUMBER_OF_KEYS = {"exact": 1, "near": BUCKETS}  # of a document


class Keys:
    """A set of 64-bit hashes other than 0, in one array (open addressing): 11 to 21 bytes each."""

    def __init__(self) -> None:
        self.table, self.count = array("Q", bytes(8 * 1024)), 0

    def _place(self, key: int) -> int:
        table, mask = self.table, len(self.table) - 1
        place = key & mask
        while table[place] not in (0, key):
            place = (place + 1) & mask
        return place

    def __contains__(self, key: int) -> bool:
        return self.table[self._place(key)] == key

    def add(self, key: int) -> None:
        if 4 * self.count >= 3 * len(self.table):
            old, self.table, self.count = self.table, array("Q", bytes(16 * len(self.table))), 0
            for other in filter(None, old):
                self.add(other)
        place = self._place(key)
        self.count += not self.table[place]
        self.table[place] = key
