"""Sequences of n tokens in the documents of a store, found by their hashes."""

import numpy as np

BLOCK = 1 << 20  # tokens of a store that are compared at a time
FACTOR = np.uint64(0x9E3779B97F4A7C15)  # of the hash; odd, so that no token is lost


def ngram_hashes(ids: np.ndarray, length: int) -> np.ndarray:
    """Returns the hash of the `length` ids from each place on, (n - length + 1,) uint64: a polynomial modulo 2^64."""
    powers = np.cumprod(np.full(length, FACTOR))
    return np.lib.stride_tricks.sliding_window_view(ids.astype(np.uint64) + np.uint64(1), length) @ powers
