"""Scores of texts that were written, against one reference each. Shapes: N texts."""

import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from lmkit.base.errors import UserError
from lmkit.evaluation.intervals import Estimate, means, resampled

# A run of letters and digits; each character of Chinese and Japanese, which put no spaces between words.
CJK = "぀-ヿ㐀-鿿豈-﫿"
WORD = re.compile(rf"[{CJK}]|[^\W_{CJK}]+")


def score(
    hypotheses: Sequence[str], references: Sequence[str], tokenize: str = "13a", intervals: bool = True
) -> tuple[dict[str, Estimate], dict[str, str]]:
    """bleu and chrf of the corpus, 0 to 100, as sacrebleu's `corpus_score` gives them (Post 2018; Popović 2015), and
    the signature of each, which belongs beside the number wherever it is told. N is at least 1.

    Raises UserError for a tokenisation whose extra packages are missing."""
    scores: dict[str, Estimate] = {}
    signatures: dict[str, str] = {}
    for name, metric in {"bleu": bleu(tokenize), "chrf": _chrf()}.items():
        stats = statistics(metric, hypotheses, references)

        def statistic(
            weights: np.ndarray, name: str = name, metric: Any = metric, stats: Any = stats
        ) -> dict[str, float]:
            return {name: corpus_score(metric, stats, weights)}

        scores |= resampled(statistic, len(stats), intervals)
        signatures[name] = str(metric.get_signature())
    return scores, signatures


def bleu(tokenize: str = "13a") -> Any:
    """sacrebleu's BLEU. Raises UserError where MeCab is needed and missing."""
    from sacrebleu.metrics.bleu import BLEU

    try:
        return BLEU(tokenize=tokenize)
    except RuntimeError as error:
        language = tokenize.partition("-")[0]
        raise UserError(
            f"tokenize: {tokenize} needs packages that are not installed\n  → pip install 'sacrebleu[{language}]'"
        ) from error


def _chrf() -> Any:
    from sacrebleu.metrics.chrf import CHRF

    return CHRF()


def statistics(metric: Any, hypotheses: Sequence[str], references: Sequence[str]) -> np.ndarray:
    """Counts (N, F) of each text that the corpus score is made of: sacrebleu's own significance tests use the same."""
    if len(hypotheses) != len(references):
        raise ValueError(f"{len(hypotheses)} texts but {len(references)} references")
    return np.array(metric._extract_corpus_statistics(hypotheses, [references]), float)


def corpus_score(metric: Any, stats: np.ndarray, weights: np.ndarray) -> float:
    """Of a corpus that holds each text as often as `weights` (N,) says."""
    return float(metric._compute_score_from_stats((weights @ stats).tolist()).score)


def sentence_chrf(hypothesis: str, reference: str) -> float:
    """chrF of one text, 0 to 100."""
    return float(_chrf().sentence_score(hypothesis, [reference]).score)


def words(text: str) -> list[str]:
    """Words in lower case, as rouge_score 0.1.2 finds them without stemming, but in all scripts."""
    return WORD.findall(text.lower())


def rouge(hypotheses: Sequence[str], references: Sequence[str], intervals: bool = True) -> dict[str, Estimate]:
    """rouge1, rouge2 and rougeL (Lin 2004): means over texts of the F1 of words, pairs of words, and the longest common
    subsequence of the whole text. Shares of 1."""
    columns: dict[str, list[float]] = {"rouge1": [], "rouge2": [], "rougeL": []}
    for hypothesis, reference in zip(hypotheses, references, strict=True):
        said, there = words(hypothesis), words(reference)
        for n in (1, 2):
            grams = [Counter(zip(*(x[i:] for i in range(n)), strict=False)) for x in (said, there)]
            columns[f"rouge{n}"].append(_f1((grams[0] & grams[1]).total(), grams[0].total(), grams[1].total()))
        columns["rougeL"].append(_f1(longest_common_subsequence(said, there), len(said), len(there)))
    return means(columns, intervals)


def _f1(common: int, said: int, there: int) -> float:
    return 2 * common / (said + there) if common else 0.0


def longest_common_subsequence(a: Sequence[str], b: Sequence[str]) -> int:
    """Its length. A column of the usual table is one integer, whose bits are 0 where it steps up (Hyyrö 2004)."""
    places: dict[str, int] = {}
    for i, word in enumerate(a):
        places[word] = places.get(word, 0) | 1 << i
    everything = column = (1 << len(a)) - 1
    for word in b:
        matched = column & places.get(word, 0)
        column = (column + matched) | (column - matched)
    return len(a) - (column & everything).bit_count()
