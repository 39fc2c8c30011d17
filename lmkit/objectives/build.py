"""Builds the objective and its rows from a recipe's task and data."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from lmkit.architecture.families import FAMILIES
from lmkit.base.errors import DataError, ModelError, UserError
from lmkit.base.order import Mixture
from lmkit.data.tokens.packing import PackedRows
from lmkit.data.tokens.rows import JoinedRows, ParallelRows, SentenceChunks, StreamRows
from lmkit.data.tokens.store import Split, TokenStore
from lmkit.objectives.batch import ExampleSource, Objective
from lmkit.objectives.causal_lm import CausalLM
from lmkit.objectives.masked_lm import MaskableVocabulary, MaskedLM
from lmkit.objectives.noise.spans import corrupted_lengths, raw_length
from lmkit.objectives.seq2seq import Denoising, Seq2Seq, SpanCorruption, parallel
from lmkit.recipe.objectives import Denoiser, DenoisingConfig, MaskedLMConfig, Seq2SeqConfig, SpanCorruptionConfig
from lmkit.recipe.pretraining import Recipe
from lmkit.recipe.sources import SourcesConfig
from lmkit.text.pieces import ordinary_ids, sentence_ends, word_starts
from lmkit.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class Work:
    """An objective with the rows that it learns from, and the same objective as it is scored on held-out rows."""

    objective: Objective
    rows: ExampleSource
    scored: Objective
    held_out: ExampleSource
    row_tokens: float  # tokens of an average row, as `train.batch` counts them
    note: str  # a line for people: how the text was cut into rows
    tokens_per_byte: float | None = None  # of the held-out text; None unless every token of it is predicted
    mixture: Mixture | None = None  # of the rows, where sources have weights


def build_objective(recipe: Recipe, store: TokenStore, tokenizer: Tokenizer) -> Work:
    """Returns the objective of the recipe's task, with its rows out of `store`.

    Raises DataError where the data is of another kind, and ModelError for a tokenizer without a token that the task
    needs."""
    task = recipe.task
    if store.pairs != isinstance(task, Seq2SeqConfig):
        content = "pairs of texts" if store.pairs else "single texts"
        raise DataError(
            f"{store.path} holds {content}, which {task.name} does not learn from\n  → tokenize the data again"
        )
    held_out, count = store.split("validation"), len(recipe.data.weights)
    if not count:
        return _of_split(recipe, store.split("train"), held_out, tokenizer)
    splits = [store.split("train", source) for source in range(count)]
    works = [_of_split(recipe, split, held_out, tokenizer) for split in splits]
    rows = JoinedRows([work.rows for work in works], [split.num_documents // (1 + store.pairs) for split in splits])
    mixture = mixture_of([len(work.rows) for work in works], recipe.data, [work.row_tokens for work in works])
    tokens = sum(len(work.rows) * work.row_tokens for work in works) / len(rows)
    notes = "; ".join(f"{name}: {work.note}" for name, work in zip(recipe.data.sources, works, strict=True))
    return replace(works[0], rows=rows, row_tokens=tokens, note=notes, mixture=mixture)


def mixture_of(sizes: list[int], data: SourcesConfig, row_tokens: Sequence[float] = ()) -> Mixture:
    """Returns the mixture of sources of so many examples, by their weights. row_tokens: the mean of each source, where
    weights are shares of tokens. Raises DataError for a source without examples."""
    if 0 in sizes:
        raise DataError(f"{data.sources[sizes.index(0)]}: nothing to learn from is left of this source of data.weights")
    row_tokens = row_tokens or [1.0] * len(sizes)
    return Mixture(tuple(sizes), tuple(w / n for w, n in zip(data.weights, row_tokens, strict=True)))


def _of_split(recipe: Recipe, train: Split, held_out: Split, tokenizer: Tokenizer) -> Work:
    task = recipe.task
    if isinstance(task, MaskedLMConfig):
        return _masked(recipe, task, train, held_out, tokenizer)
    if isinstance(task, SpanCorruptionConfig):
        return _spans(recipe, task, train, held_out, tokenizer)
    if isinstance(task, DenoisingConfig):
        return _denoising(recipe, task, train, held_out, tokenizer)
    if isinstance(task, Seq2SeqConfig):
        return _pairs(recipe, task, train, held_out, tokenizer)
    context, pad = recipe.model.context, tokenizer.pad_id or 0
    causal = CausalLM(recipe.data.document_masking)
    rows, scored = PackedRows(train, context, pad), PackedRows(held_out, context, pad)
    summary = f"{len(rows):,} rows, {rows.waste:.1%} padding, {rows.num_cut} documents cut to fill rows"
    # bytes that the tokenizer dropped are never predicted, so there are no bits per byte
    per_byte = None if held_out.num_unspelt else scored.num_scored / max(held_out.num_bytes, 1)
    return Work(causal, rows, causal, scored, context, summary, per_byte)


def need(tokenizer: Tokenizer, task: str, *roles: str) -> list[int]:
    """Returns the ids of the control tokens with these roles. Raises ModelError where the tokenizer lacks one."""
    ids = {role: getattr(tokenizer, f"{role}_id") for role in roles}
    if missing := [role for role, i in ids.items() if i is None]:
        raise ModelError(
            f"{task}: the tokenizer has no {' and no '.join(missing)} token\n"
            "  → tokenize for a family that has it (`lmkit tokenize --family bert`), or take the model's own tokenizer"
        )
    return [ids[role] for role in roles]


def vocabulary(tokenizer: Tokenizer, whole_word: bool) -> MaskableVocabulary:
    """Returns what masking needs to know of the tokenizer.

    Raises ModelError for a tokenizer without tokens for masks, padding or the ends of texts. Raises UserError where
    whole words are to be masked and the tokenizer does not show where words begin."""
    mask, pad = need(tokenizer, "masked_lm", "mask", "pad")
    first, last = frame(tokenizer)
    starts = word_starts(tokenizer) if whole_word else None
    return MaskableVocabulary(mask, first, last, pad, ordinary_ids(tokenizer), _maskable(tokenizer), starts)


def _maskable(tokenizer: Tokenizer) -> np.ndarray:
    """Returns a bool for each token of the vocabulary, (V,): True for tokens of text, False for control tokens."""
    maskable = np.zeros(tokenizer.vocab_size, bool)
    maskable[ordinary_ids(tokenizer)] = True
    return maskable


def frame(tokenizer: Tokenizer) -> tuple[int, int]:
    """Returns the ids of the tokens before and after a text: [CLS] and [SEP], or BOS and EOS.

    Raises ModelError where the tokenizer has none."""
    first = tokenizer.cls_id if tokenizer.cls_id is not None else tokenizer.bos_id
    last = tokenizer.sep_id if tokenizer.sep_id is not None else tokenizer.eos_id
    if first is None or last is None:
        raise ModelError("the tokenizer has no tokens for the beginning and the end of a text ([CLS] and [SEP])")
    return first, last


def _left_over(rows: StreamRows) -> str:
    return f"{len(rows):,} rows without padding; {rows.num_left_over:,} tokens at the end fill none"


def _masked(recipe: Recipe, c: MaskedLMConfig, train: Split, held_out: Split, tokenizer: Tokenizer) -> Work:
    context, v = recipe.model.context, vocabulary(tokenizer, c.whole_word)
    if c.pairs is None:
        masking = recipe.data.document_masking
        task = MaskedLM(c, v, c.rate, document_masking=masking)
        rows, scored = (StreamRows(s, context, (v.cls,), (v.sep,)) for s in (train, held_out))
        return Work(task, rows, replace(task, rate=c.eval_rate), scored, context, _left_over(rows))
    ends = sentence_ends(tokenizer)
    chunks, held_out_chunks = (SentenceChunks(s, context - 3, ends) for s in (train, held_out))
    task = MaskedLM(c, v, c.rate, chunks, context)
    scored_task = replace(task, rate=c.eval_rate, chunks=held_out_chunks)
    summary = f"{len(chunks):,} pairs; {chunks.num_single:,} single sentences ({chunks.num_left_out:,} tokens) left out"
    if c.pairs == "next_sentence" and chunks.num_documents < 2:
        raise DataError("next_sentence draws from other documents; there is one\n  → data.separator splits .txt files")
    return Work(task, chunks, scored_task, held_out_chunks, chunks.mean_tokens + 3, summary)


def sentinel_ids(tokenizer: Tokenizer) -> np.ndarray:
    """Returns the ids of <extra_id_0>, <extra_id_1>, ..., as many as there are. Raises ModelError for none."""
    if not tokenizer.sentinels:
        raise ModelError(
            "span_corruption: the tokenizer has no sentinels (<extra_id_0>, ...)\n"
            "  → tokenize for T5 (`lmkit tokenize --family t5`), or take T5's own tokenizer"
        )
    return np.array(tokenizer.sentinels)


def raw_tokens(d: Denoiser, context: int) -> int:
    """Returns the largest number of raw tokens whose inputs and targets both fit the context.

    EOS and the mode token count too."""
    room = context - (d.mode is not None)
    if d.prefix:
        return room - 2
    raw = raw_length(room, d.density, d.mean_span)[0]
    while corrupted_lengths(raw, d.density, d.mean_span)[1] > context:
        raw -= 1
    return raw


def span_corruption(c: SpanCorruptionConfig, tokenizer: Tokenizer) -> SpanCorruption:
    modes: list[int | None] = []
    for d in c.denoisers:
        modes.append(None if d.mode is None else tokenizer.token_id(d.mode))
        if d.mode is not None and modes[-1] is None:
            raise UserError(f"task.denoisers: mode {d.mode!r} is no token of the tokenizer")
    (eos,) = need(tokenizer, "span_corruption", "eos")
    return SpanCorruption(c.denoisers, tuple(modes), sentinel_ids(tokenizer), eos)


def _spans(recipe: Recipe, c: SpanCorruptionConfig, train: Split, held_out: Split, tokenizer: Tokenizer) -> Work:
    context = recipe.model.context
    raw = min(raw_tokens(d, context) for d in c.denoisers)
    task = Seq2Seq(span_corruption(c, tokenizer), *starts(recipe.model.family, tokenizer), row_tokens=context)
    rows, scored = StreamRows(train, raw), StreamRows(held_out, raw)
    return Work(task, rows, task, scored, context, f"{_left_over(rows)}; {raw} tokens a row before corruption")


def denoising(c: DenoisingConfig, tokenizer: Tokenizer) -> Denoising:
    (mask,) = need(tokenizer, "denoising", "mask")
    return Denoising(c, sentence_ends(tokenizer), _maskable(tokenizer), mask)


def _denoising(recipe: Recipe, c: DenoisingConfig, train: Split, held_out: Split, tokenizer: Tokenizer) -> Work:
    context = recipe.model.context
    first, last = frame(tokenizer)
    task = Seq2Seq(denoising(c, tokenizer), *starts(recipe.model.family, tokenizer), row_tokens=context)
    rows, scored = (StreamRows(s, context, (first,), (last,)) for s in (train, held_out))
    return Work(task, rows, task, scored, context, _left_over(rows))


def _pairs(recipe: Recipe, c: Seq2SeqConfig, train: Split, held_out: Split, tokenizer: Tokenizer) -> Work:
    context = recipe.model.context
    task = Seq2Seq(parallel, *starts(recipe.model.family, tokenizer), c.label_smoothing)
    rows, scored = ParallelRows(train, context), ParallelRows(held_out, context)
    if not len(rows):
        raise DataError(f"no pair of texts fits model.context {context}\n  → a larger model.context")
    summary = f"{len(rows):,} pairs; {rows.num_too_long:,} longer than {context} tokens left out"
    return Work(task, rows, task, scored, float(rows.lengths.sum() / len(rows)), summary)


def starts(family: str, tokenizer: Tokenizer) -> tuple[int, int]:
    """Returns the ids of the token that the decoder of an encoder-decoder starts from, and of padding."""
    start, pad = need(tokenizer, "an encoder-decoder", FAMILIES[family].start, "pad")
    return start, pad
