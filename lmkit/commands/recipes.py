"""`lmkit recipes`: the built-in recipes, what each key means, and the families with their sizes."""

import typing
from typing import Annotated

import typer

from lmkit.base.errors import UserError, did_you_mean
from lmkit.commands.app import app


@app.command(epilog="Example: lmkit recipes demo")
def recipes(
    name: Annotated[
        str | None, typer.Argument(help="A recipe to print; `keys`: every key there is; `families`: published sizes.")
    ] = None,
    part: Annotated[str | None, typer.Argument(help="With `keys`: only those that have this in their name.")] = None,
) -> None:
    """List the built-in recipes, print one, explain every key, or list families and sizes."""
    from lmkit.recipe.finetuning import FinetuneRecipe
    from lmkit.recipe.pretraining import Recipe
    from lmkit.recipe.recipe_file import builtin_recipes, find_recipe, keys

    if part is not None and name != "keys":
        raise UserError(f"{name} {part}: only `keys` takes a second word\n  → lmkit recipes keys {part}")
    if name is None:
        for stem, path in builtin_recipes().items():
            first = path.read_text().splitlines()[0].lstrip("# ")
            print(f"{stem:<24} {first}")
    elif name == "keys":
        commands = {"pretrain": Recipe, "finetune": FinetuneRecipe}
        listed = {command: list(_key_lines(schema, part or "")) for command, schema in commands.items()}
        if not any(listed.values()):
            known = dict.fromkeys([*keys(Recipe), *keys(FinetuneRecipe)])
            raise UserError(f"no key has `{part}` in its name{did_you_mean(str(part), known)}")
        shown = ["\n".join([f"lmkit {command}", *lines]) for command, lines in listed.items() if lines]
        print("\n\n\n".join(shown))
    elif name == "families":
        _print_families()
    else:
        print(find_recipe(name).read_text(), end="")


def _key_lines(recipe: typing.Any, part: str) -> typing.Iterator[str]:
    """Yields the keys with `part` in their names, each with its description and default, under their sections."""
    from lmkit.recipe.recipe_file import keys, sections_of

    for section, field in recipe.model_fields.items():
        schemas = sections_of(field.annotation)
        lines = [] if schemas or part not in section else [f"  {section}"]
        for schema in schemas:
            inner = keys(schema, f"{section}.").items()
            several = len(schemas) > 1
            listed = [
                f"  {key:<28} {entry.description} ({_default(key, entry)})"
                for key, entry in inner if part in key and not (several and key.endswith(".name"))
            ]  # fmt: skip
            lines += (
                [f"  {schema.model_fields['name'].default}: {schema.__doc__}"]
                if several and (listed or not part)
                else []
            )
            lines += listed
        if lines or not part:
            yield from (f"\n{section}: {field.description}", *(lines if schemas else ()))


def _default(key: str, field: typing.Any) -> str:
    if not field.is_required():
        value = field.get_default(call_default_factory=True)
        return f"default {value.model_dump() if hasattr(value, 'model_dump') else value!r}"
    from_depth = key.startswith("model.") and key.count(".") == 1 and key != "model.family"
    return "from model.preset or model.depth, or required" if from_depth else "required"


def _print_families() -> None:
    """Prints every published size with its parameters, counted on a model without memory."""
    import torch

    from lmkit.architecture.model_config import ModelConfig
    from lmkit.architecture.sizes import PRESETS
    from lmkit.model.transformer import Transformer
    from lmkit.recipe.defaults import expand_pretraining
    from lmkit.recipe.pretraining import Recipe
    from lmkit.recipe.recipe_file import build_recipe

    print(f"{'model.preset':<24} {'family':<12} {'parameters':>14}  layers × hidden_size, vocabulary, context")
    for name in PRESETS:
        recipe = build_recipe(Recipe, sized(name), {}, expand_pretraining)
        c = ModelConfig(**recipe.model.model_dump())
        with torch.device("meta"):
            total = sum(Transformer(c).num_parameters().values())
        layers = f"{c.num_layers}+{c.num_decoder_layers}" if c.num_decoder_layers else str(c.num_layers)
        print(f"{name:<24} {c.family:<12} {total:>14,}  {layers} × {c.hidden_size}, {c.vocab_size:,}, {c.context:,}")


def sized(name: str) -> dict:
    """Returns the smallest recipe that asks for this size."""
    from lmkit.architecture.sizes import PRESETS
    from lmkit.recipe.objectives import default_objective

    size = PRESETS[name]
    data = {"train": "-"} | ({"target": "-"} if default_objective(size["family"]) == "seq2seq" else {})
    return {"model": {"preset": name}, "data": data, "train": {"budget": "1 step", "batch": size["context"]}}
