"""What the documents say is what the code does."""

import inspect
import re
import shlex
import subprocess
from math import inf
from pathlib import Path
from typing import get_args

import pytest
from typer.main import get_command

from lmkit.architecture.families import FAMILIES
from lmkit.commands.main import app
from lmkit.data.quality.filters import FILTERS
from lmkit.data.tables.rows import SHAREGPT
from lmkit.generation.rules import FOLLOWED
from lmkit.model.formats.config_json import REASONS, SCALINGS
from lmkit.recipe.defaults import expand_pretraining
from lmkit.recipe.finetuning import FinetuneRecipe, flags
from lmkit.recipe.finetuning import expand_finetuning as expand_finetune
from lmkit.recipe.pretraining import Recipe
from lmkit.recipe.recipe_file import find_recipe, keys, load_recipe
from lmkit.recipe.sources import QualityConfig
from lmkit.text import tokenizer_classes
from lmkit.text.tokenizer_classes import CLASSES
from lmkit.text.tokenizer_files import SAME_RULES

README = (Path(__file__).parent.parent / "README.md").read_text()
GUIDE = (Path(__file__).parent.parent / "docs/finetune.md").read_text()
REPRODUCE = (Path(__file__).parent.parent / "docs/reproduce.md").read_text()
DISTRIBUTED = (Path(__file__).parent.parent / "docs/distributed.md").read_text()
COMPATIBILITY = (Path(__file__).parent.parent / "docs/compatibility.md").read_text()
CHECK = (Path(__file__).parent.parent / "docs/check.md").read_text()
RUNS = (Path(__file__).parent.parent / "docs/runs.md").read_text()
INSPECT = (Path(__file__).parent.parent / "docs/inspect.md").read_text()
DATA = (Path(__file__).parent.parent / "docs/data.md").read_text()
RECIPES = (Path(__file__).parent.parent / "docs/recipes.md").read_text()
SHOWING = (README, RECIPES, GUIDE, REPRODUCE, DISTRIBUTED, CHECK, RUNS, INSPECT, DATA)
LINES = re.findall(r"^ {4}(lmkit .*)$", "".join(SHOWING), re.MULTILINE)
SHOWN = [line.partition(" #")[0].strip() for line in LINES]


def test_the_readme_shows_the_demo_recipe_as_it_is():
    (block,) = re.findall(r"```yaml\n(.*?)```", README, re.DOTALL)
    assert block == find_recipe("demo").read_text()


@pytest.mark.parametrize("line", SHOWN)
def test_every_command_shown_parses(line):
    """Names, options and arguments exist; recipes with their changes resolve. The life-cycle tests run them."""
    name, *args = shlex.split(line)[1:]
    command = get_command(app).commands[name]
    if args and args[0] in getattr(command, "commands", ()):
        name, *args = args
        command = command.commands[name]
    parsed = command.make_context(name, args).params
    assert set(parsed) >= {p.name for p in command.params if p.required}
    if name == "pretrain" and parsed["recipe"]:
        changes = tuple(parsed["overrides"] or ())
        assert isinstance(load_recipe(Recipe, find_recipe(parsed["recipe"]), changes, expand_pretraining), Recipe)
    if name == "finetune" and not parsed["resume"]:
        said = flags(parsed["task"], parsed["model"], parsed["data"], parsed["validation"])
        named, changes = parsed["recipe"], list(parsed["overrides"] or ())
        if named and "=" in named:
            named, changes = None, [named, *changes]
        path = find_recipe(named, "finetune") if named else None
        assert isinstance(load_recipe(FinetuneRecipe, path, (*said, *changes), expand_finetune), FinetuneRecipe)


@pytest.mark.parametrize(("command", "page"), [("check", CHECK), ("inspect", INSPECT)])
def test_the_page_of_a_command_names_every_flag(command, page):
    options = {name for p in get_command(app).commands[command].params for name in p.opts if name.startswith("--")}
    assert options == set(re.findall(r"`(--[\w-]+)[^`]*`", page))


def test_the_rules_of_good_text_are_those_of_the_code():
    rows = re.findall(r"^\| `(\w+)` \| (.+?)(?: \(.*\))? \| (.*?) \|$", DATA.partition("## The rules")[2], re.MULTILINE)
    rules = [(name, *rule) for name, judge in FILTERS.items() if name != "c4" for rule in judge.args[0]]

    def bounds(low, high):
        return f"{low:,} to {high:,}" if inf not in (-low, high) else f"from {low}" if high == inf else f"up to {high}"

    assert rows == [(name, rule, bounds(low, high)) for name, rule, _, low, high in rules]
    names = get_args(get_args(QualityConfig.model_fields["filters"].annotation)[0])
    assert set(names) == FILTERS.keys() and not [name for name in names if f"`{name}`" not in DATA]


def test_every_test_named_as_evidence_exists():
    here = Path(__file__).parent
    named = set(re.findall(r"::(test_\w+)", (here.parent / "docs/reliability.md").read_text()))
    source = "".join(path.read_text() for path in here.rglob("test_*.py"))
    assert len(named) > 100 and not [name for name in named if f"def {name}(" not in source]


def test_the_slurm_script_is_one():
    (script,) = re.findall(r"```bash\n(.*?)```", DISTRIBUTED, re.DOTALL)
    assert "-m lmkit pretrain $WHAT" in script
    assert subprocess.run(["bash", "-n"], input=script, text=True, check=False).returncode == 0


def test_the_compatibility_tables_name_what_the_code_has():
    """Tokenizer classes and their settings, rules of generation, labels of tags and senders, as the code knows them."""
    rows = re.findall(r"^\| (.*?) \| (.*?) \|$", COMPATIBILITY, re.MULTILINE)
    classes = {name: cells[1] for cells in rows for name in re.findall(r"`(\w+Tokenizer)`", cells[0])}
    assert classes.keys() == CLASSES.keys() | SAME_RULES.keys() | {"MarianTokenizer"}
    source = inspect.getsource(tokenizer_classes)
    read = set(re.findall(r'setting\(\s*"(\w+)"|settings\.get\("(\w+)"', source))
    named = {setting for cell in classes.values() for setting in re.findall(r"`(\w+)`", cell)}
    assert named == {a or b for a, b in read} | {"extra_ids", "separate_vocabs", "add_bos_token", "add_eos_token"}
    assert "MarianTokenizer" in classes and not set(REASONS) - set(re.findall(r"`([\w-]+)`", COMPATIBILITY))
    scalings = next(cells[1] for cells in rows if cells[0] == "RoPE scaling")
    assert set(re.findall(r"`(\w+)`", scalings)) == set(SCALINGS)
    models = re.search(r"- \*\*Models\*\*(.*?)- \*\*Tasks", README, re.DOTALL)[1]
    assert set(re.findall(r"`([\w-]+)`", models)) >= {name for name in FAMILIES if name != "transformer"}
    followed = next(cells[1] for cells in rows if cells[0].startswith("`generation_config.json`"))
    assert set(re.findall(r"`(\w+)`", followed)) >= FOLLOWED | {"eos_token_id", "forced_bos_token_id"}
    senders = next(cells[0] for cells in rows if "ShareGPT" in cells[0])
    assert set(re.findall(r"`(\w+)`", senders)) >= SHAREGPT.keys()
    for message in ("whose rules lmkit does not have", "not followed here: "):
        assert message in COMPATIBILITY
        assert any(message in file.read_text() for file in (Path(__file__).parent.parent / "lmkit").rglob("*.py"))


def test_every_key_is_explained():
    for recipe in (Recipe, FinetuneRecipe):
        assert all(field.description and field.description[-1] in ".:" for field in keys(recipe).values())


def test_every_stop_of_the_tour_is_there():
    root = Path(__file__).parent.parent
    tour = (root / "docs/architecture.md").read_text()
    stops = re.findall(r"`((?:tests/)?[\w/]+\.py)(?::(\w+)(?:\.(\w+))?)?`", tour)
    assert len(stops) > 30
    for name, *parts in stops:
        file = root / ("" if name.startswith("tests/") else "lmkit") / name
        assert file.is_file(), name
        for part in filter(None, parts):
            assert re.search(rf"^\s*(?:def|class) {part}\b|^{part}\b", file.read_text(), re.MULTILINE), (name, part)
    rooms = {path.name for path in (root / "lmkit").iterdir() if path.is_dir() and any(path.glob("*.py"))}
    assert rooms == set(re.findall(r"^    (\w+)/ ", tour, re.MULTILINE))
