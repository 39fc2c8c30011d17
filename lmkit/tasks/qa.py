"""Answers found in texts (SQuAD): windows over long texts, the best span of all, no answer where that is likelier."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Self

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from lmkit.base.display import note
from lmkit.data.tables.table import Table
from lmkit.evaluation import answers
from lmkit.evaluation.intervals import Estimate
from lmkit.model.transformer import Transformer
from lmkit.objectives.batch import Batch
from lmkit.pretrained import Pretrained
from lmkit.recipe.task_settings import TaskSettings
from lmkit.recipe.tasks import QAConfig
from lmkit.tasks.labelling import InputLayout, Span
from lmkit.tasks.task import Reading, Task, in_batches, row_losses
from lmkit.text.tokenizer import Tokenizer

WINDOW_TOKENS = 384  # of question and context together (Devlin et al. 2019's SQuAD code)


class Answer(NamedTuple):
    text: str  # "" for none
    score: float  # of the best span, logit of its start plus that of its end
    null_score: float  # the same of [CLS]: that there is no answer
    start: int  # character of the context where it begins; -1 for none
    error: str = ""  # why the question was not read


NEVER = Answer("", -1e9, 0.0, -1)  # of a question that was not read


class Found(NamedTuple):
    """The best span of one window."""

    score: float
    null_score: float
    first: int  # tokens
    last: int


@dataclass
class SpanFinder(Task):
    """Examples are windows: the question and as much of the context as fits, neighbours with `overlap` tokens in
    common (transformers' `doc_stride`, which BERT's own code means otherwise: there it is the step).

    threshold: how much likelier than the best span no answer must be to be said; None: there always is an answer."""

    head, head_is_for, metric, labels = "span", "answers in texts", "f1", ("start", "end")

    tokenizer: Tokenizer
    layout: InputLayout
    config: QAConfig
    max_length: int
    threshold: float | None
    said: set[str] = field(default_factory=set)  # notes, each said once

    @classmethod
    def for_training(cls, config: QAConfig, train: Table, reading: Reading) -> Self:
        none = config.no_answer if config.no_answer is not None else any(not row["answers"] for row in train.rows)
        threshold = 0.0 if none else None
        return cls(reading.tokenizer, reading.layout, config, reading.length(WINDOW_TOKENS), threshold)

    @classmethod
    def of_folder(cls, config: QAConfig, loaded: Pretrained, settings: TaskSettings | None) -> Self:
        reading = Reading.of(loaded, settings)
        fitted = settings.fitted.get("no_answer_threshold", 0.0) if settings else 0.0
        threshold = None if config.no_answer is False else fitted
        return cls(reading.tokenizer, reading.layout, config, reading.length(WINDOW_TOKENS), threshold)

    def __post_init__(self) -> None:
        self.objective = Span(self.layout)

    def settled(self, config: QAConfig) -> QAConfig:
        return config.model_copy(update={"no_answer": self.threshold is not None})

    def examples(self, table: Table) -> list[dict[str, Any]]:
        """Returns the windows of each question. One that leaves no room for a text has none: it is counted, and never
        answered."""
        windows = [self._windows(i, row) for i, row in enumerate(table.rows)]
        unread = [place for place, some in zip(table.places, windows, strict=True) if not some]
        golds = [(row.get("answers"), some) for row, some in zip(table.rows, windows, strict=True) if some]
        far = sum(bool(answers) and not any(map(self._reaches, some)) for answers, some in golds)
        notes = []
        if unread:
            notes.append(
                f"left out: {len(unread):,} of {len(table.rows):,} questions, like {unread[0]}: {self._no_room}"
            )
        if far:
            notes.append(f"{far:,} of {len(table.rows):,} questions have no answer of at most task.max_answer="
                         f"{self.config.max_answer} tokens in a window, so it cannot be found")  # fmt: skip
        for line in notes:
            if line not in self.said:
                note(f"qa       {line}")
        self.said.update(notes)
        return [window for some in windows for window in some]

    @property
    def _no_room(self) -> str:
        return f"too long a question leaves no room for a text in {self.max_length} tokens (data.max_length)"

    def _reaches(self, window: dict[str, Any]) -> bool:
        """Returns whether an answer lies in the window and is short enough to be found."""
        return any(first > 0 and last - first < self.config.max_answer for first, last in window["reached"])

    def _windows(self, number: int, row: dict[str, Any]) -> list[dict[str, Any]]:
        """Returns the windows of a question; none where it leaves no room for a text."""
        backend, c = self.tokenizer.backend, self.config
        question = row["question"].strip()
        used = len(backend.encode(question, "", add_special_tokens=True).ids)
        overlap = min(c.overlap, max(0, (self.max_length - used) // 2))
        if used + 8 > self.max_length:
            return []
        backend.enable_truncation(self.max_length, stride=overlap, strategy="only_second")
        try:
            first = backend.encode(question, row["context"], add_special_tokens=True)
        finally:
            backend.no_truncation()
        golds = row.get("answers") or []
        out = []
        for encoding in (first, *first.overflowing):
            inside = np.array([text == 1 for text in encoding.sequence_ids])
            offsets = np.array(encoding.offsets).reshape(-1, 2)
            example = {
                "tokens": np.array(encoding.ids), "types": np.array(encoding.type_ids), "row": number,
                "inside": inside, "offsets": offsets, "cut": False, "span": _span(golds, offsets, inside),
                "reached": [_span([gold], offsets, inside) for gold in golds],
            }  # fmt: skip
            out.append(example)
        return out

    def outputs(self, model: Transformer, table: Table, examples: Sequence[dict], quick: bool = False) -> list[Answer]:
        at = iter(examples)

        def compute(batch: Batch) -> list[np.ndarray]:
            return list(Span(self.layout).logits(model, batch).cpu().numpy())

        best: list[Answer | None] = [None] * len(table.rows)
        for e, logits in zip(at, in_batches(model, self.objective, examples, compute, quick), strict=True):
            span = best_span(logits[: len(e["tokens"])], e["inside"], self.config.max_answer)
            row = table.rows[e["row"]]
            start, end = int(e["offsets"][span.first, 0]), int(e["offsets"][span.last, 1])
            answer = Answer(row["context"][start:end], span.score, span.null_score, start)
            best[e["row"]] = _better(best[e["row"]], answer)
        return [NEVER._replace(error=self._no_room) if a is None else self._decided(a) for a in best]

    def _decided(self, answer: Answer) -> Answer:
        silent = self.threshold is not None and answer.null_score - answer.score > self.threshold
        return answer._replace(text="", start=-1) if silent else answer

    def fit(self, model: Transformer, table: Table) -> tuple[dict[str, Any], str]:
        if self.threshold is None:
            return {}, ""
        self.threshold = self.fit_threshold(model, table)
        message = f"no answer is said when it is {self.threshold:+.2f} likelier than the best span"
        return {"no_answer_threshold": self.threshold}, message

    def fit_threshold(self, model: Transformer, table: Table) -> float:
        """Returns the threshold with the best F1 on these rows (the official script's `best_f1_thresh`)."""
        always = SpanFinder(self.tokenizer, self.layout, self.config, self.max_length, None)
        best_spans = always.outputs(model, table, always.examples(table))
        golds = [_golds(row) for row in table.rows]
        speaking = [answers.best_of(g, a.text)[1] for g, a in zip(golds, best_spans, strict=True)]
        silent = [answers.best_of(g, "")[1] for g in golds]
        return answers.best_threshold([a.null_score - a.score for a in best_spans], speaking, silent)[0]

    def scores(self, table: Table, outputs: Sequence[Answer], intervals: bool) -> dict[str, Estimate]:
        return answers.score_answers([_golds(row) for row in table.rows], [a.text for a in outputs], intervals)

    def texts_written(self, table: Table, outputs: Sequence[Answer]) -> list[tuple[str, list[str]]]:
        return [(a.text, _golds(row)) for a, row in zip(outputs, table.rows, strict=True)]

    def baselines(self, train: Table, held_out: Table) -> dict[str, dict[str, Estimate]]:
        """Returns the scores of the commonest training answer, and of no answer where questions may have none."""
        counts = Counter(answer for row in train.rows for answer in set(_golds(row)))
        guesses = {} if self.threshold is None else {"no answer": ""}
        if counts:
            guesses["commonest"] = counts.most_common(1)[0][0]
        golds = [_golds(row) for row in held_out.rows]
        return {name: answers.score_answers(golds, [text] * len(golds)) for name, text in guesses.items()}

    def per_row(self, table: Table, outputs: Sequence[Answer]) -> list[float]:
        """Returns the F1 of each row."""
        return [answers.best_of(_golds(row), a.text)[1] for row, a in zip(table.rows, outputs, strict=True)]

    def losses(self, model: Transformer, table: Table, outputs: Sequence[Answer]) -> list[float | None]:
        """Returns the mean over the windows of each question."""

        def nats(batch: Batch) -> tuple[Tensor, Tensor]:
            logits = Span(self.layout).logits(model, batch)
            each = F.cross_entropy(logits, batch.labels, reduction="none").mean(1)
            return each, torch.ones_like(each)

        return row_losses(self, model, table, nats)

    def say(self, output: Answer) -> dict[str, Any]:
        if output.error:
            return {"error": output.error}
        return {"answer": output.text, "score": output.score - output.null_score, "start": output.start}

    def say_of(self, row: dict[str, Any], output: Answer) -> dict[str, Any]:
        return {"id": row["id"]} | self.say(output)


def _golds(row: dict[str, Any]) -> list[str]:
    return [answer["text"] for answer in row["answers"]]


def _span(golds: list[dict[str, Any]], offsets: np.ndarray, inside: np.ndarray) -> tuple[int, int]:
    """Returns the first and last token of the first answer that lies in the window as a whole; (0, 0), [CLS], for
    none."""
    for gold in golds:
        start, end = gold["start"], gold["start"] + len(gold["text"])
        held = np.flatnonzero(inside & (offsets[:, 0] < end) & (offsets[:, 1] > start))
        if len(held) and offsets[held[0], 0] <= start and offsets[held[-1], 1] >= end:
            return int(held[0]), int(held[-1])
    return 0, 0


def best_span(logits: np.ndarray, inside: np.ndarray, longest: int) -> Found:
    """Returns the span with the largest start plus end, of at most `longest` tokens, all of the context. It is exact,
    where the usual n-best lists are not: for every end it takes the largest start of the last `longest` tokens.

    logits: (T, 2); inside: (T,) bool."""
    start, end = (np.where(inside, logits[:, k], -np.inf) for k in (0, 1))
    padded = np.concatenate([np.full(longest - 1, -np.inf), start])
    windows = np.lib.stride_tricks.sliding_window_view(padded, longest)  # (T, longest): the starts for each end
    back = windows[:, ::-1].argmax(1)  # the nearest of equal ones: the shorter answer
    total = windows.max(1) + end
    last = int(total.argmax())
    return Found(float(total[last]), float(logits[0].sum()), last - int(back[last]), last)


def _better(one: Answer | None, other: Answer) -> Answer:
    """Returns the better span of two windows, and the smaller score for no answer, as in run_squad: a window without
    the answer is sure that there is none."""
    if one is None:
        return other
    best = other if other.score > one.score else one
    return best._replace(null_score=min(one.null_score, other.null_score))
