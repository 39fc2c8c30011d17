"""Scores of written texts, against one reference text each or several. Shapes: N texts, F counts per text."""

import re
from collections import Counter
from collections.abc import Sequence
from importlib.util import find_spec
from itertools import zip_longest
from typing import Any

import numpy as np

from lmkit.base.errors import UserError
from lmkit.evaluation.intervals import Estimate, means, resampled

# A word is a run of letters and digits, or one character of Chinese or Japanese, which put no spaces between words.
CJK = "぀-ヿ㐀-鿿豈-﫿"
WORD = re.compile(rf"[{CJK}]|[^\W_{CJK}]+")


ROUGE = ("rouge1", "rouge2", "rougeL", "rougeLsum")
References = Sequence[str] | Sequence[Sequence[str]]  # (N,) texts, or lists of texts


def tokenizer_for(texts: Sequence[str]) -> str:
    """Returns the name of sacrebleu's tokeniser for the script that most of the letters of texts are in: Chinese,
    Japanese or Korean (by characters where MeCab is not installed), else 13a."""
    letters = "".join(c for text in texts for c in text if c.isalpha())
    kana, hangul, han = (len(re.findall(f"[{span}]", letters)) for span in ("぀-ヿ", "가-힣", "㐀-鿿豈-﫿"))
    if 2 * (kana + hangul + han) <= len(letters):
        return "13a"
    if kana + hangul < 0.05 * han:
        return "zh"
    name, package = ("ja-mecab", "MeCab") if kana > hangul else ("ko-mecab", "mecab_ko")
    return name if find_spec(package) else "char"


def score_texts(
    hypotheses: Sequence[str], references: References, tokenize: str = "13a", intervals: bool = True
) -> tuple[dict[str, Estimate], dict[str, str]]:
    """Returns bleu and chrf of the corpus, from 0 to 100, beside intervals also ter, which is slow and better the lower
    it is; and the signature of each.

    They are those of sacrebleu's `corpus_score` (Post 2018; Popović 2015; Snover et al. 2006). The signature should be
    shown wherever the number is. N is at least 1. Raises UserError for a tokenisation whose extra packages are
    missing."""
    from sacrebleu.metrics.ter import TER

    scores: dict[str, Estimate] = {}
    signatures: dict[str, str] = {}
    unspaced = tokenize in ("char", "zh", "ja-mecab")
    ter = {"ter": TER(normalized=unspaced, asian_support=unspaced)} if intervals else {}
    metrics = {"bleu": bleu(tokenize), "chrf": _chrf()} | ter
    for name, metric in metrics.items():
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


def streams(references: References) -> list[list[str]]:
    """Returns references as sacrebleu takes them: the first of each text, the second, and so on; None for no more."""
    each = [[texts] if isinstance(texts, str) else texts for texts in references]
    return [list(stream) for stream in zip_longest(*each)]


def statistics(metric: Any, hypotheses: Sequence[str], references: References) -> np.ndarray:
    """Returns the counts (N, F) of each text, out of which the corpus score is computed.

    They are those that sacrebleu's own significance tests use."""
    if len(hypotheses) != len(references):
        raise ValueError(f"{len(hypotheses)} texts but {len(references)} references")
    return np.array(metric._extract_corpus_statistics(hypotheses, streams(references)), float)


def corpus_score(metric: Any, stats: np.ndarray, weights: np.ndarray) -> float:
    """Returns the score of a corpus that holds each text as often as `weights` (N,) says."""
    return float(metric._compute_score_from_stats((weights @ stats).tolist()).score)


def sentence_chrf(hypothesis: str, references: Sequence[str]) -> float:
    """Returns the chrF of one text, from 0 to 100."""
    return float(_chrf().sentence_score(hypothesis, references).score)


def words_of(text: str) -> list[str]:
    """Returns the words in lower case, as rouge_score 0.1.2 finds them without stemming, but in all scripts."""
    return WORD.findall(text.lower())


def rouge(hypotheses: Sequence[str], references: References, intervals: bool = True) -> dict[str, Estimate]:
    """Returns rouge1, rouge2, rougeL and rougeLsum (Lin 2004), from 0 to 1.

    They are means over texts of the F1 of words, of pairs of words, of the longest common subsequence of the whole
    text, and of the union of those of its sentences, which are its lines, as rouge_score has it: of texts without
    newlines rougeLsum is rougeL. Of several references that with the best score counts, for each of these alone."""
    rows = []
    for hypothesis, texts in zip(hypotheses, references, strict=True):
        each = [_rouge(hypothesis, text) for text in ([texts] if isinstance(texts, str) else texts)]
        rows.append([max(scores) for scores in zip(*each, strict=True)])
    return means(dict(zip(ROUGE, zip(*rows, strict=True), strict=True)), intervals)


def _rouge(hypothesis: str, reference: str) -> list[float]:
    """Returns the scores named in `ROUGE`."""
    written, wanted = words_of(hypothesis), words_of(reference)
    sizes, scores = (len(written), len(wanted)), []
    for n in (1, 2):
        grams = [Counter(zip(*(x[i:] for i in range(n)), strict=False)) for x in (written, wanted)]
        scores.append(_f1((grams[0] & grams[1]).total(), grams[0].total(), grams[1].total()))
    lines = [[words_of(line) for line in text.split("\n")] for text in (hypothesis, reference)]
    whole = _f1(longest_common_subsequence(written, wanted), *sizes)
    return [*scores, whole, _f1(_union_of_sentences(*lines), *sizes) if max(map(len, lines)) > 1 else whole]


def _f1(common: int, written: int, wanted: int) -> float:
    return 2 * common / (written + wanted) if common else 0.0


def longest_common_subsequence(a: Sequence[str], b: Sequence[str]) -> int:
    """Returns the length of the longest common subsequence."""
    return _subsequence_length(_subsequence_columns(a, b)[-1], len(a))


def _subsequence_columns(a: Sequence[str], b: Sequence[str]) -> list[int]:
    """Returns the columns of the usual table of longest common subsequences, one more than b has words (Hyyrö 2004).

    A column is one integer, whose bits are 0 where the column increases."""
    places: dict[str, int] = {}
    for i, word in enumerate(a):
        places[word] = places.get(word, 0) | 1 << i
    everything = (1 << len(a)) - 1
    columns = [everything]
    for word in b:
        matched = columns[-1] & places.get(word, 0)
        columns.append(((columns[-1] + matched) | (columns[-1] - matched)) & everything)
    return columns


def _subsequence_length(column: int, rows: int) -> int:
    """Returns the entry of the table in a column, below its first rows."""
    return rows - (column & ((1 << rows) - 1)).bit_count()


def _common_places(a: Sequence[str], b: Sequence[str]) -> set[int]:
    """Returns the places in `a` of a longest common subsequence: of several that which rouge_score takes."""
    columns, places = _subsequence_columns(a, b), set[int]()
    i, j = len(a), len(b)
    while i and j:
        if a[i - 1] == b[j - 1]:
            i, j = i - 1, j - 1
            places.add(i)
        elif _subsequence_length(columns[j - 1], i) > _subsequence_length(columns[j], i - 1):
            j -= 1
        else:
            i -= 1
    return places


def _union_of_sentences(written: Sequence[Sequence[str]], wanted: Sequence[Sequence[str]]) -> int:
    """Returns how many words of the wanted sentences are in a longest common subsequence with a written one, each
    counted at most as often as either text has it (Lin 2004, 3.2)."""
    common = Counter[str]()
    for sentence in wanted:
        places = set[int]().union(*(_common_places(sentence, other) for other in written))
        common.update(sentence[i] for i in places)
    return (common & Counter(word for sentence in written for word in sentence)).total()
