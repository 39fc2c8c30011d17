"""`lmkit recipes`: the built-in recipes, and what each key means."""

from lmkit.builtin import builtin_recipes, find_recipe
from lmkit.config import keys, section_of
from lmkit.recipe import Recipe


def run(name: str | None) -> None:
    """Lists recipes with their first comment; prints one; or explains every key (`keys`)."""
    if name is None:
        for stem, path in builtin_recipes().items():
            first = path.read_text().splitlines()[0].lstrip("# ")
            print(f"{stem:<16} {first}")
    elif name == "keys":
        for key, field in keys(Recipe).items():
            if section_of(field.annotation):
                print(f"\n{key}: {field.description}")
            else:
                default = f"default {field.default!r}"
                if field.is_required():
                    from_depth = key.startswith("model.") and key.count(".") == 1 and key != "model.family"
                    default = "from model.depth, or required" if from_depth else "required"
                print(f"  {key:<28} {field.description} ({default})")
    else:
        print(find_recipe(name).read_text(), end="")
