"""Labels of whole texts: one, several, or a number."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from lmkit.architecture import ModelConfig
from lmkit.batch import Batch
from lmkit.data.tables import Table
from lmkit.display import note
from lmkit.downstream import ClassifyConfig
from lmkit.errors import DataError, UserError
from lmkit.evaluation import baseline, classification
from lmkit.evaluation.intervals import Estimate, means
from lmkit.model.transformer import Transformer
from lmkit.solvers.solver import in_batches
from lmkit.tasks.labelling import Classify, Layout
from lmkit.text.framing import frame_texts
from lmkit.text.tokenizer import Tokenizer
from lmkit.units import brief

Kind = Literal["single", "multi", "regression"]
PROBLEMS: dict[Kind, str] = {  # as config.json of transformers names them
    "single": "single_label_classification", "multi": "multi_label_classification", "regression": "regression",
}  # fmt: skip
METRICS: dict[Kind, str] = {"single": "accuracy", "multi": "micro_f1", "regression": "pearson"}
SEPARATOR = "|"  # between the labels of one cell, unless `data.separator` says otherwise
MANY = 20  # different fractional numbers as labels make it a regression


def label_kind(table: Table, config: ClassifyConfig, separator: str | None = None) -> Kind:
    """What `task.kind: auto` stands for: several labels where the rows have lists or somebody said what is between
    them, a number where many different broken ones are met, else a class. Raises DataError where only some rows have
    lists."""
    if config.kind != "auto":
        return config.kind
    if separator is not None:
        return "multi"
    values = [row["label"] for row in table.rows]
    if all(isinstance(v, list) for v in values):
        return "multi"
    if mixed := next((p for v, p in zip(values, table.places, strict=True) if isinstance(v, list)), None):
        raise DataError(
            f"{mixed}: a list of labels, where other rows have one\n  → give every row a list, of one label too"
        )
    broken = {str(v) for v in values if "." in str(v)}
    return "regression" if len(broken) > MANY and all(_is_number(v) for v in values) else "single"


def labels_of(table: Table, kind: Kind) -> tuple[str, ...]:
    """What the rows, read by `split_labels`, are labelled with; of numbers `score`. Raises DataError for a single label
    and for a label that is no number where it should be."""
    values = [row["label"] for row in table.rows]
    if kind == "regression":
        for value, place in zip(values, table.places, strict=True):
            _number(value, place)
        return ("score",)
    names = {name for value in values for name in ([value] if kind == "single" else value)}
    if len(names) < 2 and kind == "single":
        raise DataError(
            f"all {len(values):,} rows have the label `{brief(next(iter(names)))}`: there is nothing to learn\n"
            "  → take rows of other labels too, or name another column with data.label=COLUMN"
        )
    return tuple(sorted(names, key=lambda n: (not n.isdigit(), int(n) if n.isdigit() else 0, n)))


def _is_number(value: Any) -> bool:
    try:
        return bool(np.isfinite(float(value)))
    except (TypeError, ValueError):
        return False


def _number(value: Any, place: str) -> float:
    if not _is_number(value):
        raise DataError(f"{place}: label {value!r} is no number\n  → task.kind=single for names as labels")
    return float(value)


def split_labels(table: Table, kind: Kind, separator: str = SEPARATOR) -> Table:
    """Labels as `kind` reads them: lists of names for `multi`, a name for `single`."""

    def read(row: dict[str, Any]) -> dict[str, Any]:
        label = row.get("label")
        if label is None or isinstance(label, list) or kind == "regression":
            return row
        if kind == "multi":
            return row | {"label": [part.strip() for part in str(label).split(separator) if part.strip()]}
        return row | {"label": str(label)}

    return replace(table, rows=[read(row) for row in table.rows])


def known_labels(held_out: Table, train: Table) -> Table:
    """The held-out rows whose labels some training row has; others, which no model could be right on, are counted.
    Raises DataError where none is left."""
    names = lambda row: row["label"] if isinstance(row["label"], list) else [row["label"]]
    known = {name for row in train.rows for name in names(row)}
    unknown = [[name for name in names(row) if name not in known] for row in held_out.rows]
    kept = [i for i, found in enumerate(unknown) if not found]
    if len(kept) == len(held_out.rows):
        return held_out
    first = next(i for i, found in enumerate(unknown) if found)
    example = f"{held_out.places[first]}: `{brief(unknown[first][0])}`"
    if not kept:
        raise DataError(
            f"no held-out row has a label of the training rows, like {example}\n  → the same labels in both"
        )
    note(f"left out: {len(unknown) - len(kept):,} held-out rows whose label no training row has, like {example}")
    return replace(held_out, rows=[held_out.rows[i] for i in kept], places=[held_out.places[i] for i in kept])


def class_weights(table: Table, labels: tuple[str, ...]) -> tuple[float, ...]:
    """The inverse of each class's share, 1 on average over rows (scikit-learn's `balanced`)."""
    counts = Counter(row["label"] for row in table.rows)
    return tuple(len(table.rows) / (len(labels) * counts[name]) for name in labels)


@dataclass
class Classifier:
    tokenizer: Tokenizer
    layout: Layout
    kind: Kind
    labels: tuple[str, ...]
    max_length: int
    weights: tuple[float, ...] = ()
    smoothing: float = 0.0
    metric: str = ""
    middle: bool = False  # is what is cut out of longer texts, not their end
    likelihood: bool = False  # scores have the loss

    def __post_init__(self) -> None:
        self.task = Classify(self.layout, self.kind, self.weights, self.smoothing)
        self.metric = self.metric or METRICS[self.kind]
        self.places = {name: i for i, name in enumerate(self.labels)}

    def examples(self, table: Table) -> list[dict[str, Any]]:
        pairs = [row["pair"] for row in table.rows] if table.rows and "pair" in table.rows[0] else None
        if self.middle and pairs:
            raise UserError("task.cut=middle is for texts alone, and these rows have pairs of them\n  → task.cut=end")
        most = 0 if self.middle else self.max_length
        framed = frame_texts(self.tokenizer, [row["text"] for row in table.rows], pairs, most)
        if self.middle:
            framed = [f.without_middle(self.max_length) for f in framed]
        out = []
        for i, (row, f, place) in enumerate(zip(table.rows, framed, table.places, strict=True)):
            example = {"tokens": np.array(f.ids), "row": i, "cut": f.cut, "label": self._target(row, place)}
            out.append(example if pairs is None else example | {"types": np.array(f.types)})
        return out

    def _target(self, row: dict[str, Any], place: str) -> Any:
        label = row.get("label")
        if self.kind == "regression":
            return 0.0 if label is None else _number(label, place)
        if self.kind == "single":
            return 0 if label is None else self._index(label, place)
        hot = np.zeros(len(self.labels), np.float32)
        hot[[self._index(name, place) for name in label or ()]] = 1
        return hot

    def _index(self, name: str, place: str) -> int:
        if name not in self.places:
            known = ", ".join(brief(label) for label in self.labels[:20])
            more = f" and {len(self.labels) - 20:,} more" if len(self.labels) > 20 else ""
            raise DataError(
                f"{place}: label `{brief(name)}` is none of the model's\n  allowed: {known}{more}\n"
                "  → give some training rows this label, or leave such rows out"
            )
        return self.places[name]

    def outputs(
        self, model: Transformer, table: Table, examples: Sequence[dict], quick: bool = False
    ) -> list[np.ndarray]:
        """(L,) probabilities; of a regression the number."""

        def compute(batch: Batch) -> np.ndarray:
            logits = self.layout.logits(model, batch)
            if self.kind == "single":
                logits = logits.softmax(-1)
            elif self.kind == "multi":
                logits = logits.sigmoid()
            return logits.cpu().numpy()

        return in_batches(model, self.task, examples, compute, quick)

    def scores(self, table: Table, outputs: Sequence[np.ndarray], intervals: bool) -> dict[str, Estimate]:
        return self.score(table, np.stack(outputs), intervals)

    def score(self, table: Table, p: np.ndarray, intervals: bool) -> dict[str, Estimate]:
        """p: (N, L) probabilities, (N, 1) numbers."""
        gold = np.array([self._target(row, place) for row, place in zip(table.rows, table.places, strict=True)])
        if self.kind == "regression":
            return classification.regression(gold, p[:, 0], intervals)
        if self.kind == "multi":
            return classification.multi(gold.astype(bool), p, intervals)
        nats = -np.log(np.maximum(p[np.arange(len(gold)), gold], 1e-12))
        return means({"loss": nats}, intervals) | classification.single(gold, p, intervals)

    def per_row(self, table: Table, outputs: Sequence[np.ndarray]) -> list[float]:
        gold = [self._target(row, place) for row, place in zip(table.rows, table.places, strict=True)]
        if self.kind == "regression":
            return [-abs(float(g) - float(p[0])) for g, p in zip(gold, outputs, strict=True)]
        if self.kind == "multi":
            return [float(((p > 0.5) == (g > 0.5)).all()) for g, p in zip(gold, outputs, strict=True)]
        return [float(p.argmax() == g) for g, p in zip(gold, outputs, strict=True)]

    def say(self, output: np.ndarray) -> dict[str, Any]:
        if self.kind == "regression":
            return {"score": float(output[0])}
        scores = {name: round(float(p), 6) for name, p in zip(self.labels, output, strict=True)}
        if self.kind == "multi":
            return {"labels": [name for name, p in scores.items() if p > 0.5], "scores": scores}
        return {"label": self.labels[int(output.argmax())], "scores": scores}

    def baselines(self, train: Table, test: Table) -> dict[str, dict[str, Estimate]]:
        """Scores of TF-IDF with logistic regression, and of always guessing the commonest, trained on the same rows."""
        gold = np.array([self._target(row, place) for row, place in zip(train.rows, train.places, strict=True)])
        gold = gold.astype(bool) if self.kind == "multi" else gold
        classes = len(self.labels)
        texts = _column(train, "text"), gold, _column(test, "text"), classes, _pairs(train), _pairs(test)
        guesses = {}
        if len(train.rows) * classes <= baseline.MOST_CELLS:
            guesses["TF-IDF"] = baseline.tfidf(self.kind, *texts)
        else:
            note(f"no TF-IDF to compare with: {len(train.rows):,} rows of {classes:,} classes would take it too long")
        guesses["commonest"] = baseline.majority(self.kind, gold, len(test.rows), classes)
        return {name: self.score(test, p.reshape(len(test.rows), -1), True) for name, p in guesses.items()}


def _column(table: Table, role: str) -> list[str]:
    return [row[role] for row in table.rows]


def _pairs(table: Table) -> list[str] | None:
    return _column(table, "pair") if "pair" in table.rows[0] else None


def kind_of(config: dict[str, Any], model: ModelConfig) -> Kind:
    """What a folder's config.json says its labels are; transformers takes a single one for a number."""
    named = config.get("problem_type")
    return next((kind for kind, name in PROBLEMS.items() if name == named),
                "regression" if len(model.labels) == 1 else "single")  # fmt: skip
