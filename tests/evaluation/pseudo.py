"""Pseudo-log-likelihoods of whole texts, out of what `lmkit eval` computes window by window."""

from collections.abc import Sequence

import numpy as np

from lmkit.evaluation.masked_lm import maskable_words, token_log_probs
from lmkit.evaluation.scoring import BATCH_TOKENS, check_losses
from lmkit.model.transformer import Transformer
from lmkit.text.tokenizer import Tokenizer


def pseudo_log_likelihood(
    model: Transformer, tokenizer: Tokenizer, texts: Sequence[str], batch_tokens: int = BATCH_TOKENS
) -> list[list[float]]:
    """Returns the log-probability of every token of every text. Long texts are cut into windows of the context."""
    v, room = maskable_words(model, tokenizer), model.config.context - 2
    texts_ids = [np.array(ids, np.int64) for ids in tokenizer.encode_batch(texts)]
    origins = [(n, begin) for n, ids in enumerate(texts_ids) for begin in range(0, len(ids), room)]
    windows = [texts_ids[n][begin : begin + room] for n, begin in origins]
    values = [[0.0] * len(ids) for ids in texts_ids]
    for window, place, value, _ in token_log_probs(model, v, windows, batch_tokens):
        text, begin = origins[window]
        values[text][begin + place] = value
    check_losses([sum(of_text) for of_text in values])
    return values
