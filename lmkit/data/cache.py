"""Tokens of raw text, made once and kept for the next run on the same files."""

import hashlib
import os
from contextlib import suppress
from itertools import count
from pathlib import Path

from lmkit import config
from lmkit.data.store import TokenStore, is_store
from lmkit.data.tokenize import tokenize
from lmkit.errors import RunInUse, StorageError
from lmkit.recipe import DataConfig, TokenizerConfig


def open_tokens(data: DataConfig, tokenizer: TokenizerConfig, family: str) -> TokenStore:
    """The folder of tokens named by `data.train`, else raw text tokenized into the cache; `held` by this process.

    Raises RunInUse for a folder that is being made anew."""
    sources = [data.train] if isinstance(data.train, str) else data.train
    if len(sources) == 1 and is_store(Path(sources[0])):
        return TokenStore(Path(sources[0])).held()
    cache = cache_folder()
    identity = config.dump(data) + config.dump(tokenizer) + family
    key = hashlib.sha256(identity.encode()).hexdigest()[:16]
    for number in count():
        with suppress(RunInUse):  # of files that have changed while a run reads what was made of them
            return tokenize(data, tokenizer, family, cache / "tokens" / (f"{key}-{number}" if number else key)).held()
    raise AssertionError("there is always another folder")


def cache_folder() -> Path:
    """LMKIT_CACHE, else one in the home directory. Raises StorageError where there is neither."""
    cache = Path(os.environ.get("LMKIT_CACHE") or os.path.expanduser("~/.cache/lmkit"))
    if not cache.is_absolute() and not os.environ.get("LMKIT_CACHE"):
        raise StorageError("there is no home directory for the cache of tokens\n  → set LMKIT_CACHE to a folder")
    return cache
