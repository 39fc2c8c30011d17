"""How well an encoder predicts masked tokens: loss, perplexity and accuracy, with intervals over documents.

They depend on which tokens are masked, so the noise is the same every time: a pure function of the seed, the number of
the document and that of its window. They compare models with one tokenizer, one context and one kind of noise only."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from lmkit.base.errors import DataError
from lmkit.base.order import rng_for
from lmkit.evaluation.pseudo import Sample
from lmkit.evaluation.scoring import BATCH_TOKENS, Tally, check_embedded, check_finite, score_rows
from lmkit.model.loss import IGNORE
from lmkit.model.transformer import Transformer
from lmkit.objectives.build import vocabulary
from lmkit.objectives.masked_lm import MaskedLM
from lmkit.recipe.objectives import MaskedLMConfig
from lmkit.text.tokenizer import Tokenizer


@dataclass
class MaskedScores(Tally):
    """`tokens` are those that were masked; unknown ones never are."""

    sample: Sample = field(default_factory=lambda: Sample(0))  # for `lmkit.evaluation.pseudo.score_sample`
    windows: int = 0
    text_tokens: int = 0


def noise(c: MaskedLMConfig) -> dict[str, Any]:
    """What decides which tokens are masked, for people and machines."""
    return {"name": c.name, "rate": c.eval_rate} | c.model_dump(include={"most", "split", "whole_word", "max_ngram"})


def evaluate(
    model: Transformer, tokenizer: Tokenizer, texts: Iterable[str], config: MaskedLMConfig | None = None,
    pll_tokens: int = 0, seed: int = 0, batch_tokens: int = BATCH_TOKENS,
) -> MaskedScores:  # fmt: skip
    """Score documents, cut into windows of the context with [CLS] and [SEP] around each.

    model: predicts words, in eval mode. config: the noise, at its `eval_rate`; None: BERT's. pll_tokens: set windows of
    so many tokens aside for the pseudo-perplexity. Texts are read as they are needed.

    Raises DataError without text, ModelError for a tokenizer without a mask and for losses that are not finite,
    UserError for one without words where whole words are to be masked."""
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
                scores.sample.offer(rng.random(), document, window, part)  # first, so that it is the same for all noise
                row = np.concatenate([[v.cls], part, [v.sep]])
                example = task.prepare({"tokens": row, "documents": [document]}, rng)
                if (example["labels"] != IGNORE).any():
                    yield example
                else:  # unknown tokens only, or no whole word as short as the share
                    scores.skipped["windows in which nothing could be masked"] += 1

    score_rows(model, task, rows(), scores, batch_tokens)
    if not any(scores.tokens):
        raise DataError("there is no text to score")
    check_finite(scores.nats)
    return scores
