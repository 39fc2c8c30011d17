"""The tasks of fine-tuning by name, and which of them a trained model is for: told by its run's recipe or its head."""

from pathlib import Path
from typing import Any

from lmkit.base.display import note
from lmkit.base.errors import UserError
from lmkit.base.manifest import MANIFEST
from lmkit.base.runs import model_folder, read_status, seeds_of
from lmkit.generation.engine import MAX_ROWS
from lmkit.generation.weights import prepare
from lmkit.model.formats.peft import config_and_head
from lmkit.pretrained import Pretrained, load
from lmkit.recipe.recipe_file import build_recipe
from lmkit.recipe.task_settings import FILE, recipe_of, settings_of
from lmkit.recipe.tasks import TaskConfig, section_of
from lmkit.tasks.answer import Answering
from lmkit.tasks.chat import ChatLearner
from lmkit.tasks.classify import Classifier
from lmkit.tasks.qa import SpanFinder
from lmkit.tasks.tag import Tagger
from lmkit.tasks.task import Task
from lmkit.tasks.write import Summarizer, Translator, Writer

TASKS: dict[str, type[Task]] = {
    "classify": Classifier, "tag": Tagger, "qa": SpanFinder, "translate": Translator,
    "summarize": Summarizer, "chat": ChatLearner, "answer": Answering,
}  # fmt: skip


def task_of(model: str | Path, named: str | None = None) -> TaskConfig | None:
    """Returns the section of a model's task, None where it solves no task of fine-tuning. named: the user's word for
    it. Raises UserError for a task the model's head is not for."""
    seeds = seeds_of(model)
    folder, settings = model_folder(seeds[0] if seeds else model), settings_of(model)
    config, head = config_and_head(folder)
    by_head = [name for name, task in TASKS.items() if task.head == head != "lm"]
    task = settings.task if settings else section_of(by_head[0]) if by_head else None
    if task and not settings and (folder / MANIFEST).is_file():
        note(f"{folder}: a checkpoint without {FILE}, of an older lmkit: defaults stand for what its run was told")
    if named is None or (task is not None and task.name == named):
        return task
    if head == "lm" and issubclass(TASKS.get(named, Task), Writer):
        return section_of(named)
    can = task.name if task else "translate or summarize" if head == "lm" else "nothing of this kind"
    raise UserError(f"{model} ({', '.join(config.get('architectures') or [])}) does not {named}\n  it does {can}")


def changed(task: TaskConfig, changes: dict[str, Any]) -> TaskConfig:
    """Returns the section with what the command line says instead. Raises UserError for what the task does not have."""
    return build_recipe(type(task), task.model_dump() | changes, {}, where="command line")


def load_all(model: str, task: TaskConfig, allow_pickle: bool = False) -> list[Pretrained]:
    """Returns the model, or that of each seed of a run, to be asked together. Raises UserError where what they say has
    no mean, or some are still to be trained."""
    seeds = seeds_of(model)
    if not seeds:
        loaded = load(model, allow_pickle)
        if TASKS.get(task.name, Task).head == "lm" and loaded.config.stacks != "encoder":
            prepare(loaded.model, None, MAX_ROWS)  # it only writes from now on
        return [loaded]
    names = ", ".join(p.name for p in seeds)
    if task.name not in TASKS or not TASKS[task.name].averaged:
        raise UserError(
            f"{model}: a run for each of several seeds; only classify takes their mean\n  → name one: {names}"
        )
    done = sum(read_status(p).get("state") == "done" for p in seeds)
    if done < (wanted := recipe_of(Path(model)).seeds):
        raise UserError(
            f"{model}: {done} of {wanted} seeds are trained\n  → lmkit finetune --resume {model}, or name one: {names}"
        )
    return [load(folder, allow_pickle) for folder in seeds]


def trained_task(model: str | Path, loaded: Pretrained, config: TaskConfig) -> Task:
    """Returns the task that the model was fine-tuned for. Raises UserError for tasks without scores of their own."""
    if config.name not in TASKS:
        raise UserError(
            f"{model}: {config.name} has no scores but perplexity\n  → `lmkit eval` without --task gives its perplexity"
        )
    return TASKS[config.name].of_folder(config, loaded, settings_of(model))
