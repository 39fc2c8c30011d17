"""A fine-tuning recipe and its tables -> a job for the loop, and the task that scores it."""

import json
import re
import shlex
import shutil
from dataclasses import dataclass, field, replace
from itertools import groupby
from pathlib import Path
from typing import Any

from lmkit.architecture.families import FAMILIES
from lmkit.architecture.model_config import ModelConfig
from lmkit.base import units
from lmkit.base.display import MarkedText, note
from lmkit.base.errors import DataError, ModelError, UserError
from lmkit.base.files import write_json
from lmkit.base.order import Mixture
from lmkit.base.runs import model_folder
from lmkit.base.units import brief, show_count, split_quantity
from lmkit.data.tables.columns import trained_columns
from lmkit.data.tables.splitting import limit, taken
from lmkit.data.tables.table import Table
from lmkit.data.tokens.cache import open_tokens
from lmkit.data.tokens.store import TokenStore
from lmkit.generation.rules import GENERATION_CONFIG, settings_on
from lmkit.model.formats.huggingface import adopt
from lmkit.model.heads import Head
from lmkit.model.initial import init_weights
from lmkit.model.lora import add_lora, freeze
from lmkit.model.resize import order_labels
from lmkit.model.transformer import Transformer
from lmkit.objectives.build import Work, mixture_of, starts
from lmkit.pretrained import BESIDE, copy_beside, load
from lmkit.recipe.finetuning import FinetuneRecipe, with_default_lr
from lmkit.recipe.objectives import default_objective
from lmkit.recipe.pretraining import DataConfig, EvaluateConfig, ModelSection, Recipe, TokenizerConfig, TrainConfig
from lmkit.recipe.task_settings import TaskSettings
from lmkit.recipe.tasks import TableConfig
from lmkit.tasks.table import TASKS
from lmkit.tasks.task import Reading, Task, texts
from lmkit.text.tokenizer import Tokenizer
from lmkit.text.tokenizer_files import load_tokenizer
from lmkit.text.training import train_tokenizer
from lmkit.training.checkpoints import Adapter
from lmkit.training.distributed.world import ALONE, World
from lmkit.training.job import (
    Job,
    build_job,
    build_pretraining,
    describe_machine,
    describe_model,
    fit_vocabulary,
    held_out_scores,
)


@dataclass
class Finetuning:
    """A job of fine-tuning, with what it is scored by."""

    job: Job
    task: Task
    train: Table
    held_out: Table
    cut: int  # training rows that are longer than the model reads
    new: list[str]  # parameters that the starting point did not have
    learnt: list[dict[str, Any]]  # the training rows as examples
    lengths: list[int]  # tokens of the training rows, of chat's conversations
    settings: TaskSettings  # which every checkpoint holds
    calibration: dict[str, float] = field(default_factory=dict)  # temperature, and ECE before; empty until it is done

    def rendered(self, number: int = 2) -> list[list[MarkedText]]:
        """Returns the first examples as the model reads them."""
        tokenizer, rows = self.job.tokenizer, self.job.work.rows
        shown = [rows[i] for i in range(min(number, len(rows)))]
        return [render(e, tokenizer, self.train.rows[e["row"]] if "row" in e else {}) for e in shown]


def render(example: dict[str, Any], tokenizer: Tokenizer, row: dict[str, Any], most: int = 60) -> list[MarkedText]:
    """Returns an example in pieces, each with whether it is learnt: at most `most` tokens of what is read and of what
    is to be said, of a conversation those around the first answer. row: its row of the table, where labels have names.
    """
    read = lambda ids: repr(tokenizer.decode([int(i) for i in ids], skip_special=False))[1:-1]
    if "tags" in row:
        tagged = zip(row["words"][:most], row["tags"], strict=False)
        return [piece for word, tag in tagged for piece in ((f" {word}/", False), (str(tag), True))]
    if "target" in example:
        return [(read(example["source"][:most]) + " → ", False), (read(example["target"][:most]), True)]
    tokens = example["tokens"][:most]
    if "labels" not in example or len(example["labels"]) != len(example["tokens"]):
        answer = row.get("label")
        if "span" in example:
            first, last = example["span"]
            answer = read(example["tokens"][first : last + 1]) if example["inside"][first] else "no answer here"
        return [(read(tokens) + " → ", False), (str(answer), True)]
    tokens = example["tokens"]
    learnt = [i > 0 and example["labels"][i - 1] == token for i, token in enumerate(tokens)]
    start = max(0, learnt.index(True) - most * 3 // 4) if True in learnt else 0
    parts = groupby(range(start, min(start + most, len(tokens))), key=lambda i: learnt[i])
    pieces = [(read(tokens[i] for i in group), marked) for marked, group in parts]
    return [("…", False), *pieces] if start else pieces


def build_finetuning(
    recipe: FinetuneRecipe, train: Table, held_out: Table, folder: Path, world: World = ALONE
) -> Finetuning:
    """Builds the job of fine-tuning. folder: where the tokenizer is kept, in `tokenizer`. Raises UserError, DataError
    and ModelError."""
    source, before, tokenizer = _start(recipe, train, folder)
    start = starts(before.family, tokenizer)[0] if before.stacks == "encoder_decoder" else None
    reading = Reading(tokenizer, before, recipe.data.max_length, start, folder / "tokenizer")
    task = TASKS[recipe.task.name].for_training(recipe.task, train, reading)
    model, new = _with_head(source, before, task, recipe.train.seed)
    if message := task.settle_head(model, train, fresh=model is not source):
        note(message)
    settings = _write_settings(recipe, task, train, folder / "tokenizer")
    adapter = adapt(model, recipe, str(recipe.model))
    some = limit(held_out, recipe.evaluate.rows, seed=0)
    rows, mixture = _examples(task, train, recipe.data)
    try:
        held = task.examples(some)
    except DataError as e:  # that rows held out cannot be read, as by a chat template, is no reason not to learn
        note(f"nothing is held out: {e}")
        held_out = some = replace(held_out, rows=[], places=[])
        held = []
    if not rows:
        raise DataError(f"none of the {len(train.rows):,} training rows can be learnt\n  → a larger data.max_length")
    some_rows = rows[:: max(1, len(rows) // 1000)]
    mean = (
        task.objective.length(rows[0]) if task.packed else task.objective.collate(some_rows).num_tokens / len(some_rows)
    )
    lengths = [n for e in rows for n in e.get("lengths", [task.objective.length(e)])]
    work = Work(task.objective, rows, task.objective, held, mean, "", mixture=mixture)
    recipe = with_default_lr(recipe, model.config.hidden_size)
    job = build_job(
        recipe, model, work, _batch_rows(recipe.train.batch, mean, len(rows)), tokenizer,
        folder / "tokenizer", static=False, world=world, ragged=not task.packed,
    )  # fmt: skip
    job.special |= task.config_json()
    if task.head == "sequence" and job.special["pad_token_id"] is None:  # by it transformers finds a row's last token
        job.special["pad_token_id"] = job.special["eos_token_id"]
    job.adapter = adapter
    job.metric, job.higher, job.patience = f"val_{task.metric}", task.higher, recipe.train.patience
    job.share_of = len(some.rows) if task.counts_rows and task.metric == "accuracy" else 0

    def solved() -> dict[str, float]:
        outputs = task.outputs(job.model, some, held, quick=True)
        return {f"val_{k}": e.value for k, e in task.scores(some, outputs, False).items()}

    def score() -> dict[str, float]:
        scores = held_out_scores(job, len(held)) if task.likelihood else {}
        return scores | job.parallel.by_first(solved)

    job.score, job.scored_rows = score, len(held)
    beam = getattr(recipe.task, "beam", 1)  # takes about as many times as long as the greedy search of evaluations
    job.closing = beam * len(held_out.rows) / max(len(some.rows), 1)
    cut = len({e["row"] for e in rows if e["cut"]})
    return Finetuning(job, task, train, held_out, cut, new, rows, lengths, settings)


def _write_settings(recipe: FinetuneRecipe, task: Task, train: Table, folder: Path) -> TaskSettings:
    """Writes what checkpoints say of the task, beside the tokenizer, and returns it."""
    columns = trained_columns(recipe.task.name, recipe.data, train.columns)
    words = "punctuation" if {"text", "words"} <= train.rows[0].keys() else recipe.data.words
    settings = TaskSettings.of_recipe(
        recipe, task=task.settled(recipe.task), max_length=task.max_length, columns=columns, words=words
    )
    settings.write(folder)
    if generation_config := task.generation_config():
        write_json(folder / GENERATION_CONFIG, generation_config)
    return settings


def _examples(task: Task, train: Table, data: TableConfig) -> tuple[list[dict[str, Any]], Mixture | None]:
    """Returns the examples of the training rows, one source after the other where these have weights, and how they are
    mixed. Raises DataError for a source without examples."""
    if not data.weights:
        return task.examples(train), None
    parts = []
    for number in range(len(data.sources)):
        rows = [i for i, place in enumerate(train.places) if train.origins[place] == number]
        examples = task.examples(taken(train, rows, train.problems)) if rows else []
        for example in examples:  # name their rows by the numbers that these have in the whole table
            example["row"] = rows[example["row"]]
            example["documents"] = [rows[i] for i in example.get("documents", ())]
        parts.append(examples)
    return [example for part in parts for example in part], mixture_of([len(part) for part in parts], data)


def adapt(model: Transformer, recipe: FinetuneRecipe, base: str) -> Adapter | None:
    """Gives the model the adapter that the recipe asks for, and freezes what it names, in place. Returns the adapter,
    None where all weights are trained. base: the folder of the model that it changes."""
    adapter = None
    if recipe.lora:
        add_lora(model, recipe.lora, recipe.train.seed)
        adapter = Adapter(recipe.lora, base)
    if recipe.freeze:
        freeze(model, recipe.freeze)
    return adapter


def _start(recipe: FinetuneRecipe, train: Table, folder: Path) -> tuple[Transformer | None, ModelConfig, Tokenizer]:
    """Returns the model to start from, None for a new one, its axes, and its tokenizer, which is written to the run."""
    kept, task = folder / "tokenizer", TASKS[recipe.task.name]
    if isinstance(recipe.model, str):
        origin = model_folder(recipe.model)
        loaded = load(origin, device="cpu")  # with its adapters, if it is a folder of those
        source, tokenizer = loaded.model, loaded.needs_tokenizer()
        kept.mkdir(parents=True, exist_ok=True)
        copy_beside(loaded.homes, kept)
        if task.writing_keys and (rules := settings_on(loaded.writing_settings, task.writing_keys)):
            note(f"{origin}: of its {GENERATION_CONFIG} is not taken over: {', '.join(rules)}")
        own, tokenizer = tokenizer, task.settle_tokenizer(recipe.task, source.config, origin, tokenizer, kept)
        if recipe.lora and tokenizer is not own:
            raise UserError(
                "lora leaves embeddings as they are, so control tokens that are new could not be learnt\n"
                "  → leave out lora, or take a model or a task.template that needs no new ones"
            )
        source = task.with_rows(source, own, tokenizer)
        labels = source.config.labels if source.config.head == task.head else ()
        source.config = source.config.model_copy(update={"labels": task.label_names(recipe.task, labels)})
        tokenizer.save(kept, source.config.context)
        return source, source.config, tokenizer
    task.label_names(recipe.task, ())
    if recipe.tokenizer.path is not None:
        tokenizer = load_tokenizer(recipe.tokenizer.path)
    elif (kept / "tokenizer.json").is_file():  # a run that goes on
        tokenizer = load_tokenizer(kept)
    else:
        tokenizer = train_tokenizer(texts(train), recipe.tokenizer, recipe.model.family)
    home = None if recipe.tokenizer.path is None else Path(recipe.tokenizer.path)
    tokenizer = task.settle_tokenizer(recipe.task, recipe.model, home, tokenizer, kept)
    tokenizer.save(kept, recipe.model.context)
    return None, fit_vocabulary(recipe.model, tokenizer), tokenizer


def _with_head(source: Transformer | None, before: ModelConfig, task: Task, seed: int) -> tuple[Transformer, list[str]]:
    """Returns a model with the head that the task needs, and the names of its new parameters. Each label's part of the
    start's own head is taken over by its name; a head for other labels is new.

    Raises ModelError for a family that has none."""
    if task.head not in before.table.heads:
        others = ", ".join(name for name, family in FAMILIES.items() if task.head in family.heads)
        raise ModelError(f"{before.family} has no head for {task.head_is_for}\n  → start from one of: {others}")
    same_head = source is not None and source.config.head == task.head
    if source is not None and same_head and set(source.config.labels) == set(task.labels):
        return order_labels(source, task.labels).train(), []
    changes: dict[str, Any] = {"head": task.head, "labels": task.labels}
    if before.table.heads[task.head].encoder_only:  # T5's tagger leaves the decoder out
        changes |= {"stacks": "encoder", "num_decoder_layers": 0}
    model = Transformer(before.model_copy(update=changes))
    init_weights(model, seed)
    if source is None:
        return model, []
    if same_head and source.config.labels:
        note(
            f"a new head: the labels ({_listed(task.labels)}) are not those of the start"
            f" ({_listed(source.config.labels)}){_renaming(source.config.labels, task)}"
        )
    return model, adopt(model, source, new=("head.output.",))


def _renaming(theirs: tuple[str, ...], task: Task) -> str:
    """Returns how to go on with a head whose labels most likely have other names only: they differ in case or spaces,
    or are as many and name nothing; "" for any other head."""
    folded = {"".join(label.casefold().split()): label for label in task.labels}
    named = {old: folded.get("".join(old.casefold().split()), "") for old in theirs}
    if all(re.fullmatch(r"LABEL_\d+", old) for old in theirs):
        named = dict(zip(theirs, task.labels, strict=False))
    if task.head != "sequence" or sorted(named.values()) != sorted(task.labels):
        return ""
    tree = json.dumps({old: new for old, new in named.items() if old != new}, ensure_ascii=False)
    return f"\n  → if they mean the same, one by one, the head goes on with {shlex.quote(f'task.labels={tree}')}"


def _listed(labels: tuple[str, ...], most: int = 6) -> str:
    more = f", and {len(labels) - most:,} more" if len(labels) > most else ""
    return ", ".join(map(brief, labels[:most])) + more


def _batch_rows(batch: str, mean_tokens: float, rows: int) -> int:
    """Returns the rows of an optimizer step; all rows, which is said, where there are fewer."""
    number, unit = units.split_quantity(batch)
    wanted = max(1, round(number / mean_tokens)) if unit == "token" else int(number)
    if wanted > rows:
        note(f"train.batch {batch}: all there is, {rows:,} rows of {mean_tokens:,.0f} tokens, is one step")
    return min(wanted, rows)


def describe_finetuning(f: Finetuning) -> list[str]:
    """Returns what was inferred, a line each."""
    job, train = f.job, f.job.recipe.train
    total = sum(p.numel() for p in job.model.parameters())
    trained = sum(p.numel() for p in job.model.parameters() if p.requires_grad)
    steps = f"{job.horizon.steps:,} steps" if job.horizon.steps is not None else "steps"
    packed = "packed " if f.task.packed else ""
    lines = [
        describe_model(job),
        f"train    {steps} of {job.batch_rows} {packed}rows, {round(job.batch_rows * job.work.row_tokens):,} tokens"
        f" · {train.budget} · {job.recipe.optimizer.name}"
        f" · peak lr {job.recipe.optimizer.lr:.3g} · {job.recipe.schedule.name}"
        f" · {show_count(trained)} of {show_count(total)} parameters train ({trained / total:.1%})",
        describe_machine(job, -(-round(job.batch_rows * job.work.row_tokens) // train.micro_batch)),
    ]
    if f.new:
        lines.append(f"new      {', '.join(f.new)}")
    return lines


MOST_TOKENS = 1024  # of a row, unless `data.max_length` says otherwise


def build_continued(recipe: FinetuneRecipe, folder: Path, world: World) -> tuple[Job, TokenStore]:
    """Builds the job of continued pretraining. folder: where what checkpoints hold beside the weights is kept, in
    `tokenizer`. Raises ModelError for a model that predicts no words, and what `build_pretraining` raises."""
    assert isinstance(recipe.model, str), "`task: lm` from scratch is `lmkit pretrain`"
    loaded = load(recipe.model, device="cpu")
    origin, model = loaded.folder, loaded.model
    c = model.config
    if not isinstance(model.head, Head):
        raise ModelError(f"{origin} is a {c.spec.cls}: it has no head for words to go on with")
    if c.head == "pairs":
        note(f"{origin} is a {c.spec.cls}: its head for pairs of texts is left out, words alone are learnt")
        c = c.model_copy(update={"head": "lm"})
        model.config, model.pairs = c, None
    if default_objective(c.family) == "seq2seq":
        raise ModelError(f"{origin}: a {c.family} learns from pairs of texts\n  → --task translate or summarize")
    recipe = with_default_lr(recipe, c.hidden_size)
    data = DataConfig(
        train=recipe.data.train, validation=recipe.data.validation, text=recipe.data.text or "text",
        separator=recipe.data.separator, encoding=recipe.data.encoding, text_files=recipe.data.text_files,
        weights=recipe.data.weights,
    )  # fmt: skip
    with world.first_alone():
        store = open_tokens(data, TokenizerConfig(path=str(loaded.tokenizer_folder)), c.family, verify=world.first)
    pretraining = _as_pretraining(recipe, ModelSection(**c.model_dump()), data)
    adapter = adapt(model, recipe, str(origin))
    job = build_pretraining(pretraining, store, model.train(), world)
    job.adapter, job.patience = adapter, recipe.train.patience
    if world.first:
        job.tokenizer_folder = folder / "tokenizer"
        shutil.copytree(store.tokenizer_path, job.tokenizer_folder, dirs_exist_ok=True)
        copy_beside(loaded.homes, job.tokenizer_folder, (*BESIDE, GENERATION_CONFIG))
        TaskSettings.of_recipe(recipe).write(job.tokenizer_folder)
    # the run is one of fine-tuning: its recipe is what it was asked for, with what was settled on the way
    settled = recipe.train.model_copy(update={k: getattr(job.recipe.train, k) for k in ("micro_batch", "compile")})
    job.recipe = recipe.model_copy(update={"train": settled})
    return job, store


def _as_pretraining(recipe: FinetuneRecipe, model: ModelSection, data: DataConfig) -> Recipe:
    """Returns the recipe of pretraining that reads and scores the same way. Rows fill the context; a batch is whole
    rows."""
    context = min(model.context, recipe.data.max_length or MOST_TOKENS)
    number, unit = split_quantity(recipe.train.batch)
    rows = max(1, round(number / context)) if unit == "token" else int(number)
    train = TrainConfig(**recipe.train.model_dump(exclude={"patience"}) | {"batch": rows * context})
    task: Any = {"name": default_objective(model.family)}
    return Recipe(
        task=task,
        model=model.model_copy(update={"context": context}),
        data=data,
        optimizer=recipe.optimizer,
        schedule=recipe.schedule,
        train=train,
        checkpoint=recipe.checkpoint,
        parallel=recipe.parallel,
        evaluate=EvaluateConfig(every=recipe.evaluate.every),
    )
