"""Memorisation: how often a model goes on with a training document word for word (Carlini et al. 2023, Quantifying
Memorization Across Neural Language Models)."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from lmkit.base.display import Meter
from lmkit.base.errors import DataError, ModelError, UserError
from lmkit.base.order import rng_for
from lmkit.checks.result import EXAMPLES, Result, percent
from lmkit.data.tokens.ngrams import BLOCK, ngram_hashes
from lmkit.data.tokens.store import Split, TokenStore
from lmkit.evaluation.intervals import proportion
from lmkit.generation.engine import generate
from lmkit.generation.sampling import SamplingConfig
from lmkit.pretrained import Pretrained

COPIES = {"1 document": (1, 1), "2 to 9 documents": (2, 9), "10 documents or more": (10, None)}
BLIND_SPOTS = [
    "It compares tokens one by one, so it does not see text that is repeated with a small change.",
    "It takes the likeliest continuation alone; sampling, or another prompt, may bring out more.",
    "It tries one place in each sampled document, and no document shorter than prompt and continuation.",
    "A continuation that anybody would write, as a licence or a list of numbers, counts like a private one.",
]


class Passage(NamedTuple):
    """A place in a split at which a continuation is tried."""

    document: int
    prompt: list[int]
    continuation: list[int]


def sample_passages(split: Split, prompt: int, length: int, most: int, seed: int) -> list[Passage]:
    """Returns a random passage of each of at most `most` random documents: `prompt` tokens and the `length` after."""
    rng, size = rng_for(seed, 0, 0), prompt + length
    long_enough = np.flatnonzero(split.lengths >= size)
    chosen = np.sort(rng.permutation(long_enough)[:most])
    passages = []
    for document in chosen.tolist():
        start = int(rng.integers(int(split.lengths[document]) - size + 1))
        ids = split.tokens(document, start, start + size).tolist()
        passages.append(Passage(document, ids[:prompt], ids[prompt:]))
    return passages


def documents_with(split: Split, continuations: Sequence[Sequence[int]]) -> list[int]:
    """Returns in how many documents each continuation stands: the k of k-eidetic memorisation (Carlini et al. 2021).

    All continuations have one length. The store is read once; places whose hash is that of a continuation are then
    compared token by token."""
    wanted = np.array(continuations, np.int64)
    length, total = wanted.shape[1], split.num_tokens
    hashes, holders = ngram_hashes(wanted.reshape(-1), length)[::length], [set[int]() for _ in continuations]
    ends = split.starts + split.lengths
    with Meter("looking for copies", total) as meter:
        for begin in range(0, total - length + 1, BLOCK):
            meter.update(begin)
            block = split.stream(begin, min(begin + BLOCK + length - 1, total)).astype(np.int64)
            block_hashes = ngram_hashes(block, length)
            for place in np.flatnonzero(np.isin(block_hashes, hashes)).tolist():
                document = int(np.searchsorted(ends, begin + place, side="right"))
                if begin + place + length <= ends[document]:
                    same = (wanted == block[place : place + length]).all(1)
                    for number in np.flatnonzero(same).tolist():
                        holders[number].add(document)
    return [len(documents) for documents in holders]


def check_memorisation(
    loaded: Pretrained, store: TokenStore, prompt: int = 32, length: int = 32, most: int = 200, seed: int = 0
) -> Result:
    """Returns how many continuations of training documents a decoder reproduces greedily, by the number of documents
    that hold them; and how many of documents that were held out, which it has not read.

    Raises UserError for a model that is no decoder, ModelError where the store is of another tokenizer, and DataError
    where no document is long enough."""
    _check_fit(loaded, store, prompt + length)
    train = store.split("train")
    passages = sample_passages(train, prompt, length, most, seed)
    if not passages:
        raise DataError(
            f"{store.path}: no training document has {prompt + length} tokens\n"
            "  → ask for less with --prompt-tokens and --max-tokens"
        )
    held_out = sample_passages(store.split("validation"), prompt, length, most, seed)
    hits, held_out_hits = _reproduced(loaded, passages), _reproduced(loaded, held_out)
    copies = documents_with(train, [p.continuation for p in passages])
    shares = {"reproduced": proportion(sum(hits), len(hits))}
    for name, (low, high) in COPIES.items():
        group = [hit for hit, k in zip(hits, copies, strict=True) if k >= low and (high is None or k <= high)]
        if group:
            shares[f"in {name}"] = proportion(sum(group), len(group))
    if held_out:
        shares["held out"] = proportion(sum(held_out_hits), len(held_out))
    counts = {"passages": len(hits), "reproduced": sum(hits), "held out": len(held_out)}
    counts |= {"too short": int((train.lengths < prompt + length).sum()), "documents": train.num_documents}
    tokenizer = loaded.needs_tokenizer()
    examples = [
        f"document {p.document}, k = {k}: …{tokenizer.decode(p.continuation)!r}"
        for p, hit, k in zip(passages, hits, copies, strict=True)
        if hit
    ][:EXAMPLES]
    summary = (
        f"Given {prompt} tokens of a training document, it reproduces the next {length} in"
        f" {percent(shares['reproduced'])} of {len(hits):,} documents."
    )
    return Result("memorised", summary, counts, shares, BLIND_SPOTS, examples)


def _check_fit(loaded: Pretrained, store: TokenStore, size: int) -> None:
    loaded.check_use("generate")
    if loaded.config.stacks != "decoder" or store.pairs:
        raise UserError(f"{loaded.folder}: memorisation is checked of decoders, on stores of documents")
    if loaded.needs_tokenizer().fingerprint != store.tokenizer.fingerprint:
        raise ModelError(
            f"{store.path}: its tokens are not those of {loaded.folder}\n  → name the store that it was trained on"
        )
    if size > loaded.config.context:
        raise UserError(
            f"--prompt-tokens and --max-tokens make {size} tokens, above the model's context of {loaded.config.context}"
        )


def _reproduced(loaded: Pretrained, passages: Sequence[Passage]) -> list[bool]:
    """Returns of each passage whether the likeliest continuation is the document's own. No token ends a text here."""
    if not passages:
        return []
    config = SamplingConfig(max_tokens=len(passages[0].continuation), temperature=0)
    hits = list[bool]()
    with Meter("going on with documents", len(passages)) as meter:
        for written, passage in zip(
            generate(loaded.model, (p.prompt for p in passages), config), passages, strict=True
        ):
            hits.append(written.ids == passage.continuation)
            meter.update(len(hits), f"{sum(hits):,} reproduced")
    return hits
