"""Scores how well an encoder-decoder predicts the targets of pairs, or damaged texts, with intervals over documents.

Every token is predicted from the true ones before it (teacher forcing). Scores compare only models with the same
tokenizer, and on damaged text only with the same kind of noise, which depends only on the seed, the document and its
window."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np

from lmkit.base.errors import DataError
from lmkit.base.order import rng_for
from lmkit.evaluation.scoring import BATCH_TOKENS, Tally, check_embedded, check_losses, score_rows
from lmkit.model.transformer import Transformer
from lmkit.objectives.build import denoising, frame, raw_tokens, span_corruption
from lmkit.objectives.seq2seq import Denoising, Seq2Seq, SpanCorruption, parallel
from lmkit.recipe.objectives import DenoisingConfig, SpanCorruptionConfig
from lmkit.text.tokenizer import Tokenizer

NoiseConfig = SpanCorruptionConfig | DenoisingConfig


@dataclass
class WrittenScores(Tally):
    """Scores of written texts. `tokens` counts those of the targets, EOS included; `unknown` counts both sides of a
    pair."""

    source_tokens: int = 0


def evaluate_pairs(
    model: Transformer, tokenizer: Tokenizer, pairs: Iterable[tuple[str, str]], start: int,
    batch_tokens: int = BATCH_TOKENS,
) -> WrittenScores:  # fmt: skip
    """Scores the targets of pairs (source, target), both with the control tokens that training adds.

    A pair with a side longer than the context is left out and counted. start: the token that the decoder starts from.
    model: in eval mode. Pairs are read as they are needed. Raises DataError where no pair is left, and ModelError for
    losses that are not finite."""
    scores = WrittenScores()
    before, after = tokenizer.document_frame
    too_long = f"pairs with a side longer than {model.config.context} tokens"
    check_embedded(model, (start, *before, *after))

    def rows() -> Iterator[dict]:
        for pair in pairs:
            sides = zip((tokenizer, tokenizer.for_targets), pair, strict=True)
            source, target = (np.array([*before, *side.encode(text), *after]) for side, text in sides)
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
    """Scores documents, cut into windows that fit the context and damaged as `config` says.

    A span of noise is a run of target tokens that the source does not show. start: the token that the decoder starts
    from. model: in eval mode. Texts are read as they are needed. Raises DataError where there is no text, and
    ModelError for a tokenizer without a token that the noise needs and for losses that are not finite."""
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
    # No real token sees padding, so it may be any id that has an embedding.
    score_rows(model, Seq2Seq(parallel, start, pad=0), rows, scores, batch_tokens)
    check_losses(scores.nats)


def _spans(
    make: SpanCorruption | Denoising, row: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns source, target, and for each target token the number of its span of noise, from 0; -1 for none."""
    if isinstance(make, SpanCorruption):
        source, target = make({"tokens": row}, rng)
        marks = np.isin(target, make.sentinels)
        spans = np.where(marks, -1, np.cumsum(marks) - 1)
        spans[-1] = -1  # EOS
        return source, target, spans
    # Applying the same noise to positions instead of tokens shows which tokens it removes.
    places = replace(make, ends=make.ends[row], maskable=make.maskable[row], mask=len(row))
    remaining, _ = places({"tokens": np.arange(len(row))}, rng)
    removed = ~np.isin(np.arange(len(row)), remaining)
    opens = removed & ~np.append(False, removed[:-1])
    return np.append(row, make.mask)[remaining], row, np.where(removed, np.cumsum(opens) - 1, -1)
