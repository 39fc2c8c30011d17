"""The recipes that ship with lmkit: by name, or anyone's by path."""

from pathlib import Path

from lmkit.base.errors import UserError, did_you_mean


def recipes_folder() -> Path:
    """Inside an installed package, else beside it in a checkout."""
    here = Path(__file__).parents[1]  # lmkit/
    return here / "recipes" if (here / "recipes").is_dir() else here.parent / "recipes"


def builtin_recipes(stage: str = "*") -> dict[str, Path]:
    """By name; stage: pretrain or finetune alone."""
    return {p.stem: p for p in sorted(recipes_folder().glob(f"{stage}/*.yaml"))}


def find_recipe(name: str, stage: str = "*") -> Path:
    """A file, or a built-in recipe by its name. Raises UserError."""
    known = builtin_recipes(stage)
    if name in known:
        return known[name]
    path = Path(name)
    if path.is_file() or path.suffix in (".yaml", ".yml"):
        return path
    if (path / "recipe.yaml").is_file():  # a run directory: its resolved recipe, to run again
        return path / "recipe.yaml"
    raise UserError(f"no recipe `{name}`: neither a file nor a built-in name{did_you_mean(name, known)}")
