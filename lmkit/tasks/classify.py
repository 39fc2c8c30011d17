"""Labels of whole texts: one, several, or a number."""

import math
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np

from lmkit.architecture.model_config import ModelConfig
from lmkit.base.display import note
from lmkit.base.errors import DataError, UserError
from lmkit.base.units import brief
from lmkit.data.tables.labels import Kind, label_kind
from lmkit.data.tables.table import Table
from lmkit.evaluation import baseline, classification
from lmkit.evaluation.calibration import best_temperature
from lmkit.evaluation.intervals import Estimate, means
from lmkit.model.heads import TaskHead
from lmkit.model.transformer import Transformer
from lmkit.objectives.batch import Batch
from lmkit.pretrained import Pretrained
from lmkit.recipe.task_settings import TaskSettings
from lmkit.recipe.tasks import ClassifyConfig
from lmkit.tasks.labelling import Classify, InputLayout
from lmkit.tasks.task import MOST_CLASSES, MOST_TOKENS, Reading, Task, class_tables, confusions, in_batches
from lmkit.text.tokenizer import Tokenizer, frame_texts

PROBLEMS: dict[Kind, str] = {  # as config.json of transformers names them
    "single": "single_label_classification", "multi": "multi_label_classification", "regression": "regression",
}  # fmt: skip
METRICS: dict[Kind, str] = {"single": "accuracy", "multi": "micro_f1", "regression": "pearson"}
SCORES: dict[Kind, tuple[str, ...]] = {  # that `task.metric` may choose
    "single": ("accuracy", "macro_f1", "mcc", "auroc"), "multi": ("micro_f1", "macro_f1", "auroc"),
    "regression": ("pearson", "spearman"),
}  # fmt: skip


def check_options(task: ClassifyConfig, kind: Kind, classes: int) -> None:
    """Raises UserError for a setting that does not fit this kind of labels, or this number of classes."""
    what = {"single": f"{classes} classes", "multi": "several labels a row", "regression": "numbers"}[kind]
    advice = "take another, or say with task.kind what the labels are"
    if task.metric and task.metric not in SCORES[kind]:
        raise UserError(
            f"task.metric={task.metric} is no score of {what}\n  allowed: {', '.join(SCORES[kind])}\n  → {advice}"
        )
    if task.threshold != 0.5 and kind != "multi" and not (kind == "single" and classes == 2):
        raise UserError(
            "a threshold (task.threshold) is for several labels a row, or for one of two classes, and these are"
            f" {what}\n  → leave it out"
        )
    for name in ("class_weights", "label_smoothing", "calibrate"):
        if getattr(task, name) and kind != "single":
            raise UserError(f"task.{name} is for one class a row, and these labels are {what}\n  → leave it out")


def labels_of(table: Table, kind: Kind) -> tuple[str, ...]:
    """Returns what the rows are labelled with; `score` for numbers. Raises DataError for a single class, and for
    none."""
    values = [row["label"] for row in table.rows]
    if kind == "regression":
        return ("score",)
    names = {name for value in values for name in ([value] if kind == "single" else value)}
    if not names:
        raise DataError(f"none of the {len(values):,} rows has a label\n  → data.label=COLUMN names another column")
    if len(names) < 2 and kind == "single":
        raise DataError(
            f"all {len(values):,} rows have the label `{brief(next(iter(names)))}`: there is nothing to learn\n"
            "  → take rows of other labels too, or name another column with data.label=COLUMN"
        )
    return tuple(sorted(names, key=lambda n: (not n.isdigit(), int(n) if n.isdigit() else 0, n)))


def names_of(table: Table) -> set[str]:
    """Returns the classes that some row has."""
    return {name for row in table.rows for name in _names(row)}


def _names(row: dict[str, Any]) -> list[str]:
    return row["label"] if isinstance(row["label"], list) else [row["label"]]


def known_labels(table: Table, known: Collection[str], what: str, advice: str = "") -> Table:
    """Returns the rows whose labels are all known, and counts the others, which no model could be right on.

    what: the name of the unknown ones in messages. advice: ends the DataError that is raised where none is left."""
    unknown = [[name for name in _names(row) if name not in known] for row in table.rows]
    known_rows = [i for i, found in enumerate(unknown) if not found]
    if len(known_rows) == len(table.rows):
        return table
    first = next(i for i, found in enumerate(unknown) if found)
    example = f"{table.places[first]}: `{brief(unknown[first][0])}`"
    if not known_rows:
        allowed = ", ".join(brief(name) for name in sorted(known)[:20])
        more = f" and {len(known) - 20:,} more" if len(known) > 20 else ""
        raise DataError(
            f"no row is left: {len(table.rows):,} {what}, like {example}\n  allowed: {allowed}{more}{advice}"
        )
    note(f"left out: {len(unknown) - len(known_rows):,} {what}, like {example}")
    return replace(table, rows=[table.rows[i] for i in known_rows], places=[table.places[i] for i in known_rows])


def class_weights(table: Table, labels: tuple[str, ...]) -> tuple[float, ...]:
    """Returns the inverse of each class's share, 1 on average over rows (scikit-learn's `balanced`)."""
    counts = Counter(row["label"] for row in table.rows)
    return tuple(len(table.rows) / (len(labels) * counts[name]) for name in labels)


@dataclass
class Classifier(Task):
    head, head_is_for, averaged, counts_rows = "sequence", "labels of texts", True, True

    tokenizer: Tokenizer
    layout: InputLayout
    kind: Kind
    labels: tuple[str, ...]
    max_length: int
    weights: tuple[float, ...] = ()
    smoothing: float = 0.0
    metric: str = ""
    middle: bool = False  # is what is cut out of longer texts, not their end
    threshold: float = classification.HALF  # probability from which one of several labels, or the second class, holds
    fitted: bool = False  # the threshold is chosen after training
    baseline: bool = False  # simpler classifiers are trained beside it
    calibrate: bool = False
    scale_targets: bool = False

    @classmethod
    def for_training(cls, config: ClassifyConfig, train: Table, reading: Reading) -> Self:
        kind = label_kind(train.rows)
        labels = labels_of(train, kind)
        weights = class_weights(train, labels) if config.class_weights else ()
        return cls(
            reading.tokenizer, reading.layout, kind, labels, reading.length(MOST_TOKENS), weights,
            config.label_smoothing, config.metric, config.cut == "middle",
            classification.HALF if isinstance(config.threshold, str) else config.threshold, config.threshold == "auto",
            config.baseline, config.calibrate, config.scale_targets,
        )  # fmt: skip

    @classmethod
    def of_folder(cls, config: ClassifyConfig, loaded: Pretrained, settings: TaskSettings | None) -> Self:
        reading = Reading.of(loaded, settings)
        kind = kind_of(loaded.config_json, loaded.config) if config.kind == "auto" else config.kind
        check_options(config, kind, len(loaded.config.labels))
        fitted = settings.fitted.get("threshold", classification.HALF) if settings else classification.HALF
        threshold = fitted if isinstance(config.threshold, str) else config.threshold
        return cls(
            reading.tokenizer, reading.layout, kind, cls.label_names(config, loaded.config.labels),
            reading.length(MOST_TOKENS), metric=config.metric, middle=config.cut == "middle", threshold=threshold,
        )  # fmt: skip

    @classmethod
    def label_names(cls, config: ClassifyConfig, labels: tuple[str, ...]) -> tuple[str, ...]:
        """Returns the labels as `task.labels` renames them. Raises UserError for labels that the head does not have,
        and for two of one name."""
        renamed = tuple(config.labels.get(label, label) for label in labels)
        if unknown := [name for name in config.labels if name not in labels]:
            allowed = ", ".join(map(brief, labels[:20])) or "none: it has no head for labels"
            raise UserError(f"task.labels: `{brief(unknown[0])}` is no label of the model\n  allowed: {allowed}")
        if len(set(renamed)) < len(renamed):
            raise UserError("task.labels: two labels would have one name\n  → a name of its own for each")
        return renamed

    def __post_init__(self) -> None:
        self.objective = Classify(self.layout, self.kind, self.weights, self.smoothing)
        self.metric = self.metric or METRICS[self.kind]
        self.places = {name: i for i, name in enumerate(self.labels)}

    @classmethod
    def check_rows(cls, config: ClassifyConfig, train: Table, held_out: Table) -> Table:
        kind = label_kind(train.rows)
        check_options(config, kind, 1 if kind == "regression" else len(names_of(train)))
        if not held_out.rows and (config.threshold == "auto" or config.calibrate):
            what = "task.calibrate" if config.calibrate else "task.threshold=auto"
            raise UserError(f"{what} is fitted on held-out rows, and there are none\n  → data.validation=10%")
        if kind == "regression" or not held_out.rows:
            return held_out
        return known_labels(held_out, names_of(train), "held-out rows whose label no training row has")

    def read_as(self) -> tuple[str, frozenset[str]]:
        return self.kind, frozenset(self.labels)

    def known_rows(self, table: Table) -> Table:
        if self.kind == "regression":
            return table
        advice = f"\n  → if a class has another name there, rename that of the model: --labels '{self.labels[0]}=NAME'"
        return known_labels(table, self.places, "rows whose label the model does not have", advice)

    def settled(self, config: ClassifyConfig) -> ClassifyConfig:
        return config.model_copy(update={"kind": self.kind, "labels": {}})  # the head has the new names

    def settle_head(self, model: Transformer, train: Table, fresh: bool) -> str:
        """Has numbers learnt in units of about their spread, around their mean where the head has a bias for it."""
        head = model.head
        if self.kind != "regression" or not self.scale_targets or not isinstance(head, TaskHead) or not head.output:
            return ""
        targets = self._gold(train)
        mean = float(targets.mean()) if head.output.bias is not None else 0.0
        spread = float(np.sqrt(np.mean((targets - mean) ** 2))) or 1.0
        unit = 2.0 ** round(math.log2(spread))
        head.measure_in(unit, mean if fresh else None)
        begin = f", beginning at their mean, {mean:g}" if fresh and head.output.bias is not None else ""
        return f"numbers are learnt in units of {unit:g}{begin} (task.scale_targets)"

    def config_json(self) -> dict[str, Any]:
        return {"problem_type": PROBLEMS[self.kind]}

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
            return label or 0.0
        if self.kind == "single":
            return 0 if label is None else self._index(label, place)
        hot = np.zeros(len(self.labels), np.float32)
        hot[[self._index(name, place) for name in label or ()]] = 1
        return hot

    def _gold(self, table: Table) -> np.ndarray:
        """Returns the targets of all rows: (N,) classes or numbers, (N, L) for several labels."""
        return np.array([self._target(row, place) for row, place in zip(table.rows, table.places, strict=True)])

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
        """Returns (L,) probabilities for each row; of a regression the number."""

        def compute(batch: Batch) -> np.ndarray:
            logits = self.layout.logits(model, batch)
            if self.kind == "single":
                logits = logits.softmax(-1)
            elif self.kind == "multi":
                logits = logits.sigmoid()
            return logits.cpu().numpy()

        return in_batches(model, self.objective, examples, compute, quick)

    def scores(self, table: Table, outputs: Sequence[np.ndarray], intervals: bool) -> dict[str, Estimate]:
        return self.score(table, np.stack(outputs), intervals)

    def score(self, table: Table, p: np.ndarray, intervals: bool) -> dict[str, Estimate]:
        """Returns scores. p: (N, L) probabilities, or (N, 1) numbers."""
        gold = self._gold(table)
        if self.kind == "regression":
            return classification.regression(gold, p[:, 0], intervals)
        if self.kind == "multi":
            return classification.multi(gold.astype(bool), p, intervals, self.threshold)
        nats = -np.log(np.maximum(p[np.arange(len(gold)), gold], 1e-12))
        return means({"loss": nats}, intervals) | classification.single(gold, p, intervals, self.threshold)

    def fit(self, model: Transformer, table: Table) -> tuple[dict[str, Any], str]:
        if not self.fitted:
            return {}, ""
        self.threshold = self._best_threshold(table, np.stack(self.outputs(model, table, self.examples(table))))
        return {"threshold": self.threshold}, self.stated()[0] if self.stated() else "the threshold stays 0.5"

    def _best_threshold(self, table: Table, p: np.ndarray) -> float:
        gold = self._gold(table) > 0
        if self.kind == "multi":
            return classification.best_threshold(gold, p)
        return classification.best_threshold(gold, p[:, 1], macro=True)

    def temperature(self, table: Table, outputs: Sequence[np.ndarray]) -> float | None:
        return best_temperature(self._gold(table), np.stack(outputs)) if self.calibrate else None

    def stated(self) -> list[str]:
        """Returns the threshold, where it is not that of the likeliest class."""
        if self.threshold == classification.HALF:
            return []
        what = "a label holds" if self.kind == "multi" else f"{brief(self.labels[1])}, the second class, is predicted"
        return [f"{what} from a probability of {self.threshold:.3f}"]

    def per_row(self, table: Table, outputs: Sequence[np.ndarray]) -> list[float]:
        gold = self._gold(table)
        if self.kind == "regression":
            return [-abs(float(g) - float(p[0])) for g, p in zip(gold, outputs, strict=True)]
        if self.kind == "multi":
            return [
                float((classification.holds(p, self.threshold) == (g > 0)).all())
                for g, p in zip(gold, outputs, strict=True)
            ]
        return (self._chosen(outputs) == gold).astype(float).tolist()

    def say(self, output: np.ndarray) -> dict[str, Any]:
        if self.kind == "regression":
            return {"score": float(output[0])}
        scores = {name: round(float(p), 6) for name, p in zip(self.labels, output, strict=True)}
        if self.kind == "multi":
            held = classification.holds(output, self.threshold)
            return {"labels": [name for name, yes in zip(self.labels, held, strict=True) if yes], "scores": scores}
        return {"label": self.labels[int(self._chosen([output])[0])], "scores": scores}

    def _chosen(self, outputs: Sequence[np.ndarray]) -> np.ndarray:
        """Returns the class of each row, (N,)."""
        return classification.chosen(np.stack(outputs), self.threshold)

    def never_predicted(self, table: Table, outputs: Sequence[np.ndarray]) -> dict[str, int]:
        if self.kind != "single":
            return {}
        predicted = {self.labels[i] for i in self._chosen(outputs)}
        return dict(Counter(row["label"] for row in table.rows if row["label"] not in predicted).most_common())

    def losses(self, model: Transformer, table: Table, outputs: Sequence[np.ndarray]) -> list[float | None]:
        return [self._loss(row, output) for row, output in zip(table.rows, outputs, strict=True)]

    def _loss(self, row: dict[str, Any], output: np.ndarray) -> float | None:
        if self.kind == "regression":
            return float(output[0] - row["label"]) ** 2
        if not set(_names(row)) <= self.places.keys():
            return None
        gold = self._target(row, "")
        right = output[gold] if self.kind == "single" else np.where(gold > 0, output, 1 - output)
        return float(-np.log(np.maximum(right, 1e-12)).mean())

    def class_scores(self, table: Table, outputs: Sequence[np.ndarray]) -> dict[str, classification.ClassScore]:
        if self.kind == "regression":
            return {}
        gold, p = self._gold(table), np.stack(outputs)
        if self.kind == "multi":
            gold, held = gold > 0, classification.holds(p, self.threshold)
            each = classification.class_scores((gold & held).sum(0), gold.sum(0), held.sum(0))
        else:
            each = classification.per_class(gold, self._chosen(outputs), len(self.labels))
        return dict(zip(self.labels, each, strict=True))

    def reliability(self, table: Table, outputs: Sequence[np.ndarray]) -> list[classification.Bin]:
        p = np.stack(outputs)
        if self.kind == "regression":
            return []
        if self.kind == "multi":  # of all pairs of row and label
            return classification.reliability(self._gold(table).ravel() > 0, p.ravel())
        return classification.reliability(p.argmax(1) == self._gold(table), p.max(1))

    def confusion(self, table: Table, outputs: Sequence[np.ndarray]) -> dict[str, dict[str, int]]:
        if self.kind != "single":
            return {}
        matrix = classification.confusion(self._gold(table), self._chosen(outputs), len(self.labels))
        return {
            gold: {self.labels[i]: int(row[i]) for i in np.flatnonzero(row)}
            for gold, row in zip(self.labels, matrix, strict=True) if row.any()
        }  # fmt: skip

    def details(self, table: Table, outputs: Sequence[np.ndarray]) -> list[str]:
        """Returns a table with gold labels in rows, predicted ones in columns, and precision, recall and F1 of each;
        for many classes what is confused most, for other kinds of labels nothing."""
        if self.kind != "single":
            return []
        gold, predicted = self._gold(table), self._chosen(outputs)
        labels = [brief(label, 20) for label in self.labels]
        if len(labels) > MOST_CLASSES:
            return confusions(labels, gold, predicted)
        return class_tables(labels, gold, predicted)

    def baselines(self, train: Table, held_out: Table) -> dict[str, dict[str, Estimate]]:
        """Returns scores of TF-IDF with logistic regression, and of always guessing the commonest class, learnt from
        the same rows. A threshold that is fitted is fitted for each of them too, or the comparison would be unfair."""
        if not self.baseline:
            return {}
        gold = self._gold(train)
        gold = gold.astype(bool) if self.kind == "multi" else gold
        classes = len(self.labels)
        texts = _column(train, "text"), gold, _column(held_out, "text"), classes, _pairs(train), _pairs(held_out)
        guesses = {}
        if len(train.rows) * classes <= baseline.MOST_CELLS:
            guesses["TF-IDF"] = baseline.tfidf(self.kind, *texts)
        else:
            note(f"no TF-IDF to compare with: {len(train.rows):,} rows of {classes:,} classes would take it too long")
        guesses["commonest"] = baseline.majority(self.kind, gold, len(held_out.rows), classes)
        scores = {}
        for name, guess in guesses.items():
            p = guess.reshape(len(held_out.rows), -1)
            judge = replace(self, threshold=self._best_threshold(held_out, p)) if self.fitted else self
            scores[name] = judge.score(held_out, p, True)
        return scores


def _column(table: Table, role: str) -> list[str]:
    return [row[role] for row in table.rows]


def _pairs(table: Table) -> list[str] | None:
    return _column(table, "pair") if "pair" in table.rows[0] else None


def kind_of(config: dict[str, Any], model: ModelConfig) -> Kind:
    """Returns what a folder's config.json says its labels are; transformers takes a single one for a number."""
    named = config.get("problem_type")
    return next((kind for kind, name in PROBLEMS.items() if name == named),
                "regression" if len(model.labels) == 1 else "single")  # fmt: skip
