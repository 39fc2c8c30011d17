"""A task's section of the recipe -> what solves it."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lmkit.architecture.model_config import ModelConfig
from lmkit.base.errors import ModelError
from lmkit.data.tables.labels import label_kind
from lmkit.data.tables.table import Table
from lmkit.generation.batches import Opening
from lmkit.generation.rules import Rules
from lmkit.objectives.build import starts
from lmkit.recipe.tasks import (  # fmt: skip
    ChatConfig,
    ClassifyConfig,
    DownstreamConfig,
    QAConfig,
    SummarizeConfig,
    TagConfig,
    TranslateConfig,
)
from lmkit.tasks import chat
from lmkit.tasks.classify import PROBLEMS, Classifier, class_weights, labels_of
from lmkit.tasks.qa import SpanFinder
from lmkit.tasks.solver import Solver, layout
from lmkit.tasks.tag import Tagger, tags_of
from lmkit.tasks.write import Writer
from lmkit.text.chat import Chat, find_template
from lmkit.text.tokenizer import Tokenizer

MOST_TOKENS = 512  # a row is cut to, unless `data.max_length` says otherwise
WINDOW_TOKENS = 384  # of question and context together (Devlin et al. 2019's SQuAD code)


@dataclass(frozen=True)
class Setup:
    """A solver, and what its model must be."""

    solver: Solver
    head: str
    what: str  # the head is for
    max_length: int
    labels: tuple[str, ...] = ()
    config_keys: dict[str, Any] = field(default_factory=dict)  # of config.json
    higher: bool = True  # scores of the solver's metric are better
    packed: bool = False  # several examples stand in one row, so nobody chose how many rows there are


def solver_for(
    task: DownstreamConfig, train: Table, tokenizer: Tokenizer, model: ModelConfig, max_length: int,
    kept: Path | None = None,
) -> Setup:  # fmt: skip
    """For training on this table. kept: the folder of the tokenizer, where chat finds its template. Raises DataError
    for labels that do not fit the task, ModelError for a model that cannot do it."""
    length = min(max_length or MOST_TOKENS, model.context)
    start = starts(model.family, tokenizer)[0] if model.stacks == "encoder_decoder" else None
    frame = layout(model, tokenizer, start)
    if isinstance(task, ClassifyConfig):
        kind = label_kind(train.rows)
        labels = labels_of(train, kind)
        weights = class_weights(train, labels) if task.class_weights else ()
        solver = Classifier(
            tokenizer, frame, kind, labels, length, weights, task.label_smoothing, task.metric,
            middle=task.cut == "middle",
        )  # fmt: skip
        return Setup(solver, "sequence", "labels of texts", length, labels, {"problem_type": PROBLEMS[kind]})
    if isinstance(task, TranslateConfig | SummarizeConfig):
        if model.stacks == "encoder":
            raise ModelError(f"{model.family} is an encoder, which writes no text\n  → {task.name} needs a decoder")
        opening = None if start is None else Opening(start)
        rules = Rules(never=tokenizer.unused_ids(model.vocab_size))
        return Setup(Writer(tokenizer, model, task, length, opening, rules=rules), "lm", "words", length)
    if isinstance(task, TagConfig):
        tags = tags_of(train)
        return Setup(Tagger(tokenizer, frame, tags, length), "token", "labels of words", length, tags)
    if isinstance(task, QAConfig):
        none = task.no_answer if task.no_answer is not None else any(not row["answers"] for row in train.rows)
        length = min(max_length or WINDOW_TOKENS, model.context)
        finder = SpanFinder(tokenizer, frame, task, length, 0.0 if none else None)
        return Setup(finder, "span", "answers in texts", length, ("start", "end"))
    if isinstance(task, ChatConfig):
        length = min(max_length or chat.MOST_TOKENS, model.context)
        template = find_template([kept] if kept else [], "auto" if kept else task.template, tokenizer)
        learner = chat.ChatLearner(Chat(tokenizer, template), length)
        return Setup(learner, "lm", "words", length, higher=False, packed=True)
    raise AssertionError(task.name)
