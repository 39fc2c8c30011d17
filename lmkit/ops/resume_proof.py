"""`lmkit doctor --resume`: whether a run by a recipe of yours, killed and resumed, ends as if it had not been."""

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from lmkit.base.display import note
from lmkit.base.errors import UserError
from lmkit.base.manifest import MANIFEST
from lmkit.base.runs import BY_THE_CLOCK, read_jsonl
from lmkit.base.units import SECONDS, show_bytes, split_quantity
from lmkit.recipe import defaults, finetuning, recipe_file
from lmkit.recipe.finetuning import FinetuneRecipe, is_finetuning
from lmkit.recipe.pretraining import ParallelConfig, Recipe
from lmkit.recipe.recipe_file import find_recipe

EVALUATED = 8192  # tokens: enough to see whether evaluating disturbs training
SHORT = 80  # characters of a difference worth showing; lists are longer
# The command in a process that kills itself in a step, after its weights have moved and before anything is written.
CRASHING = """
import os, signal, sys
from lmkit.commands.main import main
moment = ("lmkit.step.done", ({},))
sys.addaudithook(lambda *heard: os.kill(os.getpid(), signal.SIGKILL) if heard == moment else None)
main()
"""
KINDS = {  # of a checkpoint's files, by the end of their names; the first that fits
    "optimizer state": ("training/optimizer.safetensors",),
    "weights": (".safetensors",),
    "state of the run": ("training/state.json",),
    "model and tokenizer files": ("",),
}


@dataclass(frozen=True)
class Compared:
    what: str
    equal: bool
    detail: str


class Failed(Exception):
    """One of the runs could not be made; what it said has been shown."""

    def __init__(self, code: int):
        self.code = code


def prove_resume(name: str, overrides: tuple[str, ...], steps: int, as_json: bool) -> int:
    """Returns the exit code: 0 where all is equal, 1 where something is not, else that of a run that failed. Raises
    UserError for mistakes in the recipe."""
    path = find_recipe(name)
    verb = "finetune" if is_finetuning(recipe_file.read_tree(path)[0]) else "pretrain"
    killed_in = steps // 2 + 1
    changes = _pretraining(path, overrides, steps) if verb == "pretrain" else _finetuning(path, overrides, steps)
    note(f"changed for the proof: {'; '.join(changes)}")
    with TemporaryDirectory(prefix="lmkit-doctor-") as folder:
        straight, interrupted, again = (Path(folder) / name for name in ("straight", "interrupted", "again"))
        note(f"running {steps} steps straight, in {folder}")
        try:
            _lmkit(verb, str(path), *overrides, *changes, "--out", str(straight))
            note(f"running them again, killed (SIGKILL) in step {killed_in}")
            recipe = str(straight / "recipe.yaml")  # resolved: what the machine decided is decided
            _lmkit(verb, recipe, "--out", str(interrupted), killed_in=killed_in)
            _lmkit(verb, "--resume", str(interrupted))
            comparisons = list(compare_runs(straight, interrupted))
            exact = all(c.equal for c in comparisons)
            steady = True
            if not exact:
                note("not equal; running straight once more, to see whether that is equal")
                _lmkit(verb, recipe, "--out", str(again))
                steady = all(c.equal for c in compare_runs(straight, again))
        except Failed as e:
            return e.code
        from_step = next((e["step"] for e in read_jsonl(interrupted / "events.jsonl") if e["event"] == "resume"), None)
    if as_json:
        facts = {
            "exact": exact,
            "deterministic": steady,
            "steps": steps,
            "killed_in": killed_in,
            "resumed_at": from_step,
        }
        print(
            json.dumps(facts | {"changes": changes, "compared": [asdict(c) for c in comparisons]}, ensure_ascii=False)
        )
        return int(not exact)
    wide = max(len(c.what) for c in comparisons)
    print(f"killed in step {killed_in}, resumed at step {from_step}, ended at step {steps}; beside the straight run:")
    print("\n".join(f" {'✓' if c.equal else '✗'} {c.what:<{wide}}  {c.detail}" for c in comparisons))
    print(_verdict(exact, steady))
    return int(not exact)


def _verdict(exact: bool, steady: bool) -> str:
    if exact:
        return "Exact: a run by this recipe, killed and resumed on this machine, is the uninterrupted one."
    if steady:
        return "Not exact, and two straight runs are equal: resuming changes this run. Please report it."
    return (
        "Not equal, but neither are two straight runs: something on this machine adds up in a changing order.\n"
        "  → train.device=cpu shows whether it is the GPU; train.compile=off whether it is compiled code"
    )


# ---------------------------------------------------------------- the two runs


def _rhythm(steps: int) -> str:
    """Returns how often to save, so that the last whole step before the kill is lost and taken again, where there are
    two."""
    return str(max(1, steps // 2 - 1))


def _budget(budget: str, steps: int) -> str:
    clock = split_quantity(budget)[1] in SECONDS
    if clock:
        note(f"train.budget {budget} is a time, by which no two runs are alike: steps take its place")
    return f"train.budget={steps} steps"


def _alone(parallel: ParallelConfig) -> list[str]:
    return [] if parallel == ParallelConfig() else ["parallel={}"]


def _pretraining(path: Path, overrides: tuple[str, ...], steps: int) -> list[str]:
    recipe = recipe_file.load_recipe(Recipe, path, overrides, defaults.expand_pretraining)
    every = _rhythm(steps)
    tokens = min(recipe.evaluate.tokens, max(EVALUATED, recipe.model.context))
    changes = [_budget(recipe.train.budget, steps), f"checkpoint.every={every}", f"evaluate.every={every}"]
    return [*changes, f"evaluate.tokens={tokens}", *_alone(recipe.parallel)]


def _finetuning(path: Path, overrides: tuple[str, ...], steps: int) -> list[str]:
    """Returns the changes to a recipe of fine-tuning. No rows are held out, since to score them all would take longer
    than the proof."""
    recipe = recipe_file.load_recipe(FinetuneRecipe, path, overrides, finetuning.expand_finetuning)
    if not recipe.task.in_steps:
        raise UserError(f"task {recipe.task.name} fits thresholds in one go: there is nothing to resume")
    changes = [_budget(recipe.train.budget, steps), f"checkpoint.every={_rhythm(steps)}", "data.validation=0"]
    return [*changes, *(["seeds=1"] if recipe.seeds > 1 else []), *_alone(recipe.parallel)]


def _lmkit(*arguments: str, killed_in: int | None = None) -> None:
    """Runs the command in a process of its own. Raises Failed where it does not end as it should."""
    code = ["-m", "lmkit"] if killed_in is None else ["-c", CRASHING.format(killed_in)]
    completed = subprocess.run([sys.executable, *code, *arguments], capture_output=True, text=True)
    if completed.returncode == (0 if killed_in is None else -signal.SIGKILL):
        return
    note(completed.stderr.rstrip())
    note(
        f"lmkit {' '.join(arguments)}\n  ended with code {completed.returncode}"
        + _killed(completed.returncode, killed_in)
    )
    raise Failed(completed.returncode if completed.returncode > 0 else 1)


def _killed(code: int, killed_in: int | None) -> str:
    if code == 0:
        return f", and was to be killed in step {killed_in}: it took fewer steps"
    return ": killed from outside; out of memory?" if code == -signal.SIGKILL else ""


# ---------------------------------------------------------------- what came of them


def compare_runs(one: Path, two: Path) -> Iterator[Compared]:
    """Compares the newest checkpoints and the logs of two runs."""
    folders = [(run / "latest").resolve() for run in (one, two)]
    names = sorted({str(f.relative_to(folder)) for folder in folders for f in folder.rglob("*") if f.is_file()})
    kind_of = lambda name: next(kind for kind, ends in KINDS.items() if name.endswith(ends))
    for kind in KINDS:
        # The manifest holds checksums of the others.
        names_of_kind = [name for name in names if kind_of(name) == kind and name != MANIFEST]
        if names_of_kind:
            yield _files(kind, names_of_kind, folders[0], folders[1])
    yield _metrics(one / "metrics.jsonl", two / "metrics.jsonl")


def _files(kind: str, names: list[str], one: Path, two: Path) -> Compared:
    differences = []
    for name in names:
        if not ((one / name).exists() and (two / name).exists()):
            differences.append(f"{name}: only one of them has it")
        elif name.endswith("state.json"):
            lines = recipe_file.differences(_state(one / name), _state(two / name))
            differences += [line if len(line) < SHORT else f"{line.partition(':')[0]}: differ" for line in lines]
        elif (one / name).read_bytes() != (two / name).read_bytes():
            differences.append(
                f"{name}: {_tensors(one / name, two / name) if name.endswith('.safetensors') else 'differs'}"
            )
    size = show_bytes(sum((one / name).stat().st_size for name in names if (one / name).exists()))
    shown = f"{names[0]}, {size}" if len(names) == 1 else f"{len(names)} files, {size}"
    equal = f"{shown}: equal" + ("" if kind == "state of the run" else " byte for byte")
    return Compared(kind, not differences, "; ".join(differences) if differences else equal)


def _state(file: Path) -> dict[str, Any]:
    return {key: value for key, value in json.loads(file.read_text()).items() if key not in BY_THE_CLOCK}


def _tensors(one: Path, two: Path) -> str:
    """Says how far two files of tensors are apart."""
    from safetensors.torch import load_file

    a, b = load_file(one), load_file(two)
    if a.keys() != b.keys() or any(a[k].shape != b[k].shape for k in a):
        return "holds other tensors"
    apart = {k: float((a[k].double() - b[k].double()).abs().max()) for k in a if not a[k].equal(b[k])}
    if not apart:
        return "equal tensors in other bytes"
    worst = max(apart, key=lambda k: apart[k])
    return f"{len(apart)} of {len(a)} tensors differ, by {apart[worst]:.3g} at most ({worst})"


def _metrics(one: Path, two: Path) -> Compared:
    if one.read_bytes() == two.read_bytes():
        return Compared(one.name, True, f"{sum(1 for _ in read_jsonl(one))} rows: equal byte for byte")
    a, b = list(read_jsonl(one)), list(read_jsonl(two))
    if len(a) != len(b):
        return Compared(one.name, False, f"{len(a)} rows and {len(b)}")
    first = next(i for i in range(len(a)) if a[i] != b[i])
    return Compared(
        one.name, False, f"step {a[first]['step']}: " + "; ".join(recipe_file.differences(a[first], b[first]))
    )
