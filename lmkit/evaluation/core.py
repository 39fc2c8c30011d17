"""Tasks in the form of CORE (DCLM, Li et al. 2024; JSONL as in nanochat's eval bundle), scored without other packages.

What the keys of a row say it is:
  query, choices, gold                   multiple choice: the choice with the lowest mean loss
  context_options, continuation, gold    schema: the context after which the continuation has the lowest mean loss
  context, continuation                  cloze: each token of the continuation is the likeliest
  context, answer (and aliases)          generation: what is written up to the end of the line is one of them

Prompts, examples ahead and what is scored are nanochat's, so the accuracies are the same."""

import csv
import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import yaml

from lmkit.base.errors import DataError
from lmkit.evaluation.answers import normalise
from lmkit.evaluation.intervals import Estimate, means
from lmkit.evaluation.likelihood import Likelihood, Question, likelihoods
from lmkit.model.transformer import Transformer
from lmkit.text.languages import plain_frame
from lmkit.text.tokenizer import Tokenizer

FORMS = {
    "multiple_choice": ("query", "choices", "gold"),
    "schema": ("context_options", "continuation", "gold"),
    "generation": ("context", "answer"),
    "cloze": ("context", "continuation"),
}
Writer = Callable[[list[str]], list[str]]  # writes the line after each prompt


@dataclass(frozen=True)
class CoreTask:
    name: str
    form: str  # of FORMS
    rows: list[dict[str, Any]]
    places: list[str]  # file:line of each row
    shots: int = 0  # examples ahead of each row
    delimiter: str = " "  # between a question and its answer
    guessing: float | None = None  # accuracy of random answers; None: as the numbers of choices say

    @property
    def baseline(self) -> float:
        """Returns the accuracy that answers at random would have."""
        if self.guessing is not None:
            return self.guessing
        if (key := {"multiple_choice": "choices", "schema": "context_options"}.get(self.form)) is None:
            return 0.0
        return float(np.mean([1 / len(row[key]) for row in self.rows]))


class Answer(NamedTuple):
    """What a model made of one row."""

    right: bool
    loss: float | None  # nats a token of what is right; None of texts that are written
    given: Any  # the number of the choice, or the text; of a cloze whether it was found


def read_core(path: Path, shots: int = 0, limit: int | None = None) -> CoreTask:
    """Returns the task of a JSONL file, its rows in nanochat's random order, `limit` of them at most.

    Raises DataError, with file and line, for a row that is not of its form."""
    rows, places = list[dict[str, Any]](), list[str]()
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            if line.strip():
                rows.append(_row(line, f"{path}:{number}"))
                places.append(f"{path}:{number}")
    forms = [next((form for form, keys in FORMS.items() if set(keys) <= row.keys()), None) for row in rows]
    for row, form, place in zip(rows, forms, places, strict=True):
        if form is None or form != forms[0]:
            known = "\n".join(f"  {name}: {', '.join(keys)}" for name, keys in FORMS.items())
            what = "a row of none of these forms" if form is None else f"{form} in a file of {forms[0]}"
            raise DataError(f"{place}: {what}\n{known}")
        options = row.get("choices" if form == "multiple_choice" else "context_options")
        if "gold" in FORMS[form] and not (isinstance(options, list) and row["gold"] in range(len(options))):
            raise DataError(f"{place}: gold {row['gold']!r} is not the number, from 0, of one of its options")
    if not rows or forms[0] is None:
        raise DataError(f"{path}: holds no rows")
    order = list(range(len(rows)))
    random.Random(1337).shuffle(order)
    rows, places = [rows[i] for i in order[:limit]], [places[i] for i in order[:limit]]
    if shots >= len(rows):
        raise DataError(f"{path}: {len(rows):,} rows have not {shots:,} examples beside each\n  → fewer --shots")
    return CoreTask(path.stem, forms[0], rows, places, shots)


def read_bundle(folder: Path, limit: int | None = None, shots: int | None = None) -> list[CoreTask]:
    """Returns the tasks of a folder like nanochat's eval bundle, as its core.yaml says; without one all .jsonl files.

    shots: for each; None: as core.yaml says, else none. Raises DataError for a file that is missing."""
    if not (listing := folder / "core.yaml").is_file():
        return [read_core(path, shots or 0, limit) for path in sorted(folder.glob("*.jsonl"))]
    guessing = {}
    if (meta := folder / "eval_meta_data.csv").is_file():
        with meta.open(encoding="utf-8", newline="") as file:
            guessing = {r["Eval Task"]: float(r["Random baseline"]) / 100 for r in csv.DictReader(file)}
    tasks = []
    for one in yaml.safe_load(listing.read_text())["icl_tasks"]:
        path = folder / "eval_data" / one["dataset_uri"]
        if not path.is_file():
            raise DataError(f"{path}: missing, and {listing} names it")
        label, delimiter = one["label"], one.get("continuation_delimiter", " ")
        task = read_core(path, one["num_fewshot"][0] if shots is None else shots, limit)
        tasks.append(replace(task, name=label, delimiter=delimiter, guessing=guessing.get(label)))
    return tasks


def _row(line: str, place: str) -> dict[str, Any]:
    try:
        return dict(json.loads(line))
    except (ValueError, TypeError) as e:
        raise DataError(f"{place}: not a JSON object: {e}") from None


def _said(task: CoreTask, row: dict[str, Any]) -> tuple[str, str]:
    """Returns a row's question with its right answer."""
    if task.form == "multiple_choice":
        return row["query"], row["choices"][row["gold"]]
    if task.form == "schema":
        return row["context_options"][row["gold"]], row["continuation"]
    return row["context"].strip(), row["answer" if task.form == "generation" else "continuation"]


def prompt_parts(task: CoreTask, number: int) -> list[tuple[str, str]]:
    """Returns (context, continuation) of each option of a row, the context with the examples ahead."""
    row = task.rows[number]
    others = [i for i in range(len(task.rows)) if i != number]
    drawn = random.Random(1234 + number).sample(others, task.shots) if task.shots else []
    ahead = "".join(task.delimiter.join(_said(task, task.rows[i])) + "\n\n" for i in drawn)
    if task.form == "multiple_choice":
        return [(ahead + row["query"], task.delimiter + choice) for choice in row["choices"]]
    if task.form == "schema":
        return [(ahead + context, task.delimiter + row["continuation"]) for context in row["context_options"]]
    context, answer = _said(task, row)
    return [(ahead + context, task.delimiter + answer)]


def questions(task: CoreTask, parts: Sequence[tuple[str, str]], model: Transformer, words: Tokenizer) -> list[Question]:
    """Returns the ids of the options of one row. A decoder reads context and continuation as one text: its continuation
    are the ids after those that the options share, of a schema those that they share at the end."""
    if model.config.stacks != "decoder":
        frame = plain_frame(words) if model.config.stacks == "encoder_decoder" else None
        before, after = (frame.before_source, frame.after_source) if frame else ([], [])
        return [
            Question([*before, *words.encode(a), *after], words.encode(b.lstrip() if frame else b)) for a, b in parts
        ]
    begin = words.document_frame[0] or [i for i in [words.eos_id] if i is not None]
    texts = [begin + words.encode(a + b) for a, b in parts]
    if task.form == "cloze":
        context = begin + words.encode((parts[0][0] + task.delimiter).strip())
        shared = _common([context, texts[0]])  # all of the context, unless the end of it joins the continuation
        starts = [shared]
    elif task.form == "schema":
        shared = _common([text[::-1] for text in texts])
        starts = [len(text) - shared for text in texts]
    else:
        starts = [_common(texts)] * len(texts)
    cuts = [max(1, min(start, len(text) - 1)) for start, text in zip(starts, texts, strict=True)]
    return [Question(text[:cut], text[cut:]) for text, cut in zip(texts, cuts, strict=True)]


def _common(texts: Sequence[list[int]]) -> int:
    """Returns how many first ids all texts share."""
    return next((i for i, ids in enumerate(zip(*texts, strict=False)) if len(set(ids)) > 1), min(map(len, texts)))


def answer_core(
    task: CoreTask, model: Transformer, words: Tokenizer, write: Writer, start: int | None = None
) -> list[Answer]:
    """Returns what the model makes of each row.

    write: of a task of generation. start: the token that an encoder-decoder's decoder starts from."""
    if task.form == "generation":
        texts = write([prompt_parts(task, number)[0][0] + task.delimiter.rstrip() for number in range(len(task.rows))])
        golds = [{normalise(text) for text in (row["answer"], *row.get("aliases", ()))} for row in task.rows]
        return [Answer(normalise(text) in gold, None, text) for text, gold in zip(texts, golds, strict=True)]
    asked = [questions(task, prompt_parts(task, number), model, words) for number in range(len(task.rows))]
    scored = iter(likelihoods(model, words, [question for row in asked for question in row], start))
    return [_judged(task, row, options, [next(scored) for _ in options])
            for row, options in zip(task.rows, asked, strict=True)]  # fmt: skip


def _judged(task: CoreTask, row: dict[str, Any], options: list[Question], scored: list[Likelihood]) -> Answer:
    losses = [-s.log_prob / len(q.continuation) for q, s in zip(options, scored, strict=True)]
    if task.form == "cloze":
        return Answer(scored[0].greedy, losses[0], scored[0].greedy)
    best = int(np.argmin(losses))
    return Answer(best == row["gold"], losses[row["gold"]], best)


def core_scores(answers: Sequence[Answer], baseline: float) -> dict[str, Estimate]:
    """Returns accuracy, accuracy centered so that answers at random have 0, and the mean loss of what is right."""
    columns = {"accuracy": [float(a.right) for a in answers]}
    if all(a.loss is not None for a in answers):
        columns["loss"] = [float(a.loss or 0.0) for a in answers]
    scores = means(columns)
    bounds = (None if x is None else (x - baseline) / (1 - baseline) for x in scores["accuracy"])
    return {"accuracy": scores["accuracy"], "centered": Estimate(*bounds)} | scores  # type: ignore[arg-type]
