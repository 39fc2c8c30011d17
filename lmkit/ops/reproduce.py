"""`lmkit runs reproduce`: the commands that make a run again, and what is not as it was."""

import json
import shlex
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lmkit.base.environment import PACKAGE, environment, read_environment
from lmkit.base.errors import UserError
from lmkit.base.runs import find_run, read_jsonl
from lmkit.base.units import SECONDS, split_quantity
from lmkit.data.inventory import changed
from lmkit.recipe import defaults, finetuning, recipe_file
from lmkit.recipe.finetuning import FinetuneRecipe, is_finetuning
from lmkit.recipe.pretraining import Recipe
from lmkit.text.tokenizer_files import load_tokenizer

MACHINE = ("cpu", "cores", "gpus", "cuda")
CPU_WHEELS = "https://download.pytorch.org/whl/cpu"


@dataclass(frozen=True)
class Difference:
    what: str
    then: str
    now: str


@dataclass(frozen=True)
class Recipes:
    """What a run's recipe.yaml says, and what of that cannot be had any more."""

    verb: str  # pretrain or finetune
    tree: dict[str, Any]
    differences: list[Difference]


def print_reproduction(path: Path, as_json: bool) -> None:
    """Prints commands and differences. Raises UserError where there is no run, ModelError where it kept no record."""
    run = _place(find_run(path))
    first_run = min([p.parent for p in run.glob("seed-*/environment.json")], default=run)  # several seeds began alike
    before, now = read_environment(first_run), _environment_now()
    recipe = _read_recipe(run, before)
    differences = [*_software(before, now), *_machine(before, now), *recipe.differences]
    state = _status(run)
    commands = [*_checkout(before, now), *_install(before, now), _again(run, recipe, before, now, state)]
    doubts = _doubts(run, recipe, before, now)
    exact = not differences and not doubts
    if as_json:
        facts = {"run": str(run), "commands": commands, "differences": [asdict(d) for d in differences]}
        print(json.dumps(facts | {"doubts": doubts, "exact": exact}, ensure_ascii=False))
        return
    print(f"{run}: " + (f"{state['state']} at step {state['step']}" if "step" in state else "several seeds") + "\n")
    print("\n".join(f"  {command}" for command in commands))
    if differences:
        wide = max(len(d.what) for d in differences)
        print("\nNot as it was:\n" + "\n".join(f"  {d.what:<{wide}}  {d.then} → {d.now}" for d in differences))
    if doubts:
        print("\nThe figures may differ all the same:\n" + "\n".join(f"  {doubt}" for doubt in doubts))
    if exact:
        print("\nNothing differs: metrics.jsonl and weights come out the same, byte for byte.")


def _place(run: Path) -> Path:
    """Returns where a run lies, whatever links lead there, since `latest` will mean another one; relative to the
    working directory where it lies below that."""
    run, here = run.resolve(), Path.cwd()
    return run.relative_to(here) if here in run.parents else run


def _environment_now() -> dict[str, Any]:
    from lmkit.training.precision import torch_environment  # here: `lmkit runs` does not wait for torch

    return environment() | torch_environment()


def _status(run: Path) -> dict[str, Any]:
    file = run / "status.json"
    return json.loads(file.read_text()) if file.exists() else {}


def _read_recipe(run: Path, before: dict[str, Any]) -> Recipes:
    tree, lines = recipe_file.read_run(run / "recipe.yaml")
    verb = "finetune" if is_finetuning(tree) else "pretrain"
    where = str(run / "recipe.yaml")
    recipe: Recipe | FinetuneRecipe
    try:
        if verb == "finetune":
            recipe = recipe_file.build_recipe(FinetuneRecipe, tree, lines, finetuning.expand_finetuning, where)
        else:
            recipe = recipe_file.build_recipe(Recipe, tree, lines, defaults.expand_pretraining, where)
        differences = [Difference("data", *line.split(": ", 1)) for line in changed(before.get("files", []), recipe)]
        return Recipes(verb, tree, differences + _tokenizer(recipe, before))
    except UserError as e:
        return Recipes(verb, tree, [Difference("recipe", "read by the lmkit of then", f"not by this one: {e}")])


def _tokenizer(recipe: Recipe | FinetuneRecipe, before: dict[str, Any]) -> list[Difference]:
    """Compares the tokenizer that the recipe names; others are made of the data."""
    path = recipe.tokenizer.path
    if path is None or "tokenizer" not in before:
        return []
    try:
        same = load_tokenizer(path).fingerprint == before["tokenizer"]
    except UserError:
        return [Difference("tokenizer", path, "missing or unreadable")]
    return [] if same else [Difference("tokenizer", path, "another one")]


def _software(before: dict[str, Any], now: dict[str, Any]) -> list[Difference]:
    differences = [Difference(p, str(v), str(now["versions"].get(p))) for p, v in _other_versions(before, now).items()]
    if before.get("python") != now["python"]:
        differences.append(Difference("python", str(before.get("python")), now["python"]))
    code = tuple((e.get("git"), e.get("git_changes")) for e in (before, now))
    if code[0] != code[1]:
        differences.append(Difference("code", *(_code(*c) for c in code)))
    return differences


def _other_versions(before: dict[str, Any], now: dict[str, Any]) -> dict[str, str]:
    """Returns the packages whose version is another now, with the version of then."""
    return {p: v for p, v in before.get("versions", {}).items() if v != now["versions"].get(p)}


def _code(commit: str | None, changes: str | None) -> str:
    if commit is None:
        return "an installed package"
    return commit[:12] + (f" with changes of its own ({changes[:8]})" if changes else "")


def _machine(before: dict[str, Any], now: dict[str, Any]) -> list[Difference]:
    show = lambda value: ", ".join(value) or "none" if isinstance(value, list) else str(value)
    known = [key for key in MACHINE if key in before]
    return [Difference(key, show(before[key]), show(now[key])) for key in known if before[key] != now[key]]


# ---------------------------------------------------------------- commands


def _checkout(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    commit = before.get("git")
    if commit is None or now["git"] is None or commit == now["git"]:
        return []
    return [shlex.join(["git", "-C", str(PACKAGE.parent), "checkout", commit])]


def _install(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    wanted = {p: v for p, v in _other_versions(before, now).items() if v and not (p == "lmkit" and now["git"])}
    if not wanted:
        return []
    index = ["--extra-index-url", CPU_WHEELS] if wanted.get("torch", "").endswith("+cpu") else []
    return [shlex.join(["pip", "install", *index, *(f"{p}=={v}" for p, v in wanted.items())])]


def _again(run: Path, recipe: Recipes, before: dict[str, Any], now: dict[str, Any], state: dict[str, Any]) -> str:
    numbers = ("", *(f"-{n}" for n in range(2, 10_000)))
    out = next(p for n in numbers if not (p := run.with_name(f"{run.name}-again{n}")).exists())
    command = ["lmkit", recipe.verb, str(run / "recipe.yaml")]
    if _by_the_clock(recipe) and state.get("step"):
        command.append(f"train.budget={state['step']} steps")
    command += ["--out", str(out)]
    if before.get("processes", 1) > 1:
        command += ["--processes", str(before["processes"])]
    threads = before.get("threads", now["threads"])
    return (f"OMP_NUM_THREADS={threads} " if threads != now["threads"] else "") + shlex.join(command)


def _by_the_clock(recipe: Recipes) -> bool:
    return split_quantity(recipe.tree["train"]["budget"])[1] in SECONDS


def _doubts(run: Path, recipe: Recipes, before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Returns what no command can bring back."""
    doubts = []
    if _by_the_clock(recipe):
        budget = recipe.tree["train"]["budget"]
        doubts.append(f"its budget was a time ({budget}): its schedule went by the clock, the command's goes by steps")
    if before.get("git_changes") and before["git_changes"] != now["git_changes"]:
        doubts.append(f"its code had changes that commit {before['git'][:12]} does not hold")
    if str(before.get("device", "cpu")) != "cpu":
        doubts.append("a GPU adds up in an order of its own; as a rule the same GPU does the same again")
    for event in read_jsonl(run / "events.jsonl"):
        if event["event"] == "recipe changed":
            doubts.append(f"its recipe changed at step {event['step']}: {'; '.join(event['changes'])}")
    return doubts
