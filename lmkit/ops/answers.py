"""Answers to questions out of a knowledge base or by a model, each with its source below, on standard output."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lmkit.base.errors import UserError
from lmkit.data.inputs import Problems
from lmkit.data.tables.table import Table
from lmkit.kb.knowledge_base import shown
from lmkit.pretrained import load
from lmkit.recipe.task_settings import settings_of
from lmkit.recipe.tasks import AnswerConfig
from lmkit.tasks.answer import Answered, Answering

USED = ("model", "prompt", "file", "max_tokens", "stream", "as_json", "allow_pickle")
HOW = {"kb": "looked up", "passage": "read in", "model": "the model's own words"}
NO_ANSWER = "I do not know."


def check_generate_options(given: Sequence[str]) -> None:
    """Raises UserError for options that have no meaning here. given: the options of `generate` that a person named."""
    if idle := [f"--{key.replace('_', '-')}" for key in given if key not in USED]:
        raise UserError(f"{', '.join(idle)}: answers are looked up, or the likeliest ones\n  → leave it out")


def answer_questions(
    model: str, questions: list[str], kb: Path | None, max_tokens: int | None, as_json: bool, allow_pickle: bool
) -> None:
    """Prints an answer for each question, or a JSON line: question, answer ("" for none), source (kb, passage, model),
    evidence, score. Raises DataError where there is no knowledge base."""
    settings = settings_of(model)
    config, fitted = AnswerConfig(name="answer"), dict[str, Any]()
    if settings and isinstance(settings.task, AnswerConfig):
        config, fitted = settings.task, settings.fitted
    if max_tokens is not None:
        config = config.model_copy(update={"max_new_tokens": max_tokens})
    loaded = load(model, allow_pickle)
    task = Answering.opened(config, loaded, fitted, kb)
    asked = [question.strip() for question in questions]
    table = Table([{"question": question} for question in asked], [], {}, "", Problems())
    for question, answered in zip(asked, task.outputs(loaded.model, table, ()), strict=True):
        if as_json:
            print(json.dumps({"question": question} | task.say(answered), ensure_ascii=False), flush=True)
        else:
            print(f"{shown(answered.answer) or NO_ANSWER}\n  {_source(answered)}", flush=True)


def _source(a: Answered) -> str:
    how = HOW[a.source] if a.answer else "no answer"
    score = f" · score {a.score:.2f}" if a.answer else ""
    return f"{how} · {shown(a.evidence)}{score}"
