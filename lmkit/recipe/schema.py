"""The JSON schema of recipes, by which editors complete and check them. It is made of the classes that check recipes.

One schema is for both kinds; `if` tells them apart as `lmkit.recipe.either` does. Nothing is required, since `base:` or
the command line may say it."""

import json
from collections.abc import Iterator
from functools import cache
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import GenerateJsonSchema, models_json_schema

from lmkit.architecture.sizes import PRESETS
from lmkit.recipe.finetuning import FinetuneRecipe
from lmkit.recipe.pretraining import Recipe
from lmkit.recipe.tasks import SECTIONS

Schema = dict[str, Any]
KINDS: dict[str, type[BaseModel]] = {"pretrain": Recipe, "finetune": FinetuneRecipe}  # the recipes of each command


class _Generator(GenerateJsonSchema):
    def field_title_should_be_set(self, schema: Any) -> bool:
        return False


@cache
def recipe_schema() -> Schema:
    """Returns the schema, with both kinds of recipes in its `$defs`."""
    _, schema = models_json_schema([(kind, "validation") for kind in KINDS.values()], schema_generator=_Generator)
    parts = schema["$defs"]
    for name, part in parts.items():
        if name != "GroupRule":  # of a list, whose entries are whole
            part.pop("required", None)
    parts["ModelSection"]["properties"]["preset"]["anyOf"][0]["enum"] = list(PRESETS)
    for kind in KINDS.values():
        recipe = parts[kind.__name__]["properties"]
        recipe["base"] = {"type": "string", "description": "Another recipe, of which this one says the differences."}
        sections = recipe["task"].pop("oneOf")
        names = list(recipe["task"].pop("discriminator")["mapping"])
        recipe["task"]["anyOf"] = [{"enum": names, "description": "The task with its defaults."}, *sections]
        trackers = parts["TrackerConfig"]["properties"]["name"]["enum"]
        recipe["tracker"]["anyOf"] = [{"enum": trackers}, {"$ref": recipe["tracker"].pop("$ref")}]
    named = {"enum": list(SECTIONS)}
    inside = {"type": "object", "properties": {"name": named}, "required": ["name"]}
    finetunes = [_has("task", {"anyOf": [named, inside]}), _has("model", {"type": "string"})]
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "A recipe of lmkit",
        "type": "object",
        "if": {"anyOf": finetunes},
        "then": {"$ref": f"#/$defs/{FinetuneRecipe.__name__}"},
        "else": {"$ref": f"#/$defs/{Recipe.__name__}"},
        "$defs": parts,
    }


def _has(key: str, value: Schema) -> Schema:
    return {"properties": {key: value}, "required": [key]}


def schema_text() -> str:
    """Returns the schema as the file that comes with the built-in recipes."""
    return json.dumps(recipe_schema(), indent=1, ensure_ascii=False) + "\n"


def find_key(schema: Schema, verb: str, key: str) -> list[tuple[str, Schema]]:
    """Returns what the schema says of a dotted key: of each task that has it, with the name of that task, else "".

    verb: pretrain or finetune. The list is empty for a key that there is not."""
    found = [("", schema["$defs"][KINDS[verb].__name__])]
    for name in key.split("."):
        inner = [(_task_of(part) or task, part) for task, outer in found for part in _objects(schema, outer)]
        found = [(task, part["properties"][name]) for task, part in inner if name in part["properties"]]
    return found


def _task_of(part: Schema) -> str:
    """Returns the name of the task, where this is one of several that differ by `name`."""
    return str(part["properties"].get("name", {}).get("const", ""))


def _objects(schema: Schema, part: Schema) -> Iterator[Schema]:
    """Yields the sections that a part of the schema allows."""
    if "$ref" in part:
        part = schema["$defs"][part["$ref"].rpartition("/")[2]]
    if "properties" in part:
        yield part
    for choice in part.get("anyOf", ()):
        yield from _objects(schema, choice)
