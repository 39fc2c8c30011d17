"""Scores how well an encoder predicts masked tokens: loss, perplexity and accuracy with intervals over documents, and
the pseudo-perplexity of texts.

Scores depend on which tokens are masked, so the noise is the same every time: it depends only on the seed and the
numbers of document and window. Scores compare only models with the same tokenizer, context and kind of noise."""

import heapq
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from lmkit.base.errors import DataError, UserError
from lmkit.base.order import by_length, rng_for
from lmkit.evaluation.scoring import BATCH_TOKENS, Tally, check_embedded, check_losses, label_scores, score_rows
from lmkit.model.loss import IGNORE
from lmkit.model.transformer import Transformer
from lmkit.objectives.build import vocabulary
from lmkit.objectives.collating import kept, padded
from lmkit.objectives.masked_lm import MaskableVocabulary, MaskedLM
from lmkit.recipe.objectives import MaskedLMConfig
from lmkit.text.tokenizer import Tokenizer


@dataclass
class MaskedScores(Tally):
    """Scores of masked tokens. `tokens` counts those that were masked; unknown tokens are never masked."""

    sample: "Sample" = field(default_factory=lambda: Sample(0))  # for `score_sample`
    windows: int = 0
    text_tokens: int = 0


def noise(c: MaskedLMConfig) -> dict[str, Any]:
    """Returns the settings that decide which tokens are masked, to be shown with scores."""
    return {"name": c.name, "rate": c.eval_rate} | c.model_dump(include={"most", "split", "whole_word", "max_ngram"})


def evaluate_masked_lm(
    model: Transformer, tokenizer: Tokenizer, texts: Iterable[str], config: MaskedLMConfig | None = None,
    pll_tokens: int = 0, seed: int = 0, batch_tokens: int = BATCH_TOKENS,
) -> MaskedScores:  # fmt: skip
    """Scores documents, cut into windows of the context with [CLS] and [SEP] around each.

    model: predicts words, in eval mode. config: the noise, of which `eval_rate` is used; None for BERT's. pll_tokens:
    how many tokens, in whole windows, are put into `sample` for the pseudo-perplexity. Texts are read as they are
    needed.

    Raises DataError where there is no text, and ModelError for a tokenizer without a mask and for losses that are not
    finite. Raises UserError where whole words are to be masked and the tokenizer does not show where words begin."""
    c = config or MaskedLMConfig(name="masked_lm")
    v = vocabulary(tokenizer, c.whole_word)
    check_embedded(model, (v.mask, v.cls, v.sep, v.pad))
    task, room, scores = MaskedLM(c, v, c.eval_rate), model.config.context - 2, MaskedScores(sample=Sample(pll_tokens))

    def rows() -> Iterator[dict]:
        for text in texts:
            ids = np.array(tokenizer.encode(text), np.int64)
            scores.unknown += tokenizer.count_unknown(ids)
            scores.unspelt += tokenizer.count_unspelt([text])
            if not v.maskable[ids].any():
                scores.skipped["documents without a token to mask"] += 1
                continue
            document = scores.open()
            scores.text_tokens += len(ids)
            for window, begin in enumerate(range(0, len(ids), room)):
                part, rng = ids[begin : begin + room], rng_for(seed, document, window)
                scores.windows += 1
                scores.sample.offer(rng.random(), document, window, part)  # drawn first, so that noise cannot change it
                row = np.concatenate([[v.cls], part, [v.sep]])
                example = task.prepare({"tokens": row, "documents": [document]}, rng)
                if (example["labels"] != IGNORE).any():
                    yield example
                else:  # there are only unknown tokens, or all words are longer than the share that may be masked
                    scores.skipped["windows in which nothing could be masked"] += 1

    score_rows(model, task, rows(), scores, batch_tokens)
    if not any(scores.tokens):
        raise DataError("there is no text to score")
    check_losses(scores.nats)
    return scores


def maskable_words(model: Transformer, tokenizer: Tokenizer) -> MaskableVocabulary:
    """Returns what masking of whole words needs to know of the tokenizer.

    Raises UserError for a tokenizer that does not show where words begin, and ModelError for one without a mask."""
    try:
        v = vocabulary(tokenizer, whole_word=True)
    except UserError as e:
        if type(e) is not UserError:  # a ModelError: the tokenizer has no mask, or no [CLS]
            raise
        raise UserError(
            "pseudo-perplexity needs a tokenizer whose pieces show where words begin: WordPiece, byte-level BPE or"
            " sentencepiece\n  → leave it out with --pll-tokens 0"
        ) from None
    check_embedded(model, (v.mask, v.cls, v.sep, v.pad))
    return v


@torch.no_grad()
def token_log_probs(
    model: Transformer, v: MaskableVocabulary, windows: Sequence[np.ndarray], batch_tokens: int,
    firsts: Sequence[int] | None = None,
) -> Iterator[tuple[int, int, float, bool]]:  # fmt: skip
    """Yields (number of the window, place in it, log-probability, is the likeliest) for every token, longest windows
    first.

    windows: ids (n,) each, without [CLS] and [SEP]; v: must have the starts of words. firsts: the place in each window
    before which tokens are only read."""
    device = model.embedding.weight.device
    begins = [0] * len(windows) if firsts is None else firsts
    places = [(i, at) for i, window in enumerate(windows) for at in range(begins[i], len(window))]
    for group in by_length(places, lambda place: len(windows[place[0]]) + 2, batch_tokens):
        rows = [masked_row(v, windows[i], at) for i, at in group]
        tokens, keep = padded(rows, v.pad).to(device), kept(rows)
        labels = torch.full_like(tokens, IGNORE)
        for row, (i, at) in enumerate(group):
            labels[row, at + 1] = int(windows[i][at])
        states = model(tokens, None if keep is None else keep.to(device))
        for (i, at), (nats, hits) in zip(group, label_scores(model, states, labels), strict=True):
            yield i, at, -float(nats[0]), bool(hits[0])


def masked_row(v: MaskableVocabulary, ids: np.ndarray, at: int) -> np.ndarray:
    """Returns the row (n + 2,) with [CLS] and [SEP], in which the token at `at` and the rest of its word are masked."""
    assert v.starts is not None
    next_words = np.flatnonzero(v.starts[ids[at + 1 :]])
    end = at + 1 + int(next_words[0]) if len(next_words) else len(ids)
    row = np.concatenate([[v.cls], ids, [v.sep]])
    row[at + 1 : end + 1] = v.mask
    return row


@dataclass
class Sample:
    """A random sample of windows, of at most `limit` tokens together, but of at least one window.

    It holds the windows with the smallest keys, so it does not depend on their order, and early documents are not more
    likely than late ones."""

    limit: int
    tokens: int = 0
    _held: list[tuple[float, int, int, np.ndarray]] = field(default_factory=list)  # a heap, largest key first
    _bound: float = 1.0  # the smallest key of a window that was removed

    def offer(self, key: float, document: int, window: int, ids: np.ndarray) -> None:
        """Takes a window into the sample if its key is small enough, and removes others for which there is no room.

        key: random, uniform in [0, 1). ids: (n,), without [CLS] and [SEP]."""
        if not self.limit or key >= self._bound:
            return
        heapq.heappush(self._held, (-key, document, window, ids))
        self.tokens += len(ids)
        while self.tokens > self.limit and len(self._held) > 1:
            key, _, _, removed = heapq.heappop(self._held)
            self._bound, self.tokens = -key, self.tokens - len(removed)

    @property
    def windows(self) -> list[tuple[int, np.ndarray]]:
        """Returns the number of the document, and the ids, of each window, in the order of the texts."""
        return [(document, ids) for _, document, _, ids in sorted(self._held, key=lambda w: w[1:3])]


def score_sample(
    model: Transformer, tokenizer: Tokenizer, sample: Sample, batch_tokens: int = BATCH_TOKENS,
    told: Callable[[int], None] = lambda tokens: None,
) -> Tally:  # fmt: skip
    """Returns the sums of minus the log-probabilities of tokens, for each document in the sample.

    The perplexity of the returned tally is the pseudo-perplexity, exp(-PLL / tokens). told: is called with the number
    of tokens that are done. Raises what `maskable_words` raises, and ModelError for log-probabilities that are not
    finite."""
    tally, numbers, windows = Tally(), dict[int, int](), sample.windows
    for document in dict.fromkeys(document for document, _ in windows):
        numbers[document] = tally.open()
    scored = token_log_probs(model, maskable_words(model, tokenizer), [ids for _, ids in windows], batch_tokens)
    for done, (window, _, value, _) in enumerate(scored, 1):
        number = numbers[windows[window][0]]
        tally.nats[number] -= value
        tally.tokens[number] += 1
        told(done)
    check_losses(tally.nats)
    return tally
