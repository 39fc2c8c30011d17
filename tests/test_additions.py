"""Toys are added to a copy of the package in the files that docs/architecture.md names under "To add ..."."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import lmkit
from tests.training.conftest import write_tiny

PACKAGE = Path(lmkit.__file__).parent

COMMAND = '''
from lmkit.commands.app import app

@app.command(epilog="Example: lmkit greet")
def greet() -> None:
    """Say hello."""
    print("hello")
'''
READER = """
def _fixed(item: Input, problems: Problems, header: Header) -> Iterator[Record]:
    for number, line in read_lines(item, problems):
        yield number, {"text": (line or "")[4:]}
"""


def edited(package: Path, file: str, before: str, after: str) -> None:
    path = package / file
    text = path.read_text()
    assert text.count(before) == 1, (file, before)
    path.write_text(text.replace(before, after))


def test_a_command_a_kind_of_file_and_an_optimizer_are_added_where_the_tour_says(tmp_path: Path) -> None:
    package = tmp_path / "lmkit"
    shutil.copytree(PACKAGE, package, ignore=shutil.ignore_patterns("__pycache__"))
    (package / "commands/greet.py").write_text(COMMAND)
    edited(package, "commands/main.py", "plan, doctor", "plan, doctor, greet")
    edited(package, "data/inputs.py", '".parquet": "parquet",', '".parquet": "parquet", ".fixed": "fixed",')
    edited(package, "data/records.py", '"hub": _hub}', '"hub": _hub, "fixed": _fixed}')
    (package / "data/records.py").write_text((package / "data/records.py").read_text() + READER)
    edited(package, "recipe/optimizers.py", '"adafactor"]', '"adafactor", "sign"]')
    edited(
        package, "recipe/optimizers.py", '    "sgd": Opt', '    "sign": OptimizerFacts(0, 0, lr=0.001),\n    "sgd": Opt'
    )
    step = 'case "sign":\n            return torch.optim.Rprop(groups, lr=0.001)\n        case "sgd":'
    edited(package, "training/optimizers/build.py", 'case "sgd":', step)

    def lmkit_(*args: str) -> str:
        environ = os.environ | {"PYTHONPATH": str(tmp_path), "LMKIT_CACHE": str(tmp_path / "cache")}
        command = [sys.executable, "-m", "lmkit", *args]
        shown = subprocess.run(command, cwd=tmp_path, env=environ, capture_output=True, text=True, check=False)
        assert shown.returncode == 0, shown.stderr
        return shown.stdout

    assert lmkit_("greet") == "hello\n"
    recipe = write_tiny(tmp_path)
    (tmp_path / "corpus.fixed").write_text("".join(f"{n:03} the fox {n} jumps over the dog\n" for n in range(400)))
    settings = ("data.train=corpus.fixed", "optimizer.name=sign", "train.budget=2 steps", "--out", "run")
    lmkit_("pretrain", str(recipe), *settings)
    rows = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2] and all(row["loss"] > 0 for row in rows)
