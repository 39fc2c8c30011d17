"""What the documents say is what the code does."""

import re
import shlex
from pathlib import Path

import pytest
from typer.main import get_command

from lmkit.builtin import find_recipe
from lmkit.cli.main import app
from lmkit.config import keys, load
from lmkit.presets import expand
from lmkit.recipe import Recipe

README = (Path(__file__).parent.parent / "README.md").read_text()
SHOWN = [line.partition("#")[0].strip() for line in re.findall(r"^ {4}(lmkit .*)$", README, re.MULTILINE)]


def test_the_readme_shows_the_demo_recipe_as_it_is():
    (block,) = re.findall(r"```yaml\n(.*?)```", README, re.DOTALL)
    assert block == find_recipe("demo").read_text()


@pytest.mark.parametrize("line", SHOWN)
def test_every_command_shown_parses(line):
    """Names, options and arguments exist; recipes with their changes resolve. The life-cycle tests run them."""
    name, *args = shlex.split(line)[1:]
    command = get_command(app).commands[name]
    parsed = command.make_context(name, args).params
    assert set(parsed) >= {p.name for p in command.params if p.required}
    if name == "pretrain" and parsed["recipe"]:
        changes = tuple(parsed["overrides"] or ())
        assert isinstance(load(Recipe, find_recipe(parsed["recipe"]), changes, expand), Recipe)


def test_every_key_is_explained():
    assert all(field.description and field.description[-1] in ".:" for field in keys(Recipe).values())
