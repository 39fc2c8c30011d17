"""`lmkit recipes`: the built-in recipes, what each key means, published sizes, and checks of a recipe of one's own."""

import typing
from pathlib import Path
from typing import Annotated

import typer

from lmkit.base.errors import UserError, did_you_mean
from lmkit.commands.app import FirstByDefault, app
from lmkit.commands.options import Overrides

recipes_app = typer.Typer(
    cls=FirstByDefault,
    help="List, print, explain, check and import recipes. `lmkit recipes NAME` prints a built-in one.",
    epilog="Example: lmkit recipes demo",
)
app.add_typer(recipes_app, name="recipes")
Out = Annotated[Path | None, typer.Option("--out", "-o", metavar="FILE", help="Write it there; default: print it.")]


@recipes_app.command(name="show", epilog="Example: lmkit recipes demo")
def recipes_show(name: Annotated[str | None, typer.Argument(help="A recipe to print.")] = None) -> None:
    """List the built-in recipes, or print one."""
    from lmkit.recipe.recipe_file import builtin_recipes, find_recipe

    if name is not None:
        print(find_recipe(name).read_text(), end="")
        return
    for stem, path in builtin_recipes().items():
        first = path.read_text().splitlines()[0].lstrip("# ")
        print(f"{stem:<24} {first}")


@recipes_app.command(name="keys", epilog="Example: lmkit recipes keys warmup")
def recipes_keys(
    part: Annotated[str | None, typer.Argument(help="Only keys that have this in their name.")] = None,
) -> None:
    """Explain every key of recipes."""
    from lmkit.recipe.finetuning import FinetuneRecipe
    from lmkit.recipe.pretraining import Recipe
    from lmkit.recipe.recipe_file import keys

    commands = {"pretrain": Recipe, "finetune": FinetuneRecipe}
    listed = {command: list(_key_lines(schema, part or "")) for command, schema in commands.items()}
    if not any(listed.values()):
        known = dict.fromkeys([*keys(Recipe), *keys(FinetuneRecipe)])
        raise UserError(f"no key has `{part}` in its name{did_you_mean(str(part), known)}")
    shown = ["\n".join([f"lmkit {command}", *lines]) for command, lines in listed.items() if lines]
    print("\n\n\n".join(shown))


@recipes_app.command(name="families", epilog="Example: lmkit recipes families")
def recipes_families() -> None:
    """List families and published sizes."""
    _print_families()


@recipes_app.command(name="schema", epilog="Example: lmkit recipes schema --out recipe.schema.json")
def recipes_schema(out: Out = None) -> None:
    """Print the JSON schema of recipes, for editors and other programs."""
    from lmkit.recipe.schema import schema_text

    _deliver(schema_text(), out)


@recipes_app.command(name="check", epilog="Example: lmkit recipes check recipe.yaml train.budget='5 min'")
def recipes_check(
    recipe: Annotated[str, typer.Argument(help="A .yaml file, or the name of a built-in recipe.", show_default=False)],
    overrides: Overrides = None,
) -> None:
    """Tell all mistakes of a recipe at once, and what it would do; start nothing."""
    from lmkit.ops.recipe_facts import describe
    from lmkit.recipe.either import load
    from lmkit.recipe.recipe_file import find_recipe

    path = find_recipe(recipe)
    lines, problems = describe(load(path, overrides or ()))
    print("\n".join([f"{path}: {lines[0]}", *lines[1:]]))
    if problems:
        count = f"{len(problems)} problem{'s' if len(problems) > 1 else ''}"
        raise type(problems[0])("\n\n".join([f"{path}: {count}", *map(str, problems)]))


@recipes_app.command(name="explain", epilog="Example: lmkit recipes explain train.budget")
def recipes_explain(
    key: Annotated[str, typer.Argument(help="A key, like train.budget; or its name in another tool.")],
) -> None:
    """Explain one key: type, default, what is allowed, and which recipes set it."""
    from lmkit.recipe.explaining import explain

    print(explain(key))


@recipes_app.command(name="import", epilog="Example: lmkit recipes import axolotl.yaml --out recipe.yaml")
def recipes_import(
    file: Annotated[
        Path, typer.Argument(help="A file of axolotl or LLaMA-Factory, or TrainingArguments.", show_default=False)
    ],
    overrides: Overrides = None,
    out: Out = None,
) -> None:
    """Make a recipe of another tool's file, and list what is not taken over."""
    from lmkit.base.display import note
    from lmkit.recipe.foreign import import_recipe, outcome_lines

    text, imported = import_recipe(file, overrides or (), str(out or "FILE"))
    for line in outcome_lines(imported):
        note(line)
    _deliver(text, out)
    if out is not None:
        print(f"next  lmkit recipes check {out}")


def _deliver(text: str, out: Path | None) -> None:
    from lmkit.base.files import write_atomic

    if out is None:
        print(text, end="")
    else:
        write_atomic(out, text)
        print(f"wrote {out}")


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
