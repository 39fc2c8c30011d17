"""`lmkit init`: a recipe for the data and the goal of a person, with comments that say why. No torch here."""

import os
from collections import Counter
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from lmkit.architecture.sizes import PRESETS
from lmkit.base.errors import UserError, did_you_mean
from lmkit.base.units import brief, show_bytes, show_count
from lmkit.data.documents import read_documents
from lmkit.data.inputs import Input, Pairing, Problems, list_inputs
from lmkit.data.lines import read_bytes
from lmkit.data.tables.report import MOSTLY, UNEVEN
from lmkit.data.tables.table import Table, read_table
from lmkit.data.tables.task_tables import TABLES
from lmkit.data.tokens.store import is_store
from lmkit.ops.recipe_facts import parameters_of, rough_seconds, said_time
from lmkit.recipe.either import settle
from lmkit.recipe.pretraining import DataConfig
from lmkit.recipe.tasks import TableConfig
from lmkit.recipe.written import schema_line, written

CHARACTERS = 4  # of a token, roughly
LOOKED_AT = 200  # documents that are read of a corpus
SEPARATORS = ("<|endoftext|>", "\n\f\n")  # that end a document inside files of text

Section = dict[str, Any]
_READER: Section = {"family": "modernbert", "hidden_size": 128, "num_layers": 4, "num_heads": 4}
_TRANSLATOR: Section = {"family": "transformer", "hidden_size": 192, "num_layers": 3, "num_heads": 3, "dropout": 0.1}
_WRITER: Section = {"family": "llama", "hidden_size": 128, "num_layers": 4, "num_heads": 2, "tied": True}
WRITER_RATES = {"lr": 0.01, "embedding_lr": 0.01, "head_lr": 0.005}  # of the recipe llama-tiny, which has this size


class Goal(NamedTuple):
    task: str  # of fine-tuning; "": pretraining
    meaning: str  # for the question
    size: Section | None  # of a new model; None: it goes on with a trained one


GOALS = {
    "pretrain": Goal("", "a new model, from text alone", _WRITER),
    "continue": Goal("lm", "a trained model learns other text", None),
    "classify": Goal("classify", "label whole texts, or pairs of texts", _READER),
    "tag": Goal("tag", "label the words of texts", _READER),
    "qa": Goal("qa", "find the answer to a question in a text", _READER),
    "translate": Goal("translate", "write the translation of a text", _TRANSLATOR),
    "summarize": Goal("summarize", "write the summary of a text", _TRANSLATOR),
    "chat": Goal("chat", "answer in conversations", _WRITER),
}


@dataclass(frozen=True)
class Wish:
    """What a person asks for. columns: those that they name, by key of `data`."""

    goal: str
    data: list[str]
    out: Path
    model: str | None = None
    budget: str | None = None
    columns: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Seen:
    """What the data looks like. tokens, rows: 0 where they are not known; columns: by key of `data`."""

    summary: str
    tokens: float = 0.0
    rows: int = 0
    length: int = 0  # tokens of a long row
    columns: dict[str, str] = field(default_factory=dict)
    separator: str | None = None
    uneven: bool = False
    few: bool = False  # documents, which are held out by chance: a small share might be none


def check_goal(goal: str) -> Goal:
    """Returns the goal of a name. Raises UserError."""
    if goal not in GOALS:
        raise UserError(f"--goal {goal}: not known{did_you_mean(goal, GOALS)}")
    return GOALS[goal]


def look(wish: Wish) -> Seen:
    """Looks at the data. Raises DataError where it cannot be read for this goal, with the option that helps."""
    task = check_goal(wish.goal).task
    if any(name.startswith("hub:") for name in wish.data):
        return Seen("a dataset of the hub, which is fetched when training starts", columns=wish.columns)
    if task in ("", "lm"):
        return _look_at_text(wish)
    table = read_table(wish.data, task, TableConfig.model_validate({"train": wish.data, **wish.columns}))
    return _of_table(table, task, wish.columns)


def _look_at_text(wish: Wish) -> Seen:
    if len(wish.data) == 1 and is_store(wish.data[0]):
        return Seen("a folder of tokens", columns=wish.columns)
    config = DataConfig.model_validate({"train": wish.data, **wish.columns})
    pairing = Pairing(config.text, config.target) if config.target else None
    inputs = list_inputs(wish.data, pairing, config)
    size = sum(file.size for item in inputs for file in item.files)
    separator = next((s for item in inputs if item.kind == "txt" and (s := _separator(item))), None)
    config = config.model_copy(update={"separator": separator})
    few = False
    if pairing is None:  # a column that is missing is told now
        seen = sum(len(list(islice(read_documents(item, config, Problems()), LOOKED_AT))) for item in inputs)
        few = seen < LOOKED_AT and (separator is not None or inputs[0].kind != "txt")
    kinds = ", ".join(f"{n} {kind}" for kind, n in Counter(item.kind for item in inputs).items())
    tokens = size / CHARACTERS
    summary = f"{show_bytes(size)} in files: {kinds}; about {show_count(tokens)} tokens"
    return Seen(summary, tokens, columns=wish.columns, separator=separator, few=few)


def _separator(item: Input) -> str | None:
    start = next(iter(read_bytes(item)), b"").decode("utf-8", "replace")
    return next((separator for separator in SEPARATORS if separator in start), None)


def _of_table(table: Table, task: str, named: dict[str, str]) -> Seen:
    keys = {role.name: role.key for role in (*TABLES[task].roles, *TABLES[task].messages) if role.key}
    columns = {keys[role]: name for role, name in table.columns.items() if role in keys and ", " not in name}
    lengths = sorted(_characters(row) / CHARACTERS for row in table.rows)
    summary, uneven = f"{len(table.rows):,} rows ({table.format})", False
    labels = [row.get("label") for row in table.rows] if task == "classify" else []
    if labels and isinstance(labels[0], float):
        summary += "; the labels are numbers"
    elif labels:
        counts = Counter(label for each in labels for label in (each if isinstance(each, list) else [str(each)]))
        largest, number = counts.most_common(1)[0]
        share = number / len(labels)
        uneven = not isinstance(labels[0], list) and share > min(UNEVEN / len(counts), MOSTLY)
        summary += f"; {len(counts):,} classes, the largest is {brief(largest)} with {share:.0%}"
    if table.problems.counts:
        summary += f"; {sum(table.problems.counts.values()):,} left out: `lmkit finetune --dry-run` says why"
    length = int(lengths[int((len(lengths) - 1) * 0.95)])
    return Seen(summary, sum(lengths), len(lengths), length, columns | named, uneven=uneven)


def _characters(value: Any) -> int:
    """Returns the characters of all texts in a row."""
    if isinstance(value, dict):
        return sum(map(_characters, value.values()))
    if isinstance(value, list):
        return sum(map(_characters, value))
    return len(value) if isinstance(value, str) else 0


# ---------------------------------------------------------------- the recipe


def draft(wish: Wish, seen: Seen) -> str:
    """Returns the text of the recipe, which is checked. Raises UserError for what cannot be wished."""
    goal = check_goal(wish.goal)
    tree, comments = _pretraining(wish, goal, seen) if not goal.task else _finetuning(wish, goal, seen)
    recipe = settle(tree, {}, "the recipe that would be written")
    duration = rough_seconds(recipe, parameters := parameters_of(recipe), seen.tokens, seen.rows)
    cost = f"roughly {said_time(duration)} on this CPU" if duration else "--dry-run tells the cost"
    size = f", {show_count(parameters)} parameters" if parameters else ""
    verb = "finetune" if goal.task else "pretrain"
    tree["data"]["train"] = _beside(tree["data"]["train"], wish.out.parent)
    if isinstance(tree["model"], str):
        tree["model"] = _beside(tree["model"], wish.out.parent)
    head = [f"# lmkit {verb} {wish.out}   {cost}{size}", schema_line(), f"# The data: {seen.summary}."]
    return written(tree, comments, head)


def _beside(name: Any, folder: Path) -> Any:
    """Returns the name of a file, or of several, as it is called from the folder of the recipe."""
    if isinstance(name, list):
        return [_beside(one, folder) for one in name]
    return name if name.startswith("hub:") or os.path.isabs(name) else os.path.relpath(name, folder)


def _data(wish: Wish, seen: Seen, validation: str) -> Section:
    source = wish.data[0] if len(wish.data) == 1 else wish.data
    validation = "20%" if seen.few else validation
    return {"train": source, "validation": validation, **seen.columns} | (
        {"separator": seen.separator} if seen.separator else {}
    )


def _pretraining(wish: Wish, goal: Goal, seen: Seen) -> tuple[Section, dict[str, str]]:
    if wish.model is not None and wish.model not in PRESETS:
        raise UserError(
            f"--model {wish.model}: pretraining makes a new model, of a published size"
            f"{did_you_mean(wish.model, PRESETS)}\n  → lmkit recipes families; --goal continue trains a model further"
        )
    store = len(wish.data) == 1 and is_store(wish.data[0])
    own = {
        "model": {**(goal.size or {}), "context": 256},
        "optimizer": dict(WRITER_RATES),
        "schedule": {"warmup": "5%"},
    }
    sized = {"model": {"preset": wish.model, "vocab_size": 0}}
    tree: Section = sized if wish.model else own
    tree |= {
        **({} if store else {"tokenizer": {"vocab_size": 4096}}),
        "data": _data(wish, seen, "5%"),
        "train": {"budget": wish.budget or "10 min"} | ({} if wish.model else {"batch": "2048 tokens"}),
        "evaluate": {"every": "10%"},
        "checkpoint": {"every": "10%", "keep": 2},
    }
    order = ("model", "tokenizer", "data", "optimizer", "schedule", "train", "evaluate", "checkpoint")
    comments = {
        "model": "a published size" if wish.model else "small enough to learn something in minutes on a CPU",
        "tokenizer": "small models on a CPU want 2k-8k: the head dominates",
        "data.validation": "held out, so that the loss is of text that it has not learnt from",
        "data.separator": "ends a document inside the files",
        "optimizer": "measured for this size; leave these out for a larger one, and they follow from it",
        "train.budget": "or steps, tokens, epochs; a time ends, fully decayed, inside it",
        "checkpoint": "a killed run goes on from the newest: lmkit pretrain --resume RUN",
    }
    return {key: tree[key] for key in order if key in tree}, comments


def _finetuning(wish: Wish, goal: Goal, seen: Seen) -> tuple[Section, dict[str, str]]:
    if wish.model is None and goal.size is None:
        raise UserError(f"{wish.goal} goes on with a trained model\n  → --model RUN, or a Hugging Face folder")
    new = wish.model is None
    context = min(512, max(64, -(-seen.length // 64) * 64))
    task: Section = {"name": goal.task} | ({"class_weights": True} if seen.uneven else {})
    tree: Section = {"task": task, "model": {**(goal.size or {}), "context": context} if new else wish.model}
    if new:
        tree["tokenizer"] = {"vocab_size": 4096}
    tree["data"] = _data(wish, seen, "5%" if goal.task == "lm" else "10%")
    tree["train"] = {"budget": wish.budget or ("1 epoch" if goal.task == "lm" else "10 epochs" if new else "3 epochs")}
    tree |= {"evaluate": {"every": "20%"}, "checkpoint": {"every": "20%", "keep": 2}}
    comments = {
        "task": "rare classes weigh as much as common ones" if seen.uneven else "",
        "model": "a new, small one that knows these rows alone; --model starts from a trained one" if new
        else "what it has learnt is where this begins; add `lora: {rank: 16}` to train less of it",
        "data.validation": "held out, so that the scores are of rows that it has not learnt from",
        "data.separator": "ends a document inside the files",
        "train.budget": "scores that still rise at the end ask for more, scores that fall for less",
        "evaluate": "the best checkpoint is kept, by these scores",
        "checkpoint": "a killed run goes on from the newest: lmkit finetune --resume RUN",
    }  # fmt: skip
    return tree, {key: comment for key, comment in comments.items() if comment}
