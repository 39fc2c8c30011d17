"""Scores on held-out rows while training goes on."""

import math

import torch

from lmkit.base.order import by_length, rng_for
from lmkit.objectives.build import Work
from lmkit.training.distributed.world import Parallel


@torch.no_grad()
def validate(parallel: Parallel, work: Work, limit: int, micro_tokens: int, device: torch.device) -> dict[str, float]:
    """Mean loss (nats a token), perplexity and accuracy over the first `limit` rows, the same noise every time; of
    pairs of texts too where there are any. Bits per byte where every token is predicted.

    Bits per byte does not depend on the tokenizer: nats a token, times tokens a byte of the held-out text, over ln 2.
    """
    task, world = work.scored, parallel.world
    examples = [task.prepare(work.held_out[i], rng_for(0, 0, i)) for i in range(limit)]
    groups = list(by_length(examples, task.length, micro_tokens))
    sums: dict[str, list[float]] = {}  # of each term: how many, nats, hits
    with parallel.model.evaluating():
        for start in range(0, len(groups), world.data_size):
            # all processes go through the model together, for some hold its weights together; the last may repeat a
            # group, which then does not count
            mine = start + world.data_rank
            batch = task.collate(groups[min(mine, len(groups) - 1)]).to(device)
            loss = parallel.loss(task, batch)
            for key, n in batch.counts.items():
                term = sums.setdefault(key, [0.0, 0.0, 0.0])
                if mine < len(groups):
                    for i, value in enumerate((n, float(loss.nats[key]), float(loss.hits[key]))):
                        term[i] += value
    added = iter(world.total([value for term in sums.values() for value in term]))
    counts, nats, hits = dict[str, int](), dict[str, float](), dict[str, float]()
    for key in sums:
        counts[key], nats[key], hits[key] = int(next(added)), next(added), next(added)
    mean = nats["tokens"] / max(counts["tokens"], 1)
    scores = {"val_loss": mean, "val_perplexity": math.exp(min(mean, 700.0))}
    if work.tokens_per_byte is not None:
        scores["val_bits_per_byte"] = mean * work.tokens_per_byte / math.log(2)
    scores["val_accuracy"] = hits["tokens"] / max(counts["tokens"], 1)
    for key in counts.keys() - {"tokens"}:
        scores |= {f"val_{key}_loss": nats[key] / counts[key], f"val_{key}_accuracy": hits[key] / counts[key]}
    return scores
