"""What every task of fine-tuning can do with a table of labelled rows: make examples, predict, score."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from typing import Any, Protocol, TypeVar

import numpy as np
import torch

from lmkit.base.display import Meter
from lmkit.base.order import by_length
from lmkit.data.tables.table import Table
from lmkit.evaluation.intervals import Estimate
from lmkit.model.transformer import Transformer
from lmkit.objectives.batch import Batch, Task
from lmkit.tasks.labelling import Layout
from lmkit.text.tokenizer import Tokenizer

T = TypeVar("T")
BATCH_TOKENS = 8192  # in one forward pass, padding included; changes speed and memory only


class Solver(Protocol):
    """One task for one tokenizer. `outputs` are whatever the task predicts of a row: probabilities, tags, a text."""

    metric: str  # of `scores`, that says which checkpoint is best; higher is better
    likelihood: bool  # the loss is worth a pass of its own over held-out rows: `scores` does not say it

    @property
    def task(self) -> Task:
        """The loss."""
        ...

    def examples(self, table: Table) -> list[dict[str, Any]]:
        """Of every row one or more: what the task collates, `row` (its number) and `cut` (the text was longer)."""
        ...

    def outputs(self, model: Transformer, table: Table, examples: Sequence[dict], quick: bool = False) -> list[Any]:
        """One a row of the table. quick: as an evaluation in training wants them, where there is a difference."""
        ...

    def scores(self, table: Table, outputs: Sequence[Any], intervals: bool) -> dict[str, Estimate]: ...

    def per_row(self, table: Table, outputs: Sequence[Any]) -> list[float]:
        """How good each output is, in [0, 1]: for paired tests."""
        ...

    def say(self, output: Any) -> dict[str, Any]:
        """An output as JSON."""
        ...


def unknown_tokens(tokenizer: Tokenizer, rows: Sequence[dict], writes: bool) -> list[str]:
    """How much of the texts the vocabulary cannot spell, a line each for what is read and what is to be written.

    writes: what examples learn are tokens too."""
    framing = {tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id, tokenizer.sep_id}
    if tokenizer.unk_id is None or tokenizer.unk_id in framing:  # then the tokenizer spells everything
        return []
    parts = {"texts": [e["source"] if "source" in e else e["tokens"] for e in rows]}
    if writes:
        parts["targets"] = [e["target"] if "target" in e else e["labels"] for e in rows]
    lines = []
    for name, arrays in parts.items():
        ids = np.concatenate(arrays)
        total = int((ids >= 0).sum())
        if unknown := tokenizer.count_unknown(ids):
            lines.append(
                f"unknown tokens: {unknown:,} of {total:,} in the {name} ({unknown / total:.1%}) stand for what the"
                " tokenizer cannot spell" + (", which the model will never write" if name == "targets" else "")
            )
    return lines


@torch.no_grad()
def in_batches(
    model: Transformer, task: Task, examples: Sequence[dict], compute: Callable[[Batch], Iterable[T]], quick: bool
) -> list[T]:
    """`compute` of every example, in order; rows of like length go through the model together, in eval mode. Progress
    is shown unless `quick`, in the midst of training, which has its own."""
    device = model.embedding.weight.device
    found: dict[int, T] = {}
    lengths = [task.length(example) for example in examples]
    done, meter = 0, Meter("scoring", sum(lengths))
    with model.evaluating(), nullcontext() if quick else meter:
        for group in by_length(range(len(examples)), lengths.__getitem__, BATCH_TOKENS):
            batch = task.collate([examples[i] for i in group]).to(device)
            found |= zip(group, compute(batch), strict=True)
            done += sum(lengths[i] for i in group)
            if not quick:
                meter.update(done, f"{len(found):,} of {len(examples):,}")
    return [found[i] for i in range(len(examples))]


def layout(model: Any, tokenizer: Tokenizer, start: int | None) -> Layout:
    """model: its `ModelConfig`. start: what a decoder beside an encoder begins with."""
    return Layout(
        pad=tokenizer.pad_id or 0, typed=model.type_vocab_size > 1, causal=model.causal,
        start=start if model.stacks == "encoder_decoder" else None,
    )  # fmt: skip


def texts(table: Table) -> Iterator[str]:
    """All text there is, for training a tokenizer."""
    for row in table.rows:
        for value in row.values():
            if isinstance(value, str):
                yield value
            elif isinstance(value, list):
                yield from (v if isinstance(v, str) else str(v.get("content") or "") for v in value)
