"""The model card of a folder: README.md, as the hub shows it, made of what a run recorded."""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from lmkit.architecture.model_config import ModelConfig
from lmkit.base.environment import read_environment
from lmkit.base.files import write_atomic, write_json
from lmkit.base.runs import ADAPTER_CONFIG
from lmkit.model.transformer import Transformer
from lmkit.recipe.finetuning import FinetuneRecipe
from lmkit.recipe.pretraining import Recipe
from lmkit.recipe.recipe_file import as_tree

CARD = "README.md"
WEIGHTS = (".safetensors", ".bin", ".gguf")  # of the model that fine-tuning starts from, among the files that were read
USE = "\n## Use\n"
LIMITS = "\n## Limits\n"
CHECKS = "checks.json"  # of a run: the lines of its checks, which its next card has too
MOST_FILES = 20  # that are named
ABSOLUTE = re.compile(r"""(?m)(^|[\s'"])/(?:[^'"\n/]+/)+""")  # the folders of a path
PIPELINES = {"sequence": "text-classification", "token": "token-classification", "span": "question-answering",
             "none": "feature-extraction"}  # fmt: skip
WRITERS = {"decoder": "text-generation", "encoder": "fill-mask"}
TASKS = {"translate": "translation", "summarize": "summarization"}


def model_card(
    model: Transformer, name: str, uses: Sequence[str], sections: Mapping[str, Sequence[str]] = {},
    task: str = "", base: str | None = None,
) -> str:  # fmt: skip
    """Returns the text of a card. sections: their lines by heading; uses: how the folder is loaded, a line each; base:
    the model that this one was fine-tuned from."""
    c = model.config
    pipeline = TASKS.get(task) or (WRITERS.get(c.stacks) if c.head in ("lm", "pairs") else PIPELINES[c.head])
    data: dict[str, Any] = {"library_name": "transformers", "pipeline_tag": pipeline, "base_model": base}
    header = {key: value for key, value in data.items() if value} | {"tags": ["lmkit", c.family]}
    context = "" if c.positions == "relative" else f" and a context of {c.context:,} tokens"
    what = f"A {c.spec.cls} of {sum(model.num_parameters().values()):,} parameters{context}, written by lmkit."
    body = [f"# {name}", what]
    body += [f"## {heading}\n\n" + "\n".join(lines) for heading, lines in sections.items() if lines]
    front = yaml.safe_dump(header, sort_keys=False, allow_unicode=True)
    return f"---\n{front}---\n\n" + "\n\n".join(body) + "\n" + _use(uses)


def exported_card(model: Transformer, origin: Path, name: str, uses: Sequence[str]) -> str:
    """Returns the card of an export: that of the folder `origin`, if lmkit wrote it, with other ways to load it."""
    file = origin / CARD
    own = file.read_text(encoding="utf-8") if file.is_file() else ""
    if own.startswith("---\n") and "\n- lmkit\n" in own.partition("\n---\n")[0]:
        return own.partition(USE)[0] + _use(uses)
    return model_card(model, Path(name).name, uses)


def write_limit(folder: Path, check: str, summary: str) -> Path:
    """Writes the summary of a check into the section Limits of a folder's card, in the place of an earlier one of the
    same check; makes the section, and the card, where there is none. Of a checkpoint of a run the line names it, and
    the run's later cards keep the line. Returns the card's path."""
    file, begin = folder / CARD, f"- `lmkit check --{check}`: "
    checkpoint = folder.resolve()
    run, line = checkpoint.parent.parent, begin + summary
    if checkpoint.parent.name == "checkpoints" and (run / "recipe.yaml").is_file():
        line += f" ({checkpoint.name})"
        write_json(run / CHECKS, _checks(run) | {check: line})
    card = file.read_text(encoding="utf-8") if file.is_file() else f"# {folder.resolve().name}\n"
    if LIMITS not in card:
        before, use, after = card.partition(USE)
        card = f"{before.rstrip()}\n{LIMITS}\n{use}{after}"
    before, _, after = card.partition(LIMITS)
    section, heading, rest = after.partition("\n## ")
    lines = [other for other in section.strip().splitlines() if not other.startswith(begin)]
    section = "\n".join([*lines, line])
    write_atomic(file, f"{before}{LIMITS}\n{section}\n{heading}{rest}")
    return file


def _checks(run: Path) -> dict[str, str]:
    file = run / CHECKS
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}


def folder_uses(c: ModelConfig, task: str, folder: Path | str) -> list[str]:
    """Returns lines of Python and shell that load a folder, which the card calls FOLDER."""
    if (Path(folder) / ADAPTER_CONFIG).exists():
        uses = ["lmkit export FOLDER MERGED --merge"]
    else:
        uses = [f"from transformers import AutoTokenizer, {c.spec.cls}",
                f'model = {c.spec.cls}.from_pretrained("FOLDER")',
                'tokenizer = AutoTokenizer.from_pretrained("FOLDER")']  # fmt: skip
    labels = c.head not in ("lm", "pairs") or task in TASKS
    verb = "predict" if labels else "fill" if c.stacks == "encoder" else "chat" if task == "chat" else "generate"
    return [*uses, f"lmkit {verb} FOLDER{' --data FILE' if labels else ''}"]


def _use(uses: Sequence[str]) -> str:
    return USE + "\n" + "\n".join(f"    {use}" for use in uses) + "\n"


# ---------------------------------------------------------------- of a run


def write_card(
    run: Path, model: Transformer, recipe: Recipe | FinetuneRecipe, learnt: Sequence[str],
    best: Mapping[str, Mapping[str, Any]],
) -> None:  # fmt: skip
    """Writes README.md into the folder of the model that a run made. A resume that ends alike writes the same bytes.

    learnt: lines on how much was read; best: scores where the run has no scores.json."""
    folder = run / ("best" if (run / "best").exists() else "latest")
    file = run / "scores.json"
    scores = json.loads(file.read_text(encoding="utf-8"))["scores"] if file.is_file() else best
    tuned = recipe.model if isinstance(recipe, FinetuneRecipe) and isinstance(recipe.model, str) else None
    base, task = _shown(tuned) if tuned else None, recipe.task.name
    files = [file for file in read_environment(run).get("files", []) if Path(file["path"]).suffix not in WEIGHTS]
    data = [f"- `{_shown(file['path'])}`, {file['bytes'] or 0:,} bytes".replace(", 0 bytes", "") for file in files]
    data[MOST_FILES:] = [f"- and {len(data) - MOST_FILES:,} more files"] if len(data) > MOST_FILES else []
    verb = "finetune" if isinstance(recipe, FinetuneRecipe) else "pretrain"
    tree = recipe.model_dump(mode="json", by_alias=True, exclude_defaults=True) | {"task": as_tree(recipe.task)}
    keys = ABSOLUTE.sub(r"\1", yaml.safe_dump(tree, sort_keys=False, allow_unicode=True, width=1000))
    sections = {
        "Data": [*data, *(ABSOLUTE.sub(r"\1", line) for line in learnt)],
        "Recipe": [f"`lmkit {verb} recipe.yaml`, where recipe.yaml holds:", "", f"```yaml\n{keys}```"],
        "Scores": _table(scores),
        "Limits": [*_limits(model.config, bool(scores), base), *_checks(run).values()],
    }
    name = f"{model.config.spec.cls}, {task.replace('_', ' ')}"
    write_atomic(folder / CARD, model_card(model, name, folder_uses(model.config, task, folder), sections, task, base))


def _shown(path: str) -> str:
    """Returns the last part of a path, since where files lie on a machine is nobody's business."""
    names = [name for name in Path(path).parts if name not in ("best", "latest")]
    return path if path.startswith("hub:") or not names else names[-1]


def _table(scores: Mapping[str, Mapping[str, Any]]) -> list[str]:
    rows = []
    for name, score in scores.items():
        ends = [f"{score[end]:.4f}" for end in ("low", "high") if score.get(end) is not None]
        rows.append(f"| {name.removeprefix('val_').replace('_', ' ')} | {score['value']:.4f} | {' to '.join(ends)} |")
    return ["| on what was held out | score | 95% interval |", "|---|---|---|", *rows] if rows else []


def _limits(c: ModelConfig, scored: bool, base: str | None) -> list[str]:
    writes, before = c.head == "lm" and c.stacks != "encoder", f"Beyond what `{base}` had read before, it"
    lines = {
        f"- It reads at most {c.context:,} tokens at a time.": c.positions != "relative",
        f"- {before if base else 'It'} has learnt from the data above and from nothing else.": True,
        "- Nothing was held out, so it has no scores.": not scored,
        "- What it writes may be false, and may repeat what it has read; nothing checks it.": writes,
    }
    return [line for line, holds in lines.items() if holds]
