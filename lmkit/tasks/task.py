"""What every task of fine-tuning can do with a table of labelled rows: make examples, predict, score."""

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self, TypeVar

import numpy as np
import torch
from rich.console import Console
from rich.markup import escape
from rich.table import Table as Grid
from torch import Tensor

from lmkit.architecture.model_config import ModelConfig
from lmkit.base.display import Meter
from lmkit.base.errors import UserError
from lmkit.base.order import by_length, rng_for
from lmkit.data.tables.table import Table
from lmkit.evaluation import classification, paired
from lmkit.evaluation.intervals import Estimate
from lmkit.model.transformer import Transformer
from lmkit.objectives.batch import Batch, Objective
from lmkit.pretrained import Pretrained
from lmkit.recipe.task_settings import TaskSettings
from lmkit.tasks.labelling import InputLayout
from lmkit.text.tokenizer import Tokenizer

T = TypeVar("T")
MOST_TOKENS = 512  # a row is cut to, unless `data.max_length` says otherwise
BATCH_TOKENS = 8192  # in one forward pass, padding included; changes speed and memory only


@dataclass(frozen=True)
class Reading:
    """What a task reads texts with."""

    tokenizer: Tokenizer
    model: ModelConfig
    max_length: int  # tokens of a row, as asked for; 0: the default of the task
    decoder_start: int | None = None  # what a decoder beside an encoder begins with
    folder: Path | None = None  # where the tokenizer lies, and what belongs to it

    @classmethod
    def of(cls, loaded: Pretrained, settings: TaskSettings | None) -> Self:
        """Returns the reading of a trained model."""
        start = loaded.decoder_start if loaded.config.stacks == "encoder_decoder" else None
        most = settings.max_length if settings else 0
        return cls(loaded.needs_tokenizer(), loaded.config, most, start, loaded.folder)

    def length(self, default: int) -> int:
        """The number of tokens that a row is cut to."""
        return min(self.max_length or default, self.model.context)

    @property
    def layout(self) -> InputLayout:
        c = self.model
        return InputLayout(
            pad=self.tokenizer.pad_id or 0, typed=c.type_vocab_size > 1, causal=c.causal, start=self.decoder_start
        )


class Task(ABC):
    """One task for one tokenizer: rows become examples, a model's outputs become scores. `outputs` are whatever the
    task predicts of a row: probabilities, tags, a text."""

    head: ClassVar[str] = "lm"  # that the model needs
    head_is_for: ClassVar[str] = "words"
    packed: ClassVar[bool] = False  # several examples stand in one row, so nobody chose how many rows there are
    higher: ClassVar[bool] = True  # scores of `metric` are better
    top: ClassVar[float] = 1.0  # the best of these
    likelihood: ClassVar[bool] = False  # the loss is worth a pass of its own over held-out rows: `scores` lacks it
    labels_rows: ClassVar[bool] = True  # `predict` has something to say of each row
    writing_keys: ClassVar[tuple[str, ...]] = ()  # of generation_config.json, for which the task has its own values
    counts_rows: ClassVar[bool] = False  # `accuracy` is a share of rows
    calibrate: bool = False  # `temperature` is wanted
    averaged: ClassVar[bool] = False  # outputs of several models, as of several seeds, have a mean
    metric: str  # of `scores`, that says which checkpoint is best
    labels: tuple[str, ...]  # of the model
    max_length: int  # tokens that a row is cut to
    objective: Objective  # the loss, and whether batches may be read ahead for it

    @classmethod
    @abstractmethod
    def for_training(cls, config: Any, train: Table, reading: Reading) -> Self:
        """Makes the task for this table, by its section of the recipe. Raises DataError for rows that do not fit the
        task, ModelError for a model that cannot do it."""

    @classmethod
    @abstractmethod
    def of_folder(cls, config: Any, loaded: Pretrained, settings: TaskSettings | None) -> Self:
        """Makes the task of a trained model. settings: what was chosen in its training; None where that is not
        known."""

    @abstractmethod
    def examples(self, table: Table) -> list[dict[str, Any]]:
        """Returns one or more examples for every row: what the task collates, `row` (its number) and `cut` (the text
        was longer)."""

    @abstractmethod
    def outputs(self, model: Transformer, table: Table, examples: Sequence[dict], quick: bool = False) -> list[Any]:
        """Returns an output for each row of the table. quick: as an evaluation in training wants them, where there is a
        difference."""

    @abstractmethod
    def scores(self, table: Table, outputs: Sequence[Any], intervals: bool) -> dict[str, Estimate]: ...

    @abstractmethod
    def per_row(self, table: Table, outputs: Sequence[Any]) -> list[float]:
        """Returns how good each output is, in [0, 1], for paired tests."""

    @abstractmethod
    def say(self, output: Any) -> dict[str, Any]:
        """Returns an output as JSON."""

    # ---- what only some tasks have

    def say_of(self, row: dict[str, Any], output: Any) -> dict[str, Any]:
        """Returns an output as JSON, with what it says of the text of its row."""
        return self.say(output)

    def losses(self, model: Transformer, table: Table, outputs: Sequence[Any]) -> list[float | None]:
        """Returns the loss of each labelled row, as an evaluation has it; None where there is none."""
        return [None] * len(table.rows)

    @classmethod
    def settle_tokenizer(
        cls, config: Any, model: ModelConfig, home: Path | None, tokenizer: Tokenizer, folder: Path
    ) -> Tokenizer:
        """Returns the tokenizer with all that the task needs. What belongs beside it is written to `folder`, where it
        will be kept. home: of the model or tokenizer to start from."""
        return tokenizer

    @classmethod
    def with_rows(cls, model: Transformer, before: Tokenizer, tokenizer: Tokenizer) -> Transformer:
        """Returns the model for the tokenizer that `settle_tokenizer` made of `before`."""
        return model

    @classmethod
    def check_rows(cls, config: Any, train: Table, held_out: Table) -> Table:
        """Returns the held-out rows that a model trained on the others can be right on, and tells how many are left
        out. Raises UserError for settings that do not fit the rows."""
        return held_out

    @classmethod
    def label_names(cls, config: Any, labels: tuple[str, ...]) -> tuple[str, ...]:
        """Returns what the labels of a trained model's head are called here, in their order."""
        return labels

    def read_as(self) -> tuple[str, frozenset[str]]:
        """Returns the kind of the labels in rows for this task, and the labels that the model knows."""
        return "auto", frozenset()

    def known_rows(self, table: Table) -> Table:
        """Returns the rows that the model can be right on, and counts the others."""
        return table

    def settled(self, config: Any) -> Any:
        """Returns the task's section, with what the training rows say where it leaves that open."""
        return config

    def settle_head(self, model: Transformer, train: Table, fresh: bool) -> str:
        """Makes the head, which is new where `fresh`, fit what is learnt, in place. Returns what is told of it."""
        return ""

    def config_json(self) -> dict[str, Any]:
        """Returns what config.json says of the task."""
        return {}

    def generation_config(self) -> dict[str, Any]:
        """Returns what generation_config.json says of the task; empty where it writes no texts of its own kind."""
        return {}

    def fit(self, model: Transformer, table: Table) -> tuple[dict[str, Any], str]:
        """Chooses something on held-out rows once the model is trained, and uses it from then on. Returns what is to be
        kept of it in the model's folder, and a message that tells it."""
        return {}, ""

    def temperature(self, table: Table, outputs: Sequence[Any]) -> float | None:
        """Returns what the logits of the head are to be divided by, once the model is trained; None where they stay."""
        return None

    def baselines(self, train: Table, held_out: Table) -> dict[str, dict[str, Estimate]]:
        """Returns the scores of simpler answers to the same task, by their names."""
        return {}

    def texts_written(self, table: Table, outputs: Sequence[Any]) -> list[tuple[str, list[str]]]:
        """Returns what was written of each row, and the texts that are right; empty where no texts are written."""
        return []

    def answered(self, model: Transformer, table: Table) -> list[dict[str, str]]:
        """Returns what the model writes after a few held-out prompts, where `texts_written` does not have it of all
        rows: place, prompt, gold and answer."""
        return []

    def stated(self) -> list[str]:
        """Returns what the scores depend on."""
        return []

    def never_predicted(self, table: Table, outputs: Sequence[Any]) -> dict[str, int]:
        """Returns the labels that rows of the table have and no output has, with the number of their rows."""
        return {}

    def class_scores(self, table: Table, outputs: Sequence[Any]) -> dict[str, classification.ClassScore]:
        """Returns the scores of each class, by its name; empty where there are no classes."""
        return {}

    def reliability(self, table: Table, outputs: Sequence[Any]) -> list[classification.Bin]:
        """Returns how often the outputs are right by how sure they are; empty where they are not probabilities of one
        class."""
        return []

    def confusion(self, table: Table, outputs: Sequence[Any]) -> dict[str, dict[str, int]]:
        """Returns how many rows of each label, where there are any, have each prediction, where there is one a row."""
        return {}

    def details(self, table: Table, outputs: Sequence[Any]) -> list[str]:
        """Returns what is shown below the scores of one model."""
        return []

    def compare(self, other: Self, table: Table, ours: Sequence[Any], theirs: Sequence[Any]) -> paired.Comparison:
        """Tells whether the outputs of another model of this task differ by more than chance, in the mean over rows."""
        one, two = (np.array(task.per_row(table, o)) for task, o in ((self, ours), (other, theirs)))
        return paired.paired(one, two)


def unknown_tokens(tokenizer: Tokenizer, rows: Sequence[dict], writes: bool) -> list[str]:
    """Returns how much of the texts the vocabulary cannot spell, a line each for what is read and what is to be
    written.

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
    model: Transformer,
    objective: Objective,
    examples: Sequence[dict],
    compute: Callable[[Batch], Iterable[T]],
    quick: bool,
) -> list[T]:
    """Returns `compute` of every example, in order; rows of like length go through the model together, in eval mode.
    Progress is shown unless `quick`, in the midst of training, which has its own."""
    device = model.embedding.weight.device
    results: dict[int, T] = {}
    lengths = [objective.length(example) for example in examples]
    done, meter = 0, Meter("scoring", sum(lengths))
    with model.evaluating(), nullcontext() if quick else meter:
        for group in by_length(range(len(examples)), lengths.__getitem__, BATCH_TOKENS):
            batch = objective.collate([examples[i] for i in group]).to(device)
            results |= zip(group, compute(batch), strict=True)
            done += sum(lengths[i] for i in group)
            if not quick:
                meter.update(done, f"{len(results):,} of {len(examples):,}")
    return [results[i] for i in range(len(examples))]


def row_losses(
    task: Task, model: Transformer, table: Table, nats: Callable[[Batch], tuple[Tensor, Tensor]]
) -> list[float | None]:
    """Returns the mean loss of all that is learnt of each row, in nats; None where that is nothing.

    nats: returns the loss of each example of a batch, (B,), and the number of things it sums over, (B,)."""
    examples = task.examples(table)
    ready = [task.objective.prepare(example, rng_for(0, 0, i)) for i, example in enumerate(examples)]
    sums = np.zeros((len(table.rows), 2))
    compute = lambda batch: torch.stack([x.float().cpu() for x in nats(batch)], 1).numpy()
    for example, pair in zip(examples, in_batches(model, task.objective, ready, compute, quick=True), strict=True):
        sums[example["row"]] += pair
    return [total / count if count else None for total, count in sums.tolist()]


def texts(table: Table) -> Iterator[str]:
    """Yields all texts of a table, for training a tokenizer."""
    for row in table.rows:
        for value in row.values():
            if isinstance(value, str):
                yield value
            elif isinstance(value, list):
                yield from (v if isinstance(v, str) else str(v.get("content") or "") for v in value)


PLAIN_WIDTH = 240  # of tables that go to a file: no column is cut
MOST_CLASSES = 12  # of a confusion matrix, and of a table of classes


def score_table(title: str, columns: Mapping[str, Mapping[str, Estimate]], rows: int) -> str:
    """Returns a table with a row for each score and a column for each system: value and 95% interval."""
    grid = Grid("", *map(escape, columns), title=escape(title), caption=f"{rows:,} rows; 95% intervals over rows")
    for name in dict.fromkeys(name for scores in columns.values() for name in scores):
        grid.add_row(name.replace("_", " "), *(_said(scores.get(name)) for scores in columns.values()))
    return drawn(grid)


def _said(e: Estimate | None) -> str:
    if e is None:
        return "-"
    return f"{e.value:.4f}" if e.low is None else f"{e.value:.4f} ({e.low:.4f}-{e.high:.4f})"


def drawn(grid: Grid) -> str:
    """Returns the lines of a table, in the colours and the width of a terminal; elsewhere plain and as wide as it
    is."""
    console = Console()
    if not console.is_terminal:
        console.width = PLAIN_WIDTH
    with console.capture() as lines:
        console.print(grid)
    return lines.get().rstrip("\n")


def class_tables(labels: Sequence[str], gold: np.ndarray, predicted: np.ndarray) -> list[str]:
    """Returns a table with gold classes in rows, predicted ones in columns, and precision, recall and F1 of each. On a
    terminal too narrow for it, the columns of predicted ones make way for a list of what is confused most. gold,
    predicted: (rows,) numbers of labels."""
    names = [escape(label) for label in labels]
    scored = ("precision", "recall", "f1", "rows")
    whole, narrow = Grid("gold \\ predicted", *names, *scored), Grid("gold", *scored)
    matrix = classification.confusion(gold, predicted, len(labels))
    each = classification.per_class(gold, predicted, len(labels))
    for name, counts, c in zip(names, matrix, each, strict=True):
        scores = (*(f"{x:.3f}" for x in c[:3]), f"{c[3]:,}")
        whole.add_row(name, *(f"{n:,}" for n in counts), *scores)
        narrow.add_row(name, *scores)
    console = Console()
    if console.is_terminal and console.measure(whole).maximum > console.width:
        return [drawn(narrow), *confusions(labels, gold, predicted)]
    return [drawn(whole)]


def confusions(labels: Sequence[str], gold: np.ndarray, predicted: np.ndarray, most: int = 10) -> list[str]:
    """Returns the pairs of classes that are taken for each other most often, a line each; for more classes than
    `class_tables` shows. gold, predicted: as there."""
    wrong = Counter((g, p) for g, p in zip(gold.tolist(), predicted.tolist(), strict=True) if g != p)
    lines = [f"{n:>7,}  {labels[g]} → {labels[p]}" for (g, p), n in wrong.most_common(most)]
    return ["most confused: rows, gold → predicted", *lines] if lines else []


def scores_as_json(scores: Mapping[str, Estimate | classification.ClassScore]) -> dict[str, Any]:
    return {name: e._asdict() for name, e in scores.items()}


MOST_SLICES = 100


def sliced(column: str, values: Sequence[Any]) -> dict[str, list[int]]:
    """Returns the numbers of the rows that have each value of a column, commonest value first.

    Raises UserError for a column that no row has, or whose values are as good as all different."""
    rows: dict[str, list[int]] = {}
    for number, value in enumerate(values):
        if value is not None:
            rows.setdefault(str(value), []).append(number)
    if not rows or len(rows) > MOST_SLICES:
        what = f"has {len(rows):,} different values" if rows else "stands in no row"
        raise UserError(f"--by {column}: it {what}\n  → name a column of at most {MOST_SLICES} kinds of rows")
    return dict(sorted(rows.items(), key=lambda item: (-len(item[1]), item[0])))


def seeds_line(found: Sequence[Mapping[str, Mapping[str, float]]]) -> str:
    """Returns mean and spread of several runs' scores. found: of each run, its scores as `scores_as_json` gives
    them."""
    lines = [f"{len(found)} seeds: mean, standard deviation, each"]
    for name in found[0]:
        values = np.array([scores[name]["value"] for scores in found])
        each = " ".join(f"{v:.4f}" for v in values)
        lines.append(f"  {name.replace('_', ' '):14} {values.mean():.4f} ± {values.std(ddof=1):.4f}   {each}")
    return "\n".join(lines)
