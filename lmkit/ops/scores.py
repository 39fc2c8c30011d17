"""What `lmkit eval` does: scores what its settings say, keeps them in the JSON, and does the same again."""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lmkit.base.display import note
from lmkit.base.errors import UserError
from lmkit.ops import benchmarks, learning_curve, text_scores

CLOSE = 1e-6  # relative difference that is none: that of sums in another order
SHOWN = 5  # most differences that are listed
ROLES = ("text", "pair", "label", "target", "encoding")
OPTIONS: dict[str, Any] = {  # of `lmkit eval`, with what they are where they are left out
    "models": None, "data": None, "task": None, "tasks": None, "tasks_from": None, "shots": None, "limit": None,
    "apply_chat_template": None, "by": None, "worst": 0, "curve": False, "stride": None, "pll_tokens": None,
    "text": None, "pair": None, "label": None, "target": None, "separator": None, "encoding": None,
    "text_files": None, "allow_pickle": False, "changes": {},
}  # fmt: skip
OF_TASKS = ("tasks_from", "shots", "limit", "apply_chat_template")
OF_TEXTS = ("stride", "pll_tokens", "separator", "text_files")


def evaluate(settings: dict[str, Any], as_json: bool) -> dict[str, Any]:
    """Prints scores, as a table or as one JSON object that holds the settings too. Returns what stands in the object.

    settings: the options of the command by name, but those that say how it shows its results; `changes`: of the task's
    settings. Raises UserError for options that do not fit together."""
    models, data, tasks = settings["models"] or [], settings["data"] or [], settings["tasks"] or []
    for given, name in ((tasks, "--tasks"), (settings["curve"], "--curve")):
        if given and data:
            raise UserError(f"{name} and --data: each says what to score\n  → leave one of them out")
    if settings["curve"]:
        return _print(*learning_curve.learning_curve(models), settings, as_json)
    if tasks:
        if len(models) != 1:
            raise UserError("--tasks: scores one model\n  → lmkit eval MODEL --tasks NAME")
        options: dict[str, Any] = {key: settings.get(key) for key in (*OF_TASKS, "by", "worst", "allow_pickle")}
        named = [name for part in tasks for name in part.split(",")]
        return _print(*benchmarks.evaluate_benchmarks(models[0], named, **options), settings, as_json)
    if idle := [name for name in OF_TASKS if settings.get(name) is not None]:
        raise UserError(f"--{idle[0].replace('_', '-')}: is for --tasks\n  → leave it out")
    if not models or not data:
        raise UserError("what to score?\n  → lmkit eval MODEL --data FILE, or lmkit eval MODEL --tasks basics")
    return text_scores.evaluate_models(
        models, data, settings["task"], {role: settings[role] for role in ROLES}, as_json, settings["allow_pickle"],
        settings["changes"], settings["by"], settings["worst"], settings, **{key: settings[key] for key in OF_TEXTS},
    )  # fmt: skip


def evaluate_again(file: Path, as_json: bool) -> None:
    """Scores with the settings in a JSON object that `evaluate` printed, and notes what is not as it was.

    Raises UserError for a file that holds no such object."""
    try:
        before = json.loads(file.read_text())
        settings = before["settings"]
    except (OSError, ValueError, TypeError, KeyError) as e:
        raise UserError(
            f"--again {file}: holds no scores ({type(e).__name__})\n  → a file of `lmkit eval ... --json`"
        ) from None
    after = json.loads(json.dumps(evaluate(settings, as_json)))
    differences = list(_differences({k: v for k, v in before.items() if k != "settings"}, after))
    listed = "".join(f"\n  {line}" for line in differences[:SHOWN])
    more = f"\n  and {len(differences) - SHOWN:,} more" if len(differences) > SHOWN else ""
    same = f"all is as in {file}"
    note(f"not as in {file}: {len(differences):,} values{listed}{more}" if differences else same)


def _print(facts: dict[str, Any], text: str, settings: dict[str, Any], as_json: bool) -> dict[str, Any]:
    print(json.dumps(facts | {"settings": settings}, default=str) if as_json else text)
    return facts


def _differences(before: Any, after: Any, where: str = "") -> Iterator[str]:
    if isinstance(before, dict) and isinstance(after, dict):
        for key in before | after:
            yield from _differences(before.get(key), after.get(key), f"{where}.{key}" if where else key)
    elif isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        for i, (one, other) in enumerate(zip(before, after, strict=True)):
            yield from _differences(one, other, f"{where}[{i}]")
    elif isinstance(before, float) and isinstance(after, float):
        if not math.isclose(before, after, rel_tol=CLOSE, abs_tol=CLOSE):
            yield f"{where}: {before:g} → {after:g}"
    elif before != after:
        yield f"{where}: {before!r} → {after!r}"
