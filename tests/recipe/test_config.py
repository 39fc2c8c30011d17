"""What a user sees when a recipe is wrong: the message is the interface."""

import json
from pathlib import Path

import pytest

from lmkit.base import units
from lmkit.base.errors import UserError
from lmkit.recipe.defaults import expand_pretraining
from lmkit.recipe.finetuning import FinetuneRecipe, flags
from lmkit.recipe.finetuning import expand_finetuning as expand_finetune
from lmkit.recipe.pretraining import Recipe
from lmkit.recipe.recipe_file import build_recipe, builtin_recipes, dump, load_recipe, parse_yaml, read_tree

GOOD = """\
model: {family: nanochat, depth: 2, context: 64}
data: {train: text/*.txt}
optimizer: {lr: 1e-3}
train: {budget: 100 steps, batch: 640}
"""


def recipe(folder: Path, text: str, *overrides: str) -> Recipe:
    path = folder / "r.yaml"
    path.write_text(text)
    return load_recipe(Recipe, path, overrides, expand_pretraining)


def message(folder: Path, text: str, *overrides: str) -> str:
    with pytest.raises(UserError) as e:
        recipe(folder, text, *overrides)
    assert e.value.exit_code == 2
    return str(e.value)


@pytest.mark.parametrize(
    ("change", "line", "says"),
    [
        (("budget", "buget"), 4, ["unknown key `train.buget`", "did you mean `train.budget`?"]),
        (("nanochat", "nanchat"), 1, ["'nanchat' is no family", "did you mean `nanochat`?", "allowed: albert"]),
        (("1e-3", "fast"), 3, ["`optimizer.lr`", "(got 'fast')"]),
        (("1e-3", "-1"), 3, ["`optimizer.lr`", "greater than or equal to 0"]),
        (("100 steps", "100 parsecs"), 4, ["`train.budget`", "`parsec` is unknown", "steps, tokens, epochs"]),
        (("100 steps", "0 steps"), 4, ["`train.budget`", "nothing would be trained"]),
        (("640", "650"), 4, ["train.batch 650 is no multiple of model.context 64; nearest: 640"]),
        (("depth: 2", "hidden_size: 100, num_heads: 3, num_layers: 1"), 1, ["100 is not divisible", "nearest: [2, 5]"]),
        (("context: 64", "context: 64, sliding_window: 8"), 1, ["sliding_window 8 does not exist"]),
        (("data: {train: text/*.txt}", ""), 1, ["missing key `data`"]),
        (("train: {", "warmup: 5\ntrain: {"), 4, ["unknown key `warmup`", "here it is schedule.warmup=5"]),
    ],
    ids=lambda v: v[0] if isinstance(v, tuple) else None,
)  # fmt: skip
def test_a_mistake_is_named_with_its_line_and_cure(tmp_path, change, line, says):
    text = message(tmp_path, GOOD.replace(*change))
    assert all(s in text for s in says), text
    assert f"r.yaml:{line}" in text or "r.yaml\n" in text


def test_all_mistakes_are_told_at_once(tmp_path):
    text = message(tmp_path, GOOD.replace("budget", "buget").replace("1e-3", "fast"), "schedule.name=wds", "modle.a=1")
    assert "4 problems; nothing was started" in text
    assert "command line: schedule.name=wds" in text and "command line: modle.a=1" in text


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a: 1\na: 2", "r.yaml:2: not a valid recipe: key `a` stands twice"),
        ("a:\n\tb: 1", "tabs"),
        (
            "a: !!python/object/apply:os.system ['true']",
            "tags (tag:yaml.org,2002:python/object/apply:os.system) are not allowed",
        ),
        ("a: &x [1]\nb: *x", "aliases (*name) are not allowed"),
        ("- 1", "this is a list"),
        ("", "this is empty"),
        ("base: r.yaml", "goes in a circle"),
    ],
)
def test_yaml_that_is_no_recipe(tmp_path, text, says):
    assert says in message(tmp_path, text)


def test_bytes_that_are_no_text(tmp_path):
    (tmp_path / "r.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="not UTF-8"):
        load_recipe(Recipe, tmp_path / "r.yaml")


def test_scalars_are_what_they_look_like():
    text = "[1e-3, 3.5, 012, 1:30, on, no, yes, true, ~, 1_000, 2026-01-01, -.5, 1.]"
    want = [1e-3, 3.5, 12, "1:30", "on", "no", "yes", True, None, 1000, "2026-01-01", -0.5, 1.0]
    assert parse_yaml(text, "x") == want


@pytest.mark.parametrize(
    "sign", [",", "|", "#", ";", ":", "-", "*", ">", "&", "?", " ", "; ", "\t", "\f", "\n\n", "<e>\n", "a\nb"]
)
def test_a_separator_is_what_the_command_line_says(sign, tmp_path):
    rest = GOOD.replace("data: {train: text/*.txt}\n", "data:\n  train: x.txt\n")
    assert recipe(tmp_path, rest, f"data.separator={sign}").data.separator == sign
    before, after = rest.split("optimizer")
    written = f"{before}  separator: {{}}\noptimizer{after}"
    assert recipe(tmp_path, written.replace("{}", json.dumps(sign), 1)).data.separator == sign
    if sign in ",:*&?-|>":
        assert "r.yaml:4" in message(tmp_path, written.replace("{}", sign, 1))


def test_a_separator_of_backslashes_and_letters_means_line_ends(tmp_path):
    for written, meant in ((r"\n\n", "\n\n"), (r"\n\f\n", "\n\f\n"), (r"\newpage", r"\newpage")):
        assert recipe(tmp_path, GOOD, f"data.separator={written}").data.separator == meant


def test_override_beats_recipe_beats_base_beats_default(tmp_path):
    (tmp_path / "base.yaml").write_text(GOOD)
    got = recipe(tmp_path, "base: base.yaml\nmodel: {context: 32}\ntrain: {batch: 1280, seed: 3}", "train.seed=4")
    assert (got.model.context, got.model.num_layers, got.train.batch, got.train.seed) == (32, 2, 1280, 4)


def test_an_option_for_validation_is_a_share_or_a_file():
    assert [flags(None, None, None, said) for said in ("0", "0.2", "10%", "dev.csv")] == [
        ["data.validation=0.0"], ["data.validation=0.2"], ['data.validation="10%"'], ['data.validation="dev.csv"'],
    ]  # fmt: skip


def test_a_path_is_relative_to_where_it_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sub").mkdir()
    assert recipe(tmp_path / "sub", GOOD).data.train == str(tmp_path / "sub/text/*.txt")
    assert recipe(tmp_path / "sub", GOOD, "data.train=a.txt").data.train == str(tmp_path / "a.txt")
    assert recipe(tmp_path / "sub", GOOD, "data.train=hub:a/b").data.train == "hub:a/b"


@pytest.mark.parametrize("name", builtin_recipes())
def test_built_in_recipes_resolve_and_read_back_equal(name, tmp_path):
    path = builtin_recipes()[name]
    schema, fill = {"pretrain": (Recipe, expand_pretraining), "finetune": (FinetuneRecipe, expand_finetune)}[
        path.parent.name
    ]
    got = load_recipe(schema, path, (), fill)
    (tmp_path / "resolved.yaml").write_text(dump(got))
    tree, lines = read_tree(tmp_path / "resolved.yaml")
    assert build_recipe(schema, tree, lines, fill) == got


def test_depth_sets_sizes_rates_and_horizon_by_the_published_rules(tmp_path):
    """nanochat's d12: 768 wide, 6 heads of 128, 84.9M matrix parameters; with its 32,768 x 768 head 110.1M in all."""
    got = recipe(tmp_path, "model: {family: nanochat, depth: 12}\ntokenizer: {vocab_size: 32768}\ndata: {train: x}")
    model, optimizer = got.model, got.optimizer
    assert (model.hidden_size, model.num_heads, model.head_dim, model.intermediate_size) == (768, 6, 128, 3072)
    assert got.train.batch == 524_288
    assert got.train.budget == f"{12 * (84_934_656 + 32_768 * 768)} tokens"
    assert (optimizer.lr, optimizer.embedding_lr, optimizer.head_lr) == (0.02, 0.3, 0.008)
    by_hand = recipe(
        tmp_path, "model: {family: nanochat, depth: 12, num_layers: 3}\ndata: {train: x}", "optimizer.lr=1"
    )
    assert (by_hand.model.num_layers, by_hand.model.hidden_size, by_hand.optimizer.lr) == (3, 768, 1.0)


def test_data_that_is_not_beside_the_recipe_is_found_in_the_working_directory(tmp_path, monkeypatch):
    """Built-in recipes name data that the user brings."""
    (tmp_path / "here").mkdir()
    (tmp_path / "sub").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    Path("text").mkdir()
    Path("text/a.txt").write_text("a")
    assert recipe(tmp_path / "sub", GOOD).data.train == str(tmp_path / "here/text/*.txt")
    (tmp_path / "sub/text").mkdir()
    (tmp_path / "sub/text/b.txt").write_text("b")
    assert recipe(tmp_path / "sub", GOOD).data.train == str(tmp_path / "sub/text/*.txt")


@pytest.mark.parametrize(
    ("written", "seconds"), [("500 ms", 0.5), ("500ms", 0.5), ("5 m", 300), ("5 mins", 300), ("2s", 2)]
)
def test_times_are_read_by_their_units(written, seconds):
    assert units.seconds(written) == seconds


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (("data.fold=6/5",), "from `1/5` to `5/5`"), (("data.fold=1/1",), "from `1/5` to `5/5`"),
        (("data.fold=0/5",), "from `1/5` to `5/5`"), (("data.fold=a",), "from `1/5` to `5/5`"),
        (("data.fold=1/5", "data.validation=held.csv"), "data.fold is for tables out of which rows are held out"),
        (("data.group=user", "data.validation=held.csv"), "data.group is for tables out of which rows are held out"),
        (("data.fold=1/5", "task.name=lm"), "data.fold is for tables out of which rows are held out"),
    ],
)  # fmt: skip
def test_folds_that_are_none(changes, says):
    recipe = ("task.name=classify", "model=bert", "data.train=rows.csv", *changes)
    with pytest.raises(UserError, match=says):
        load_recipe(FinetuneRecipe, None, recipe, expand_finetune)
