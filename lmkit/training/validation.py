"""Scores on held-out rows while training goes on."""

import math

import torch

from lmkit.base.order import by_length, rng_for
from lmkit.objectives.build import Work
from lmkit.training.distributed.world import Parallel


@torch.no_grad()
def validate(parallel: Parallel, work: Work, limit: int, micro_tokens: int, device: torch.device) -> dict[str, float]:
    """Returns mean loss (nats per token), perplexity and accuracy over the first `limit` held-out rows.

    The noise is the same every time. Loss and accuracy of pairs of texts are included where the task has pairs, and
    bits per byte where every token is predicted. Bits per byte does not depend on the tokenizer: it is nats per token,
    times tokens per byte of the held-out text, divided by ln 2.
    """
    task, world = work.scored, parallel.world
    examples = [task.prepare(work.held_out[i], rng_for(0, 0, i)) for i in range(limit)]
    groups = list(by_length(examples, task.length, micro_tokens))
    sums: dict[str, list[float]] = {}  # for each loss term: [count, nats, hits]
    with parallel.model.evaluating():
        for start in range(0, len(groups), world.data_size):
            # All processes must run the model equally often, since they may share its weights. Where no group is left,
            # a process repeats the last one, which then does not count.
            index = start + world.data_rank
            batch = task.collate(groups[min(index, len(groups) - 1)]).to(device)
            loss = parallel.loss(task, batch)
            for key, n in batch.counts.items():
                term = sums.setdefault(key, [0.0, 0.0, 0.0])
                if index < len(groups):
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
