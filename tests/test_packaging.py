"""What is built installs alone, needs only what it names, and what is deployed is well-formed."""

import ast
import os
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
IMPORTED_AS = {"pyyaml": "yaml", "scikit-learn": "sklearn", "huggingface-hub": "huggingface_hub", "pillow": "PIL",
               "protobuf": "google", "charset-normalizer": "charset_normalizer", "lm-eval": "lm_eval",
               "prometheus-client": "prometheus_client", "tensorboardX": "tensorboardX"}  # fmt: skip
WITH_OTHERS = {"scipy": "scikit-learn", "joblib": "scikit-learn", "jsonschema": "lm-eval"}  # come with a named one


def imported(node):
    if isinstance(node, ast.Import):
        return {alias.name.split(".")[0] for alias in node.names}
    return {node.module.split(".")[0]} if isinstance(node, ast.ImportFrom) and node.module and not node.level else set()


def modules(requirements):
    names = [re.split(r"[\[<>=~! ]", requirement)[0] for requirement in requirements]
    return {IMPORTED_AS.get(name, name.replace("-", "_")) for name in names}


def test_everything_that_is_imported_is_named():
    core = modules(PROJECT["dependencies"])
    extras = {name for wanted in PROJECT["optional-dependencies"].values() for name in modules(wanted)}
    alone = {*sys.stdlib_module_names, "lmkit"}
    with_named = {name for name, by in WITH_OTHERS.items() if modules([by]) <= core | extras}
    for path in (ROOT / "lmkit").rglob("*.py"):
        tree = ast.parse(path.read_text())
        guarded = [
            node for node in ast.walk(tree) if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
        ]
        skipped = {id(inner) for node in guarded for inner in ast.walk(node)}
        everywhere = {name for node in ast.walk(tree) if id(node) not in skipped for name in imported(node)}
        assert everywhere - alone - core - extras - with_named == set(), path


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel that is built from the sdist, as pip does it, unpacked alone."""
    out, home = tmp_path_factory.mktemp("dist"), tmp_path_factory.mktemp("installed")
    subprocess.run([sys.executable, "-m", "build", "--no-isolation", "--outdir", out, ROOT], check=True,
                   capture_output=True)  # fmt: skip
    zipfile.ZipFile(next(out.glob("*.whl"))).extractall(home)
    return home


def test_the_wheel_works_without_the_checkout(wheel, tmp_path):
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {"PYTHONPATH": str(wheel)}
    environment |= {"LMKIT_CACHE": str(tmp_path / "cache")}
    run = lambda *a: subprocess.run([sys.executable, *a], cwd=tmp_path, env=environment, capture_output=True, text=True)
    where = run("-c", "import lmkit; print(lmkit.__file__)").stdout
    assert where.startswith(str(wheel))
    listed = run("-m", "lmkit", "recipes").stdout
    built_in = {path.stem for path in (ROOT / "recipes").rglob("*.yaml")}
    assert {name for name in built_in if name in listed} == built_in
    planned = run("-m", "lmkit", "pretrain", "demo", "--print-recipe")
    assert planned.returncode == 0 and "num_layers: 4" in planned.stdout, planned.stderr
    package = {
        str(p.relative_to(ROOT)) for p in (ROOT / "lmkit").rglob("*") if p.is_file() and "__pycache__" not in str(p)
    }
    assert package <= {str(p.relative_to(wheel)) for p in wheel.rglob("*") if p.is_file()}


def test_what_is_deployed_is_well_formed():
    assert subprocess.run(["bash", "-n", ROOT / "deploy/slurm.sh"], check=False).returncode == 0
    job = yaml.safe_load((ROOT / "deploy/kubernetes.yaml").read_text())
    (container,) = job["spec"]["template"]["spec"]["containers"]
    assert (
        job["kind"] == "Job" and subprocess.run(["sh", "-n", "-c", container["args"][0]], check=False).returncode == 0
    )
    copied = re.findall(r"^COPY (.+) \S+$", (ROOT / "deploy/Dockerfile").read_text(), re.MULTILINE)
    assert all((ROOT / name).exists() for names in copied for name in names.split())
    extras = re.search(r"ARG EXTRAS=(\S+)", (ROOT / "deploy/Dockerfile").read_text())[1].split(",")
    assert set(extras) <= PROJECT["optional-dependencies"].keys()
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert (
        citation["version"] == PROJECT["version"] and f"## {PROJECT['version']}" in (ROOT / "CHANGELOG.md").read_text()
    )
