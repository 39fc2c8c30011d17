"""Contamination: texts to be scored on that stand in a corpus, by the n-grams of lmkit.data.quality.decontamination."""

from collections.abc import Iterable

from lmkit.base.errors import DataError
from lmkit.checks.result import EXAMPLES, Result, percent
from lmkit.data.quality.decontamination import WORDS, ngrams
from lmkit.evaluation.intervals import proportion, ratio

BLIND_SPOTS = [
    "It does not see what was translated, or changed in at least one of every 13 words.",
    "It compares words between spaces, so it sees nothing in texts of languages that write none.",
    "It cannot judge texts of fewer than 13 words; they are counted and left out.",
    "Overlap may be a quotation that both have from elsewhere, and no copy of the answers.",
]


def check_contamination(
    corpus: Iterable[tuple[str, str]], evaluation: Iterable[tuple[str, str]], n: int = WORDS
) -> Result:
    """Returns how many evaluation texts share an n-gram of words with a corpus, which is read once and never held.

    corpus, evaluation: (place, text) each. Raises DataError where no evaluation text has n words."""
    texts, places, short = list[set[str]](), list[str](), 0
    for place, text in evaluation:
        grams = set(ngrams(text, n))
        short += not grams
        if grams:
            texts.append(grams)
            places.append(place)
    if not texts:
        raise DataError(f"no text of --against has {n} words\n  → shorter texts cannot be checked")
    wanted = set().union(*texts)
    holders, documents = dict[str, str](), 0  # of each n-gram that stands in the corpus, the first place
    for place, text in corpus:
        documents += 1
        for gram in ngrams(text, n):
            if gram in wanted:
                holders.setdefault(gram, place)
    overlaps = [len(grams & holders.keys()) for grams in texts]
    dirty = sum(1 for overlap in overlaps if overlap)
    shares = {"texts with overlap": proportion(dirty, len(texts))}
    shares["n-grams that overlap"] = ratio(overlaps, [len(grams) for grams in texts])
    counts = {"evaluation texts": len(texts), "with overlap": dirty, "too short": short, "corpus documents": documents}
    examples = []
    for place, grams in zip(places, texts, strict=True):
        if shared := sorted(grams & holders.keys()):
            examples.append(f"{place} in {holders[shared[0]]}: {shared[0]!r}")
    shown = percent(shares["texts with overlap"])
    summary = f"Of {len(texts):,} evaluation texts, {shown} share {n} words in a row with the corpus."
    return Result("against", summary, counts, shares, BLIND_SPOTS, examples[:EXAMPLES])
