"""A recipe as a file for people: sections in the order they were made, short ones on a line, with comments."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from lmkit.recipe.recipe_file import recipes_folder

SCHEMA = "recipe.schema.json"  # beside the built-in recipes
WIDTH = 110  # characters of a line with its comment


def schema_line(schema: Path | str | None = None) -> str:
    """Returns the comment by which editors find the schema of recipes. They read a path without any network.

    schema: None for the one that is installed."""
    return f"# yaml-language-server: $schema={schema or recipes_folder() / SCHEMA}"


def written(tree: dict[str, Any], comments: dict[str, str], head: Sequence[str]) -> str:
    """Returns the text of a recipe. comments: by dotted key. head: the lines of comments that it begins with."""
    lines = list(head)
    for section, value in tree.items():
        commented = isinstance(value, dict) and any(f"{section}.{key}" in comments for key in value)
        if not commented:
            lines += _lines(section, value, comments.get(section))
            continue
        lines.append(f"{section}:" + (f"  # {comments[section]}" if section in comments else ""))
        for key, inner in value.items():
            lines += [f"  {line}" for line in _lines(key, inner, comments.get(f"{section}.{key}"))]
    return "\n".join(lines) + "\n"


def _lines(key: str, value: Any, comment: str | None) -> list[str]:
    """Returns the line of a key with its comment, which stands above it where both are too long for one line."""
    flow = yaml.safe_dump(value, default_flow_style=True, sort_keys=False, allow_unicode=True, width=10**6)
    line = f"{key}: {flow.removesuffix('...' + chr(10)).strip()}"
    if not comment:
        return [line]
    return [f"{line}  # {comment}"] if len(line) + len(comment) < WIDTH else [f"# {comment}", line]
