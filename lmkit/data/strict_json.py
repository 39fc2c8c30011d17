"""JSON in which nothing is lost."""

import json
from typing import Any


def loads(text: str | bytes) -> Any:
    """Raises ValueError as `json.loads` does, and where a key stands twice: all but its last value would be lost."""
    return json.loads(text, object_pairs_hook=_unrepeated)


def why(error: Exception) -> str:
    """What is wrong with a line of JSON."""
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg}, column {error.colno}"
    return "nested too deeply" if isinstance(error, RecursionError) else str(error).partition(";")[0]


def _unrepeated(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"key `{next(key for key in keys if keys.count(key) > 1)}` stands twice")
    return found
