"""Tokens of raw text, made once and kept for the next run on the same files."""

import hashlib
import os
from contextlib import suppress
from itertools import count
from pathlib import Path

from lmkit.base.display import note
from lmkit.base.errors import DataError, RunInUse, StorageError, UserError
from lmkit.base.files import write_json
from lmkit.data.tokens.store import PLAN, TokenStore, is_store, is_unfinished, unmake
from lmkit.data.tokens.tokenize import tokenize
from lmkit.recipe import recipe_file
from lmkit.recipe.pretraining import DataConfig, TokenizerConfig
from lmkit.recipe.sources import QualityConfig


def open_tokens(data: DataConfig, tokenizer: TokenizerConfig, family: str, verify: bool = True) -> TokenStore:
    """Returns the token store that `data.train` names, else one in the cache, made of the raw text; `held` by this
    process.

    verify: compares the checksums of all files first, which takes about a second a GB; otherwise a run would learn from
    damaged tokens without a word.
    Raises DataError for a folder that is damaged or unfinished (one in the cache is made anew instead), and RunInUse
    for a folder that is being made anew."""
    sources = [data.train] if isinstance(data.train, str) else data.train
    if len(sources) == 1 and (is_store(sources[0]) or is_unfinished(sources[0])):
        if data.weights:
            raise UserError(f"{sources[0]} holds tokens of one source, and data.weights mixes files\n  → name these")
        if data.quality != QualityConfig():
            raise UserError(
                f"{sources[0]} holds tokens, and data.quality judges texts\n"
                "  → leave it out, or name the files; `lmkit tokenize` has it as options"
            )
        store = TokenStore(sources[0]).held()
        if verify:
            store.verify()
        return store
    cache = cache_folder()
    alike = data.model_copy(update={"weights": (1.0,) * len(data.weights)})  # any weights read the same tokens
    later = (
        {"quality"} if data.quality == QualityConfig() else set()
    )  # caches made before there was this key stay valid
    identity = recipe_file.dump(alike, later) + recipe_file.dump(tokenizer) + family
    key = hashlib.sha256(identity.encode()).hexdigest()[:16]
    for number in count():
        with suppress(RunInUse):  # of files that have changed while a run reads what was made of them
            folder = cache / "tokens" / (f"{key}-{number}" if number else key)
            if verify and is_store(folder):
                _unmake_damaged(folder)
            return tokenize(data, tokenizer, family, folder).held()
    raise AssertionError("there is always another folder")


def _unmake_damaged(folder: Path) -> None:
    """Takes away what makes the folder a store, where a file of it is not what was written, so that its tokens are made
    again. Raises RunInUse where another process reads it."""
    try:
        TokenStore(folder).verify()
    except DataError as e:
        problem = str(e).partition("\n")[0]
        unmake(folder, problem)
        write_json(folder / PLAN, {})  # nothing that lies there is gone on with
        note(f"{problem}; it is made anew from the texts")


def cache_folder() -> Path:
    """Returns LMKIT_CACHE, else a folder in the home directory. Raises StorageError where there is neither."""
    cache = Path(os.environ.get("LMKIT_CACHE") or os.path.expanduser("~/.cache/lmkit"))
    if not cache.is_absolute() and not os.environ.get("LMKIT_CACHE"):
        raise StorageError("there is no home directory for the cache of tokens\n  → set LMKIT_CACHE to a folder")
    return cache
