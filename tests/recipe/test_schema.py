"""The JSON schema of recipes says what the code does; jsonschema checks recipes by it as editors do."""

import json
from functools import cache

import jsonschema
import pytest
import yaml
from typer.testing import CliRunner

from lmkit.base.errors import UserError
from lmkit.commands.main import app
from lmkit.recipe.either import load, settle
from lmkit.recipe.explaining import explain
from lmkit.recipe.recipe_file import as_tree, builtin_recipes, keys, parse_yaml, recipes_folder
from lmkit.recipe.schema import KINDS, schema_text
from lmkit.recipe.written import SCHEMA

TINY = "{family: gpt2, depth: 2, context: 64}"
WELL = [
    "{model: M, data: {train: a, validation: 5%}, train: {budget: 3 min, batch: 512k, micro_batch: 16384 tokens}}",
    "{model: M, data: {train: [a, b], validation: [c]}, tracker: wandb, train: {batch: 16 rows, clip: null}}",
    "{model: {preset: bert-tiny, vocab_size: 0}, task: masked_lm, data: {train: a}, schedule: {warmup: 40 steps}}",
    "{task: classify, model: runs/a, data: {train: a, validation: 0.1}, lora: {rank: 8}, checkpoint: {async: true}}",
    "{task: {name: qa}, model: M, data: {train: a}, tracker: {name: mlflow}, train: {budget: 2.5B tokens}}",
]
ILL = [
    ("{model: M, data: {train: a}, train: {budgte: 3 min}}", "budgte"),
    ("{model: M, data: {train: a}, trian: {budget: 3 min}}", "trian"),
    ("{task: {name: classify, bam: 1}, model: M, data: {train: a}}", "bam"),
    ("{task: clasify, model: runs/a, data: {train: a}}", "clasify"),
    ("{model: M, data: {train: a}, train: {budget: 3 weeks}}", "weeks"),
    ("{model: M, data: {train: a}, train: {clip: high}}", "high"),
    ("{model: M, data: {train: 3}}", "3"),
    ("{model: M, data: {train: a}, optimizer: {name: lion}}", "lion"),
    ("{model: {preset: bert-tny}, data: {train: a}}", "bert-tny"),
    ("{task: classify, model: runs/a, data: {train: a}, lora: {rank: many}}", "many"),
]


@cache
def validator() -> jsonschema.Draft202012Validator:
    schema = json.loads((recipes_folder() / SCHEMA).read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


def tree(text: str) -> dict:
    return parse_yaml(text.replace("model: M", f"model: {TINY}"), "test")


def test_the_shipped_schema_is_that_of_the_code(tmp_path):
    """Where it is not: lmkit recipes schema --out recipes/recipe.schema.json"""
    assert (recipes_folder() / SCHEMA).read_text() == schema_text()
    CliRunner().invoke(app, ["recipes", "schema", "--out", str(tmp_path / "s.json")], catch_exceptions=False)
    assert (tmp_path / "s.json").read_text() == schema_text()


@pytest.mark.parametrize("name", builtin_recipes())
def test_built_in_recipes_fit_as_they_are_and_with_all_defaults(name):
    path = builtin_recipes()[name]
    (line,) = [line for line in path.read_text().splitlines() if "yaml-language-server" in line]
    assert (path.parent / line.partition("$schema=")[2]).samefile(recipes_folder() / SCHEMA)
    validator().validate(yaml.safe_load(path.read_text()) and parse_yaml(path.read_text(), name))
    validator().validate(as_tree(load(path)))


@pytest.mark.parametrize("text", WELL)
def test_shorthand_fits(text):
    assert settle(tree(text), {}, "test").train.budget
    assert list(validator().iter_errors(tree(text))) == []


@pytest.mark.parametrize(("text", "named"), ILL)
def test_misspelt_keys_and_wrong_values_are_refused_as_training_does(text, named):
    with pytest.raises(UserError, match=named):
        settle(tree(text), {}, "test")
    errors = list(validator().iter_errors(tree(text)))
    assert errors and named in str([(e.message, e.instance) for e in errors])


@pytest.mark.parametrize("kind", KINDS.values())
def test_every_key_is_explained_with_its_default(kind):
    for key, field in keys(kind).items():
        said = explain(key)
        assert field.description in said and "a value" not in said
        if isinstance(field.default, int | float) and not isinstance(field.default, bool):
            assert f"default  {field.default}" in said, key


def test_an_explanation_names_types_bounds_and_recipes():
    said = explain("lora.dropout")
    assert "a number or text like `5%`" in said and "at least 0, below 1" in said
    assert "one of muon, adamw" in explain("optimizer.name") and "adamw by albert-base" in explain("optimizer.name")
    assert "`lr_scheduler_type` of other tools is `schedule.name` here" in explain("lr_scheduler_type")
    for wrong, right in (("trian.budgt", "train.budget"), ("output_dir", "--out")):
        with pytest.raises(UserError, match=right):
            explain(wrong)
