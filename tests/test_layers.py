"""The command line answers at once: the light layers never load torch."""

import ast
import subprocess
import sys
from pathlib import Path

import lmkit

ROOT = Path(lmkit.__file__).parent
LIGHT = [
    *("base.errors", "base.units", "base.files", "base.order", "base.runs", "base.display", "base.environment"),
    *("architecture.model_config", "recipe.recipe_file", "recipe.defaults", "recipe.pretraining"),
    *("text.special", "text.tokenizer", "text.training", "commands.main", "commands.recipes", "commands.runs"),
    *("ops.doctor", "ops.resume_proof", "ops.reproduce", "data.inventory"),
    *("ops.drafting", "ops.recipe_facts", "recipe.either", "recipe.explaining", "recipe.foreign", "recipe.schema"),
    *("data.lines", "data.records", "data.documents"),
    *(
        "data.tokens.store",
        "data.tokens.packing",
        "data.tokens.tokenize",
    ),
]


def test_light_modules_do_not_import_torch():
    code = f"""
import sys
for m in {LIGHT}:
    __import__('lmkit.' + m)
heavy = {{'torch', 'transformers', 'datasets', 'pyarrow'}} & set(sys.modules)
sys.exit(', '.join(heavy) or 0)
"""
    got = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True)
    assert got.returncode == 0, got.stderr


def test_every_function_fits_a_screen():
    functions = (
        (f"{path.relative_to(ROOT)}:{node.name}", node.end_lineno - node.lineno + 1)
        for path in ROOT.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef)
    )
    assert [name for name, lines in functions if lines > 60] == []
