"""`lmkit recipes`: the built-in recipes, what each key means, and the families with their sizes."""

import typing

from pydantic import BaseModel

from lmkit.architecture.sizes import PRESETS
from lmkit.recipe.builtin import builtin_recipes, find_recipe
from lmkit.recipe.defaults import expand
from lmkit.recipe.finetuning import FinetuneRecipe
from lmkit.recipe.pretraining import Recipe
from lmkit.recipe.recipe_file import build, keys, sections_of


def run(name: str | None) -> None:
    """Lists recipes with their first comment; prints one; explains every key (`keys`); or lists sizes (`families`)."""
    if name is None:
        for stem, path in builtin_recipes().items():
            first = path.read_text().splitlines()[0].lstrip("# ")
            print(f"{stem:<24} {first}")
    elif name == "keys":
        print("lmkit pretrain")
        _keys(Recipe)
        print("\n\nlmkit finetune")
        _keys(FinetuneRecipe)
    elif name == "families":
        _families()
    else:
        print(find_recipe(name).read_text(), end="")


def _keys(recipe: type[BaseModel]) -> None:
    for section, field in recipe.model_fields.items():
        print(f"\n{section}: {field.description}")
        schemas = sections_of(field.annotation)
        for schema in schemas:
            if len(schemas) > 1:
                print(f"  {schema.model_fields['name'].default}: {schema.__doc__}")
            for key, inner in keys(schema, f"{section}.").items():
                if not (len(schemas) > 1 and key.endswith(".name")):
                    print(f"  {key:<28} {inner.description} ({_default(key, inner)})")


def _default(key: str, field: typing.Any) -> str:
    if not field.is_required():
        return f"default {field.default!r}"
    from_depth = key.startswith("model.") and key.count(".") == 1 and key != "model.family"
    return "from model.preset or model.depth, or required" if from_depth else "required"


def _families() -> None:
    """Every published size with its parameters, counted on a model without memory."""
    import torch

    from lmkit.architecture.model_config import ModelConfig
    from lmkit.model.transformer import Transformer

    print(f"{'model.preset':<24} {'family':<12} {'parameters':>14}  layers × hidden_size, vocabulary, context")
    for name in PRESETS:
        recipe = build(Recipe, sized(name), {}, expand)
        c = ModelConfig(**recipe.model.model_dump())
        with torch.device("meta"):
            total = sum(Transformer(c).num_parameters().values())
        layers = f"{c.num_layers}+{c.num_decoder_layers}" if c.num_decoder_layers else str(c.num_layers)
        print(f"{name:<24} {c.family:<12} {total:>14,}  {layers} × {c.hidden_size}, {c.vocab_size:,}, {c.context:,}")


def sized(name: str) -> dict:
    """The least of a recipe that asks for this size."""
    size = PRESETS[name]
    data = {"train": "-"} | ({"target": "-"} if size["family"] in ("transformer", "marian") else {})
    return {"model": {"preset": name}, "data": data, "train": {"budget": "1 step", "batch": size["context"]}}
