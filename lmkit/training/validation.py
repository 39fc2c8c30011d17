"""Scores on held-out rows while training goes on."""

import math

import torch

from lmkit.batch import Source
from lmkit.model.transformer import Transformer
from lmkit.order import rng_for
from lmkit.tasks.causal_lm import CausalLM


@torch.no_grad()
def validate(
    model: Transformer, task: CausalLM, rows: Source, micro_rows: int, limit: int, device: torch.device,
    tokens_per_byte: float,
) -> dict[str, float]:  # fmt: skip
    """Mean loss (nats a token), perplexity and bits per byte over the first `limit` rows.

    Bits per byte does not depend on the tokenizer: nats a token, times tokens a byte of the held-out text, over ln 2.
    """
    was_training = model.training
    model.eval()
    total, hits, count = 0.0, 0.0, 0
    for start in range(0, limit, micro_rows):
        examples = [task.prepare(rows[i], rng_for(0, 0, i)) for i in range(start, min(limit, start + micro_rows))]
        batch = task.collate(examples).to(device)
        loss = task.loss(model, batch)
        total += float(loss.sums["tokens"])
        hits += float(loss.hits["accuracy"])
        count += batch.counts["tokens"]
    model.train(was_training)
    mean = total / max(count, 1)
    return {
        "val_loss": mean,
        "val_perplexity": math.exp(min(mean, 700.0)),
        "val_bits_per_byte": mean * tokens_per_byte / math.log(2),
        "val_accuracy": hits / max(count, 1),
    }
