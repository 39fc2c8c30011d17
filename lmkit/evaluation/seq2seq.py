"""How well an encoder-decoder writes: the targets of pairs, or texts that were damaged, with intervals over documents.

Every token is predicted from the true ones before it (teacher forcing). Scores compare models with one tokenizer, and
on damaged text with one kind of noise, which is a pure function of the seed, the document and its window."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np

from lmkit.base.errors import DataError
from lmkit.base.order import rng_for
from lmkit.evaluation.scoring import BATCH_TOKENS, Tally, check_embedded, check_finite, score_rows
from lmkit.model.transformer import Transformer
from lmkit.objectives.build import denoising, frame, raw_tokens, span_corruption
from lmkit.objectives.seq2seq import Denoising, Seq2Seq, SpanCorruption, parallel
from lmkit.recipe.objectives import DenoisingConfig, SpanCorruptionConfig
from lmkit.text.tokenizer import Tokenizer

NoiseConfig = SpanCorruptionConfig | DenoisingConfig


@dataclass
class WrittenScores(Tally):
    """`tokens` are those of the targets, EOS included; `unknown` ones are counted on both sides of a pair."""

    source_tokens: int = 0


def evaluate_pairs(
    model: Transformer, tokenizer: Tokenizer, pairs: Iterable[tuple[str, str]], start: int,
    batch_tokens: int = BATCH_TOKENS,
) -> WrittenScores:  # fmt: skip
    """Score the targets of (source, target), both as training frames them. A pair with a side longer than the context
    is left out and counted. start: what the decoder starts from.

    model: in eval mode. Pairs are read as they are needed. Raises DataError when none is left, ModelError for losses
    that are not finite."""
    scores = WrittenScores()
    before, after = tokenizer.document_frame
    too_long = f"pairs with a side longer than {model.config.context} tokens"
    check_embedded(model, (start, *before, *after))

    def rows() -> Iterator[dict]:
        for pair in pairs:
            source, target = (np.array([*before, *ids, *after]) for ids in tokenizer.encode_batch(pair))
            if max(len(source), len(target)) > model.config.context:
                scores.skipped[too_long] += 1
                continue
            scores.unknown += tokenizer.count_unknown(source) + tokenizer.count_unknown(target)
            scores.unspelt += tokenizer.count_unspelt(pair)
            scores.source_tokens += len(source)
            yield {"source": source, "target": target, "documents": [scores.open()]}

    _score(model, rows(), start, scores, batch_tokens)
    if not scores.nats:
        raise DataError(f"no pair of texts fits the model's context of {model.config.context} tokens")
    return scores


def evaluate_noise(
    model: Transformer, tokenizer: Tokenizer, texts: Iterable[str], config: NoiseConfig, start: int, seed: int = 0,
    batch_tokens: int = BATCH_TOKENS,
) -> WrittenScores:  # fmt: skip
    """Score documents, cut into windows that fit the context and damaged as `config` says. A span of noise is a run of
    target tokens that the source does not show. start: what the decoder starts from.

    model: in eval mode. Texts are read as they are needed. Raises DataError without text, ModelError for a tokenizer
    without what the noise needs and for losses that are not finite."""
    scores = WrittenScores()
    first = last = np.empty(0, np.int64)
    make: SpanCorruption | Denoising
    if isinstance(config, SpanCorruptionConfig):
        make = span_corruption(config, tokenizer)
        room, shortest = min(raw_tokens(d, model.config.context) for d in config.denoisers), 2
        check_embedded(model, (start, make.eos, *make.sentinels, *(m for m in make.modes if m is not None)))
    else:
        make = denoising(config, tokenizer)
        first, last = (np.array([i]) for i in frame(tokenizer))
        room, shortest = model.config.context - 2, 1
        check_embedded(model, (start, make.mask, *first, *last))

    def rows() -> Iterator[dict]:
        for text in texts:
            ids, document = np.array(tokenizer.encode(text), np.int64), scores.open()
            scores.unknown += tokenizer.count_unknown(ids)
            scores.unspelt += tokenizer.count_unspelt([text])
            for window, begin in enumerate(range(0, len(ids), room)):
                part = np.concatenate([first, ids[begin : begin + room], last])
                if len(part) < shortest:
                    scores.skipped["parts of a single token, too short for noise"] += 1
                    continue
                source, target, spans = _spans(make, part, rng_for(seed, document, window))
                scores.source_tokens += len(source)
                yield {"source": source, "target": target, "documents": [document], "spans": spans}

    _score(model, rows(), start, scores, batch_tokens)
    if not any(scores.tokens):
        raise DataError("there is no text to score")
    return scores


def _score(model: Transformer, rows: Iterator[dict], start: int, scores: WrittenScores, batch_tokens: int) -> None:
    # no real token sees padding, so any id that has an embedding will do
    score_rows(model, Seq2Seq(parallel, start, pad=0), rows, scores, batch_tokens)
    check_finite(scores.nats)


def _spans(
    make: SpanCorruption | Denoising, row: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Source, target, and for each target token the span of noise it is of, from 0; -1: none."""
    if isinstance(make, SpanCorruption):
        source, target = make({"tokens": row}, rng)
        marks = np.isin(target, make.sentinels)
        spans = np.where(marks, -1, np.cumsum(marks) - 1)
        spans[-1] = -1  # EOS
        return source, target, spans
    # the same noise on positions in place of tokens tells which are gone
    places = replace(make, ends=make.ends[row], maskable=make.maskable[row], mask=len(row))
    left, _ = places({"tokens": np.arange(len(row))}, rng)
    gone = ~np.isin(np.arange(len(row)), left)
    opens = gone & ~np.append(False, gone[:-1])
    return np.append(row, make.mask)[left], row, np.where(gone, np.cumsum(opens) - 1, -1)
