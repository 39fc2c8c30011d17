"""What one key of a recipe means: for `lmkit recipes explain`."""

from collections.abc import Iterator
from functools import cache
from typing import Any

from lmkit.base.errors import UserError, did_you_mean
from lmkit.base.units import brief
from lmkit.recipe.aliases import key_for
from lmkit.recipe.recipe_file import builtin_recipes, keys, read_tree
from lmkit.recipe.schema import KINDS, Schema, find_key, recipe_schema

TYPES = {
    "string": "text", "integer": "a whole number", "number": "a number", "boolean": "true or false", "array": "a list",
    "object": "a section", "null": "null",
}  # fmt: skip
OPEN = {"": "by other keys", None: "null: off, or by other keys"}
BOUNDS = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}


def explain(key: str) -> str:
    """Returns what a key means in each kind of recipe: its type, default, what is allowed, and which recipes set it.

    A name of another tool stands for ours. Raises UserError for a key that there is not."""
    known = dict.fromkeys(key for kind in KINDS.values() for key in keys(kind))
    if key not in known:
        advice = key_for(key, "VALUE", known)
        ours = (advice or "").partition("=")[0]
        if ours not in known:
            hint = did_you_mean(key, known) if advice is None else f"\n  → here it is {advice}"
            raise UserError(f"unknown key `{key}`{hint}")
        return f"`{key}` of other tools is `{ours}` here: {advice}\n\n{explain(ours)}"
    schema = recipe_schema()
    blocks: dict[str, list[str]] = {}  # by what is said: the kinds of recipes of which it is true
    for verb in KINDS:
        for task, part in find_key(schema, verb, key):
            block = "\n".join(_lines(schema, verb, key, part))
            blocks.setdefault(block, []).append(f"lmkit {verb}{f', task {task}' if task else ''}")
    setting = [f"  set to   {value} by {', '.join(names)}" for value, names in _values(key).items()]
    return "\n".join([*(f"{key}   ({'; '.join(of)})\n{block}" for block, of in blocks.items()), *setting])


def _lines(schema: Schema, verb: str, key: str, part: Schema) -> Iterator[str]:
    yield f"  {part.get('description', '')}".rstrip()
    inner = [name for name in keys(KINDS[verb]) if name.startswith(f"{key}.") and name.count(".") == key.count(".") + 1]
    if inner:
        yield f"  keys     {', '.join(inner)}"
        return
    types = dict.fromkeys(_types(part))
    yield f"  type     {' or '.join(types)}"
    default = part.get("default", "none: it must be set, or follows from others, as model.preset or model.depth")
    yield f"  default  {OPEN[default] if default in ('', None) else default}"
    metadata = keys(KINDS[verb])[key].metadata
    bounds = [f"{words} {getattr(m, name)}" for m in metadata for name, words in BOUNDS.items() if hasattr(m, name)]
    if bounds:
        yield f"  allowed  {', '.join(bounds)}"


def _types(part: Schema) -> Iterator[str]:
    if "enum" in part or "const" in part:
        yield "one of " + ", ".join(str(value) for value in part.get("enum", [part.get("const")]) if value != "")
    elif "anyOf" in part:
        for choice in part["anyOf"]:
            yield from _types(choice)
    elif "examples" in part:
        yield f"text like `{part['examples'][0]}`"
    else:
        yield TYPES.get(part.get("type", ""), "a value")


@cache
def _built_in() -> dict[str, Any]:
    return {name: read_tree(path)[0] for name, path in builtin_recipes().items()}


def _values(key: str) -> dict[str, list[str]]:
    """Returns what the built-in recipes set a key to, with their names. Of sections it is empty."""
    names: dict[str, list[str]] = {}
    for name, tree in _built_in().items():
        value: Any = tree
        for part in key.split("."):
            value = value.get(part) if isinstance(value, dict) else None
        if value is not None and not isinstance(value, dict):
            names.setdefault(brief(str(value), 60), []).append(name)
    return names
