"""A recipe of pretraining or of fine-tuning: which of the two a file is, and its checked object. No torch here."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lmkit.recipe.defaults import expand_pretraining
from lmkit.recipe.finetuning import FinetuneRecipe, check_start, expand_finetuning, is_finetuning
from lmkit.recipe.pretraining import Recipe
from lmkit.recipe.recipe_file import build_recipe, read_changed, where_of


def verb_of(tree: dict[str, Any]) -> str:
    """Returns the command that trains a recipe as it is written. One that starts from a model is for `finetune`, even
    where its task is not known."""
    return "finetune" if is_finetuning(tree) or isinstance(tree.get("model"), str) else "pretrain"


def settle(tree: dict[str, Any], lines: dict[str, str], where: str) -> Recipe | FinetuneRecipe:
    """Returns the checked recipe. lines: where each key was written. Raises UserError that lists every problem."""
    if verb_of(tree) == "pretrain":
        return build_recipe(Recipe, tree, lines, expand_pretraining, where)
    recipe = build_recipe(FinetuneRecipe, tree, lines, expand_finetuning, where)
    check_start(recipe)
    return recipe


def load(path: Path | None, changes: Sequence[str] = ()) -> Recipe | FinetuneRecipe:
    """Returns a recipe file with its changes; path: None where these are all there is. Raises UserError like
    `settle`."""
    return settle(*read_changed(path, changes), where_of(path))
