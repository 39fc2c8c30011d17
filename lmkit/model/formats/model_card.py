"""The model card of a folder: README.md, as the hub shows it."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from lmkit.architecture.model_config import ModelConfig
from lmkit.base.units import show_count
from lmkit.model.transformer import Transformer

CARD = "README.md"
USE = "\n## Use\n"
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
    total = sum(model.num_parameters().values())
    what = f"A {c.spec.cls} of {show_count(total)} parameters ({total:,}), with {_context(c)}."
    body = [f"# {name}", f"{what} It was written by lmkit."]
    body += [f"## {heading}\n\n" + "\n".join(lines) for heading, lines in sections.items() if lines]
    front = yaml.safe_dump(header, sort_keys=False, allow_unicode=True)
    return f"---\n{front}---\n\n" + "\n\n".join(body) + "\n" + _use(uses)


def exported_card(
    model: Transformer, config_json: Mapping[str, Any], origin: Path, name: str, uses: Sequence[str]
) -> str:
    """Returns the card of an export: that of the folder `origin`, if lmkit wrote it, with other ways to load it."""
    file = origin / CARD
    own = file.read_text(encoding="utf-8") if file.is_file() else ""
    if own.startswith("---\n") and "\n- lmkit\n" in own.partition("\n---\n")[0]:
        return own.partition(USE)[0] + _use(uses)
    return model_card(model, Path(name).name, uses)


def _context(c: ModelConfig) -> str:
    return f"a context of {c.context:,} tokens" if c.positions != "relative" else "relative positions"


def _use(uses: Sequence[str]) -> str:
    return USE + "\n" + "\n".join(f"    {use}" for use in uses) + "\n"
