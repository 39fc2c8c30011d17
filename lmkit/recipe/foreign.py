"""Recipes of axolotl, LLaMA-Factory and transformers' Trainer, read as ones of lmkit: for `lmkit recipes import`."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lmkit.base.errors import UserError
from lmkit.base.units import brief
from lmkit.recipe.either import settle
from lmkit.recipe.foreign_keys import DEFAULTS, NAMES, RULES, TELLING, reason_of
from lmkit.recipe.recipe_file import MAX_BYTES, override, parse_yaml
from lmkit.recipe.tasks import SECTIONS
from lmkit.recipe.written import schema_line, written

OFF = ("none", "false", "", "0", "0.0", "-1", "no", "[]", "{}")  # values of settings that do nothing
ORDER = ("task", "model", "tokenizer", "data", "lora", "optimizer", "schedule", "train", "evaluate", "checkpoint",
         "tracker")  # fmt: skip
ALWAYS = "another setting decides, or it is so here anyway"
LEARNT = ("pt", "sft")  # stages of LLaMA-Factory that lmkit has


@dataclass
class Import:
    """One file on its way. given: each setting under the name that the tables have, with its own name and value."""

    tool: str
    given: dict[str, tuple[str, Any]]
    tree: dict[str, Any] = field(default_factory=dict)
    comments: dict[str, str] = field(default_factory=dict)  # what a key was called there
    left: list[tuple[str, Any, str]] = field(default_factory=list)  # not taken over: name, value, reason
    read: set[str] = field(default_factory=set)

    def get(self, name: str) -> Any:
        """Returns what the file says, else what its tool does by default; None where both are silent."""
        self.read.add(name)
        value = self.given.get(name, ("", None))[1]
        return DEFAULTS[self.tool].get(name) if value is None else value

    def number(self, name: str, usual: float = 0.0) -> float:
        """Returns a setting as a number; `usual` where there is none, or no number, which is then left."""
        value = self.get(name)
        try:
            return usual if value is None else float(value)
        except (TypeError, ValueError):
            self.leave(name, f"not a number; taken as {usual:g}")
            return usual

    def put(self, key: str, value: Any, *names: str) -> None:
        """Sets a key of the recipe. names: the settings that it comes from."""
        section, _, leaf = key.partition(".")
        if leaf:
            self.tree.setdefault(section, {})[leaf] = value
        else:
            self.tree[section] = value
        own = [self.given[name][0] for name in names if name in self.given]
        self.comments[key] = ", ".join(own) if own else f"the default of {self.tool}"

    def leave(self, name: str, reason: str) -> None:
        self.left.append((*self.given.get(name, (name, None)), reason))


def import_recipe(path: Path, changes: Sequence[str] = (), out: str = "FILE") -> tuple[str, Import]:
    """Returns the text of a recipe that trains as the file of the other tool does, and what came of each setting.

    changes: KEY=VALUE of the recipe, such as the files that the other one does not name. out: how the recipe will be
    called. Raises UserError for a file
    that cannot be read, for what lmkit does not learn, and where the recipe is not complete."""
    settings = _read(path)
    tool = _tool_of(settings)
    one = Import(tool, {})
    for name, value in settings.items():
        same = one.given.get(NAMES.get(name, name))
        if same is None or _is_off(same[1]):
            one.given[NAMES.get(name, name)] = (name, value)
        elif not _is_off(value):  # two names of one setting
            one.left.append((name, value, ALWAYS))
    one.given = {name: (own, value) for name, (own, value) in one.given.items() if value is not None}
    named = dict(change.partition("=")[::2] for change in changes)
    task = named.get("task") or _task(one)
    one.put("task.name", task, "stage", "datasets", "task_name")
    adapts = _adapts(one)
    _horizon(one)
    _data(one, path.parent)
    if one.get("wandb_project") and "report_to" not in one.given:
        one.put("tracker.name", "wandb", "wandb_project")
    for name, rule in RULES.items():
        _follow(one, name, rule.key, rule.read, adapts, task)
    for change in changes:
        if not change.startswith("task="):
            one.comments[override(one.tree, change)] = "command line"
    _leave_the_rest(one)
    tree = {key: one.tree[key] for key in ORDER if key in one.tree}
    missing = [
        f"{key}=…"
        for key, there in (("model", tree.get("model")), ("data.train", tree["data"].get("train")))
        if not there
    ]
    if missing:
        raise UserError(f"{path}: {tool}'s file does not say all\n  → lmkit recipes import {path} {' '.join(missing)}")
    settle(tree, {}, str(path))
    head = [
        f"# lmkit finetune {out}   made of {tool}'s {path.name}; the names there stand behind the keys",
        schema_line(),
    ]
    return written(tree, one.comments, head), one


def _leave_the_rest(one: Import) -> None:
    """Counts as left whatever does something there and nothing here."""
    counted = _taken(one) | {name for name, *_ in one.left}
    for name, (own, value) in sorted(one.given.items()):
        if own not in counted and not _is_off(value):
            one.leave(name, ALWAYS if name in one.read else reason_of(name))


def _taken(one: Import) -> set[str]:
    """Returns the names of the settings that stand behind keys of the recipe."""
    return _own_names(one) & {name for comment in one.comments.values() for name in comment.split(", ")}


def outcome_lines(one: Import) -> list[str]:
    """Returns what people should know of an import: what was taken over, and each setting that was not."""
    by_reason: dict[str, list[str]] = {}
    for name, value, reason in one.left:
        shown = "…" if name.endswith("_token") else brief(str(value))
        by_reason.setdefault(reason, []).append(f"{name} {shown}")
    lines = [f"a file of {one.tool}: {len(_taken(one))} settings taken over, {len(one.left)} not, besides what is off"]
    model = one.tree["model"]
    if isinstance(model, str) and not Path(model).exists():
        lines.append(f"{model}: no such folder yet\n  → hf download {model} --local-dir {model}")
    return lines + [f"not taken over: {', '.join(names)}\n  {reason}" for reason, names in by_reason.items()]


def _read(path: Path) -> dict[str, Any]:
    try:
        text = path.read_bytes()[:MAX_BYTES].decode("utf-8-sig")
        tree = json.loads(text) if path.suffix == ".json" else parse_yaml(text, str(path))
    except (OSError, ValueError) as e:
        raise UserError(f"{path}: cannot be read: {getattr(e, 'strerror', None) or e}") from None
    if not isinstance(tree, dict):
        raise UserError(f"{path}: holds no settings\n  → a file of axolotl, LLaMA-Factory or TrainingArguments")
    return tree


def _tool_of(settings: dict[str, Any]) -> str:
    if "base_model" in settings:
        return "axolotl"
    if settings.keys() & {"finetuning_type", "stage", "dataset_dir", "cutoff_len"}:
        return "LLaMA-Factory"
    if not settings.keys() & {*RULES, *NAMES}:
        raise UserError("no setting of axolotl, LLaMA-Factory or TrainingArguments is in this file")
    return "transformers"


def _task(one: Import) -> str:
    """Returns the task that a file is for. Raises UserError where it cannot be told, or lmkit does not learn it."""
    stage = one.get("stage") or one.get("rl") or one.get("reward_model")
    if stage and stage not in LEARNT:
        raise UserError(f"{stage}: lmkit learns from texts, labels and conversations, not from preferences")
    if one.tool == "LLaMA-Factory":
        return "lm" if stage == "pt" else "chat"
    if one.tool == "axolotl":
        types = {str(entry.get("type", "")) for entry in _entries(one)}
        return "lm" if types and all(kind.startswith(("completion", "pretrain")) for kind in types) else "chat"
    task_name = next((task for name, task in TELLING.items() if name in _own_names(one)), None)
    if task_name is None:
        raise UserError(f"the file does not say what is learnt\n  → add task=NAME: {', '.join(SECTIONS)}")
    return task_name


def _is_off(value: Any) -> bool:
    return str(value).lower() in OFF


def _own_names(one: Import) -> set[str]:
    return {own for own, _ in one.given.values()}


def _adapts(one: Import) -> bool:
    """Returns whether adapters are trained, whose section then exists."""
    kind = one.get("adapter") or one.get("finetuning_type") or "full"
    if kind in ("lora", "qlora"):
        one.put("lora", {}, "adapter", "finetuning_type")
        if kind == "qlora":
            one.leave("adapter", "weights are not quantised: lora")
        if one.tool == "LLaMA-Factory" and "lora_alpha" not in one.given:
            one.put("lora.alpha", 2 * one.number("lora_rank", 8))
        return True
    if kind != "full":
        one.leave("finetuning_type", "all weights are trained; `freeze:` names those that stay")
    return False


def _horizon(one: Import) -> None:
    """Sets what several settings say together: budget, batch, warm-up, betas, precision, and when to evaluate."""
    steps, epochs = one.number("max_steps", -1), one.number("num_train_epochs", 3)
    by_steps = steps > 0
    names = ("max_steps",) if by_steps else ("num_train_epochs",)
    one.put("train.budget", f"{int(steps)} steps" if by_steps else f"{epochs:g} epochs", *names)
    rows = one.number("per_device_train_batch_size", 8) * one.number("gradient_accumulation_steps", 1)
    one.put("train.batch", f"{rows:g} rows", "per_device_train_batch_size", "gradient_accumulation_steps")
    share, warmup = one.number("warmup_ratio"), one.number("warmup_steps")
    share = warmup if 0 < warmup < 1 else share
    warmup_text = f"{100 * share:g}%" if share and (warmup < 1) else f"{int(warmup)} steps"
    one.put("schedule.warmup", warmup_text, "warmup_ratio", "warmup_steps")
    betas = [one.number(name, usual) for name, usual in (("adam_beta1", 0.9), ("adam_beta2", 0.999))]
    one.put("optimizer.betas", betas, "adam_beta1", "adam_beta2")
    kinds = [kind for kind in ("bf16", "fp16") if str(one.get(kind)).lower() == "true"]
    if kinds:
        one.put("train.precision", kinds[0], kinds[0])
    for act, section in (("eval", "evaluate"), ("save", "checkpoint")):
        _every(one, act, section, None if by_steps else epochs)


def _every(one: Import, act: str, section: str, epochs: float | None) -> None:
    """Sets how often a run is evaluated, or saved. epochs: those of the run; None where it counts steps."""
    strategy, often = one.get(f"{act}_strategy"), one.number(f"{act}_steps")
    per_epoch = one.number(f"{act}s_per_epoch", 1.0 if strategy == "epoch" else 0.0)
    names = (f"{act}_strategy", f"{act}_steps", f"{act}s_per_epoch")
    if per_epoch and epochs:
        one.put(f"{section}.every", f"{100 / (epochs * per_epoch):.3g}%", *names)
    elif often and strategy not in ("no", "epoch"):
        interval = f"{100 * often:g}%" if often < 1 else f"{int(often)} steps"
        one.put(f"{section}.every", interval, *names)


def _follow(one: Import, name: str, key: str, read: Any, adapts: bool, task: str) -> None:
    """Takes one setting over by its rule, or says why not."""
    value = one.get(name)
    if value is None or value == [] or (name not in one.given and not adapts and key.startswith("lora.")):
        return
    if key.startswith("lora.") and not adapts:
        one.leave(name, "no adapters are trained")
    elif key.startswith("task.") and key.partition(".")[2] not in SECTIONS[task].model_fields:
        if not _is_off(value):
            one.leave(name, f"task {task} has no such setting")
    else:
        try:
            one.put(key, read(value), name)
        except (ValueError, TypeError) as e:
            one.leave(name, str(e))


# ---------------------------------------------------------------- data


def _entries(one: Import) -> list[dict[str, Any]]:
    """Returns axolotl's datasets."""
    listed = one.get("datasets") or one.get("pretraining_dataset") or []
    listed = listed if isinstance(listed, list) else [listed]
    usual = {"type": "completion"} if "pretraining_dataset" in one.given else {}
    return [usual | (entry if isinstance(entry, dict) else {"path": str(entry)}) for entry in listed]


def _data(one: Import, folder: Path) -> None:
    """Sets what is read, and the columns that are named."""
    one.tree["data"] = {}
    if one.tool == "axolotl":
        _axolotl_data(one)
    elif one.tool == "LLaMA-Factory":
        _factory_data(one, folder)
    elif one.get("train_file"):
        one.put("data.train", one.get("train_file"), "train_file")
    elif one.get("dataset_name") or one.get("task_name"):
        of_glue = one.get("dataset_name") is None
        parts = (
            ["nyu-mll/glue", one.get("task_name")]
            if of_glue
            else [one.get("dataset_name"), one.get("dataset_config_name")]
        )
        name = ":".join(["hub", *(str(part) for part in parts if part)])
        one.put("data.train", name, "dataset_name", "dataset_config_name", "task_name")
    languages = [(key, one.get(name)) for key, name in (("text", "source_lang"), ("target", "target_lang"))]
    for (key, language), name in zip(languages, ("source_lang", "target_lang"), strict=True):
        if language:
            one.put(f"data.{key}", str(language).partition("_")[0], name)  # as the scripts name the columns
            if "_" in str(language):
                one.put(f"task.{name}", language, name)


_FIELDS = {  # of a dataset of axolotl or a `columns` of LLaMA-Factory -> keys of `data`
    "field_messages": "text", "field": "text", "field_instruction": "text", "field_output": "target",
    "messages": "text", "prompt": "text", "response": "target",
}  # fmt: skip


def _axolotl_data(one: Import) -> None:
    sources = []
    for entry in _entries(one):
        custom = entry["type"] if isinstance(entry.get("type"), dict) else {}
        files = entry.get("data_files") or []
        files = files if isinstance(files, list) else [files]
        path = str(entry.get("path", ""))
        local = Path(path).suffix or path.startswith((".", "/")) or Path(path).exists()
        split = str(entry.get("split") or "train")
        subset = [str(entry.get("name") or "")] if entry.get("name") or split != "train" else []
        hub = ":".join(["hub", path, *subset, *([split] if split != "train" else [])])
        sources += files or [path if local else hub]
        for name, value in (entry | custom).items():
            if name in _FIELDS:
                one.put(f"data.{_FIELDS[name]}", value, "datasets")
            elif name not in ("path", "type", "data_files", "name", "split", "ds_type"):
                one.left.append((f"datasets.{name}", value, "the columns of chat are found by their common names"))
    if sources:
        one.put("data.train", sources[0] if len(sources) == 1 else sources, "datasets", "pretraining_dataset")
    tests = one.get("test_datasets") or []
    if tests:
        one.put(
            "data.validation", [str(entry.get("path")) for entry in tests if isinstance(entry, dict)], "test_datasets"
        )
        one.given.pop("val_size", None)


def _factory_data(one: Import, folder: Path) -> None:
    """Finds the datasets by name in dataset_info.json, as LLaMA-Factory does; else by the name of a file."""
    place = Path(str(one.get("dataset_dir") or "data"))
    beside = next((base / place for base in (folder, Path()) if (base / place / "dataset_info.json").is_file()), None)
    known = _read(beside / "dataset_info.json") if beside else {}
    names = one.get("dataset") or []
    sources = []
    for name in names.split(",") if isinstance(names, str) else names:
        entry = known.get(name.strip(), {})
        hub = entry.get("hf_hub_url")
        sources.append(f"hub:{hub}" if hub else str((beside or place) / entry.get("file_name", f"{name.strip()}.json")))
        if not entry:
            one.left.append(("dataset", name, f"no dataset_info.json in {place} names it: {sources[-1]} is assumed"))
        for column, value in entry.get("columns", {}).items():
            if column in _FIELDS:
                one.put(f"data.{_FIELDS[column]}", value, "dataset")
    if sources:
        one.put("data.train", sources[0] if len(sources) == 1 else sources, "dataset")
