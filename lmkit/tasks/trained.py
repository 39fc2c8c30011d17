"""What a fine-tuned model solves, found out from its run's recipe or its head."""

from pathlib import Path
from typing import Any

from pydantic import ValidationError

from lmkit.base.display import note
from lmkit.base.errors import ModelError, UserError
from lmkit.base.manifest import MANIFEST
from lmkit.base.runs import model_folder, read_status, seeds_of
from lmkit.generation.rules import GENERATION_CONFIG
from lmkit.model.formats.peft import config_and_head
from lmkit.pretrained import Pretrained, load, say_not_followed
from lmkit.recipe.task_settings import FILE, recipe_of, settings_of
from lmkit.recipe.tasks import (  # fmt: skip
    AnswerConfig,
    ChatConfig,
    ClassifyConfig,
    DownstreamConfig,
    QAConfig,
    SummarizeConfig,
    TagConfig,
    TranslateConfig,
)
from lmkit.tasks import chat
from lmkit.tasks.answer import open_answering
from lmkit.tasks.build import MOST_TOKENS, WINDOW_TOKENS
from lmkit.tasks.classify import Classifier, kind_of
from lmkit.tasks.qa import SpanFinder
from lmkit.tasks.solver import Solver, layout
from lmkit.tasks.tag import Tagger
from lmkit.tasks.write import Writer
from lmkit.text.chat import Chat, find_template

BY_HEAD: dict[str, DownstreamConfig] = {
    "sequence": ClassifyConfig(name="classify"), "token": TagConfig(name="tag"), "span": QAConfig(name="qa"),
}  # fmt: skip
BY_NAME: dict[str, DownstreamConfig] = {
    "translate": TranslateConfig(name="translate"), "summarize": SummarizeConfig(name="summarize"),
}  # fmt: skip


def task_of(model: str | Path, named: str | None = None) -> DownstreamConfig | None:
    """named: the user's word for it. None where the model solves no task of fine-tuning. Raises UserError for a task
    the model's head is not for."""
    seeds = seeds_of(model)
    folder, settings = model_folder(seeds[0] if seeds else model), settings_of(model)
    config, head = config_and_head(folder)
    task = settings.task if settings else BY_HEAD.get(head)
    if task and not settings and (folder / MANIFEST).is_file():
        note(f"{folder}: a checkpoint without {FILE}, of an older lmkit: defaults stand for what its run was told")
    if named is None or (task is not None and task.name == named):
        return task
    if named in BY_NAME and head == "lm":
        return BY_NAME[named]
    can = task.name if task else "translate or summarize" if head == "lm" else "nothing of this kind"
    raise UserError(f"{model} ({', '.join(config.get('architectures') or [])}) does not {named}\n  it does {can}")


def load_all(model: str, task: DownstreamConfig, allow_pickle: bool = False) -> list[Pretrained]:
    """The model, or that of each seed of a run, to be asked together. Raises UserError where what they say has no
    mean, or some are still to be trained."""
    seeds = seeds_of(model)
    if not seeds:
        return [load(model, allow_pickle)]
    names = ", ".join(p.name for p in seeds)
    if not isinstance(task, ClassifyConfig):
        raise UserError(
            f"{model}: a run for each of several seeds; only classify takes their mean\n  → name one: {names}"
        )
    done = sum(read_status(p).get("state") == "done" for p in seeds)
    if done < (wanted := recipe_of(Path(model)).seeds):
        raise UserError(
            f"{model}: {done} of {wanted} seeds are trained\n  → lmkit finetune --resume {model}, or name one: {names}"
        )
    return [load(folder, allow_pickle) for folder in seeds]


def trained_solver(model: str | Path, loaded: Pretrained, task: DownstreamConfig) -> Solver:
    """Raises UserError for tasks without scores of their own."""
    c, tokenizer, settings = loaded.config, loaded.needs_tokenizer(), settings_of(model)
    wanted = settings.max_length if settings else 0
    length = min(wanted or (WINDOW_TOKENS if isinstance(task, QAConfig) else MOST_TOKENS), c.context)
    frame = layout(c, tokenizer, loaded.decoder_start if c.stacks == "encoder_decoder" else None)
    if isinstance(task, ClassifyConfig):
        kind = kind_of(loaded.config_json, c) if task.kind == "auto" else task.kind
        return Classifier(
            tokenizer, frame, kind, c.labels, length, metric=task.metric, middle=task.cut == "middle"
        )  # fmt: skip
    if isinstance(task, TagConfig):
        return Tagger(tokenizer, frame, c.labels, length)
    if isinstance(task, QAConfig):
        fitted = settings.fitted.get("no_answer_threshold", 0.0) if settings else 0.0
        return SpanFinder(tokenizer, frame, task, length, None if task.no_answer is False else fitted)
    if isinstance(task, TranslateConfig | SummarizeConfig):
        if settings is None:
            task = _as_configured(task, loaded)
        early = loaded.writing_settings.get("early_stopping") is True
        return Writer(tokenizer, c, task, length, loaded.opening, loaded.eos, rules=loaded.rules, early_stopping=early)
    if isinstance(task, ChatConfig):
        most = min(wanted or chat.MOST_TOKENS, c.context)
        return chat.ChatLearner(Chat(tokenizer, find_template([loaded.folder], "auto", tokenizer)), most)
    if isinstance(task, AnswerConfig):
        return open_answering(model, settings.fitted if settings else {}, loaded, task)
    raise UserError(
        f"{model}: {task.name} has no scores but perplexity\n  → `lmkit eval` without --task gives its perplexity"
    )


def _as_configured(task: TranslateConfig | SummarizeConfig, loaded: Pretrained) -> TranslateConfig | SummarizeConfig:
    """How generation_config.json of a folder that is no run says that texts are written; what it leaves open stays."""
    settings = loaded.writing_settings
    longest = settings.get("max_new_tokens")
    if longest is None and loaded.opening and isinstance(settings.get("max_length"), int):
        longest = settings["max_length"] - 1  # it counts the token that the decoder starts from
    beam = settings.get("num_beams")
    changes: dict[str, Any] = {"beam": 1 if beam is None else beam, "max_new_tokens": longest}
    if longest is None:
        note(f"{loaded.folder} names no longest text (max_new_tokens): up to {task.max_new_tokens} tokens are written")
    if settings.get("length_penalty") is not None:
        changes["length_penalty"] = {"kind": "average", "alpha": settings["length_penalty"]}
    followed = ["num_beams", "max_new_tokens", "length_penalty", *(["max_length"] if loaded.opening else [])]
    if isinstance(settings.get("early_stopping"), bool):
        followed.append("early_stopping")
    say_not_followed(loaded, followed)
    try:
        return type(task)(**task.model_dump() | {key: value for key, value in changes.items() if value is not None})
    except ValidationError as e:
        wrong = "; ".join(f"{error['loc'][0]}: {error['input']!r}: {error['msg']}" for error in e.errors())
        raise ModelError(f"{loaded.folder}/{GENERATION_CONFIG}: {wrong}") from None
