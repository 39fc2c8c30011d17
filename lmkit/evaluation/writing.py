"""Scores of written texts, against one reference text each. Shapes: N texts, F counts per text."""

import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from lmkit.base.errors import UserError
from lmkit.evaluation.intervals import Estimate, means, resampled

# A word is a run of letters and digits, or one character of Chinese or Japanese, which put no spaces between words.
CJK = "぀-ヿ㐀-鿿豈-﫿"
WORD = re.compile(rf"[{CJK}]|[^\W_{CJK}]+")


def score_texts(
    hypotheses: Sequence[str], references: Sequence[str], tokenize: str = "13a", intervals: bool = True
) -> tuple[dict[str, Estimate], dict[str, str]]:
    """Returns bleu and chrf of the corpus, from 0 to 100, and the signature of each.

    They are those of sacrebleu's `corpus_score` (Post 2018; Popović 2015). The signature should be shown wherever the
    number is. N is at least 1. Raises UserError for a tokenisation whose extra packages are missing."""
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
    """Returns sacrebleu's BLEU. Raises UserError where it needs packages that are not installed, as MeCab."""
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
    """Returns the counts (N, F) of each text, out of which the corpus score is computed.

    They are those that sacrebleu's own significance tests use."""
    if len(hypotheses) != len(references):
        raise ValueError(f"{len(hypotheses)} texts but {len(references)} references")
    return np.array(metric._extract_corpus_statistics(hypotheses, [references]), float)


def corpus_score(metric: Any, stats: np.ndarray, weights: np.ndarray) -> float:
    """Returns the score of a corpus that holds each text as often as `weights` (N,) says."""
    return float(metric._compute_score_from_stats((weights @ stats).tolist()).score)


def sentence_chrf(hypothesis: str, reference: str) -> float:
    """Returns the chrF of one text, from 0 to 100."""
    return float(_chrf().sentence_score(hypothesis, [reference]).score)


def words_of(text: str) -> list[str]:
    """Returns the words in lower case, as rouge_score 0.1.2 finds them without stemming, but in all scripts."""
    return WORD.findall(text.lower())


def rouge(hypotheses: Sequence[str], references: Sequence[str], intervals: bool = True) -> dict[str, Estimate]:
    """Returns rouge1, rouge2 and rougeL (Lin 2004), from 0 to 1.

    They are means over texts of the F1 of words, of pairs of words, and of the longest common subsequence of the whole
    text."""
    columns: dict[str, list[float]] = {"rouge1": [], "rouge2": [], "rougeL": []}
    for hypothesis, reference in zip(hypotheses, references, strict=True):
        written, wanted = words_of(hypothesis), words_of(reference)
        for n in (1, 2):
            grams = [Counter(zip(*(x[i:] for i in range(n)), strict=False)) for x in (written, wanted)]
            columns[f"rouge{n}"].append(_f1((grams[0] & grams[1]).total(), grams[0].total(), grams[1].total()))
        columns["rougeL"].append(_f1(longest_common_subsequence(written, wanted), len(written), len(wanted)))
    return means(columns, intervals)


def _f1(common: int, written: int, wanted: int) -> float:
    return 2 * common / (written + wanted) if common else 0.0


def longest_common_subsequence(a: Sequence[str], b: Sequence[str]) -> int:
    """Returns the length of the longest common subsequence (Hyyrö 2004).

    A column of the usual table is one integer, whose bits are 0 where the column increases."""
    places: dict[str, int] = {}
    for i, word in enumerate(a):
        places[word] = places.get(word, 0) | 1 << i
    everything = column = (1 << len(a)) - 1
    for word in b:
        matched = column & places.get(word, 0)
        column = (column + matched) | (column - matched)
    return len(a) - (column & everything).bit_count()
