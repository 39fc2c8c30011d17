"""What `lmkit data` shows: texts and rows as training reads them, their numbers, tokens, and what a step read."""

import hashlib
import json
import re
import shutil
import tempfile
import unicodedata
from collections import Counter
from collections.abc import Iterator
from itertools import groupby, islice
from pathlib import Path
from typing import Any

from lmkit.base.display import MarkedText
from lmkit.base.errors import UserError
from lmkit.base.order import batch_rows
from lmkit.base.runs import Run, find_run
from lmkit.base.units import brief
from lmkit.data.inputs import Problems
from lmkit.data.tables.table import Table, read_table
from lmkit.data.tokens.store import TokenStore
from lmkit.ops.corpus import read_texts
from lmkit.recipe.recipe_file import build_recipe
from lmkit.recipe.tasks import SECTIONS, TableConfig, section_of
from lmkit.report.record import RunRecord
from lmkit.text.pieces import UNSPACED
from lmkit.text.tokenizer import Tokenizer

SHARES = (0.05, 0.25, 0.5, 0.75, 0.95)  # of the texts, whose lengths are told
FULL_WIDTH = re.compile("[\u3000-\u303f\uff00-\uff0f\uff1a-\uff20]")  # punctuation of texts without blanks
AROUND = 60  # characters before and after what was searched for


def texts(patterns: list[str], column: str | None, separator: str | None, encoding: str) -> Iterator[tuple[str, str]]:
    """Yields place and text of the documents of files, or of a token store."""
    return read_texts(patterns, column or "text", Problems(), "lmkit data", separator, encoding)


def table_of(patterns: list[str], task: str, columns: dict[str, str | None]) -> Table:
    """Returns the rows as a task reads them. columns: by their keys of a recipe's `data`. Raises UserError for a task
    that is none, and DataError."""
    if task not in SECTIONS:
        raise UserError(f"--task {task}: not known\n  allowed: {', '.join(SECTIONS)}")
    keys = {"train": patterns} | {key: value for key, value in columns.items() if value is not None}
    return read_table(patterns, task, build_recipe(TableConfig, keys, {}, where="lmkit data"))


def examples_of(table: Table, task: str, model: str, number: int) -> Iterator[list[MarkedText]]:
    """Yields the first rows as a model reads them when it learns, in pieces, each with whether it is learnt."""
    from lmkit.pretrained import load
    from lmkit.tasks.table import TASKS
    from lmkit.tasks.task import Reading
    from lmkit.training.finetune import render

    if task not in TASKS:
        raise UserError(f"--task {task}: learns whole texts, and masks nothing\n  → leave out --model")
    loaded = load(model)
    learner = TASKS[task].for_training(section_of(task), table, Reading.of(loaded, None))
    for example in islice(learner.examples(table), number):
        yield render(example, loaded.needs_tokenizer(), table.rows[example["row"]])


def matches(documents: Iterator[tuple[str, str]], pattern: str, most: int) -> Iterator[tuple[str, list[MarkedText]]]:
    """Yields place and surroundings of what a regular expression finds first in each text, at most so many. Raises
    UserError for one that is none."""
    try:
        expression = re.compile(pattern)
    except re.error as e:
        raise UserError(f"{pattern!r}: no regular expression: {e}") from None
    hits = ((place, text, match) for place, text in documents if (match := expression.search(text)))
    for place, text, match in islice(hits, most):
        before, after = text[max(0, match.start() - AROUND) : match.start()], text[match.end() : match.end() + AROUND]
        line = lambda part: brief(part, 10 * AROUND)
        yield place, [(line(before), False), (line(match[0]), True), (line(after), False)]


def text_numbers(documents: Iterator[tuple[str, str]]) -> dict[str, Any]:
    """Returns numbers of texts: how many, how long, how many are doubled, and the shares of their scripts. Words are
    counted between blanks; of scripts without blanks all characters are `unspaced`, and no words."""
    lengths, words, unspaced, scripts, doubles = list[int](), 0, 0, Counter[str](), Counter[bytes]()
    longest = ("", 0)
    for place, text in documents:
        lengths.append(len(text))
        spaced, signs = UNSPACED.subn(" ", text)
        words, unspaced = words + len(FULL_WIDTH.sub(" ", spaced).split()), unspaced + signs
        scripts.update(script_of(c) for c in text[:2000])  # enough to tell, and quick
        doubles[hashlib.sha1(text.encode(errors="surrogatepass")).digest()] += 1
        longest = max(longest, (place, len(text)), key=lambda one: one[1])
    ordered = sorted(lengths)
    letters = {name: n for name, n in scripts.most_common() if name != "other"}
    return {
        "texts": len(lengths), "characters": sum(lengths), "words": words,
        "unspaced": unspaced,
        "lengths": {f"{share:.0%}": ordered[int((len(ordered) - 1) * share)] for share in SHARES},
        "longest": {"place": longest[0], "characters": longest[1]},
        "doubled": sum(n - 1 for n in doubles.values()),
        "scripts": {name: n / (sum(letters.values()) or 1) for name, n in letters.items()},
    }  # fmt: skip


def script_of(character: str) -> str:
    """Returns the script of a letter by its name in Unicode, as `latin` or `cjk`; `other` for what is no letter."""
    if not character.isalpha():
        return "other"
    return unicodedata.name(character, "other").split()[0].split("-")[0].lower()


def bytes_per_token(tokenizer: Tokenizer, text: str) -> dict[str, dict[str, float]]:
    """Returns, of each script in a text, its bytes, tokens, and bytes per token; what is no letter counts to the script
    before it. Runs of one script are encoded alone, so their tokens may be a few more than those of the text."""
    at, scripts = "other", list[str]()
    for c in text:
        at = at if script_of(c) == "other" else script_of(c)
        scripts.append(at)
    counts: dict[str, list[int]] = {}
    for script, group in groupby(zip(scripts, text, strict=True), key=lambda pair: pair[0]):
        part = "".join(c for _, c in group)
        total = counts.setdefault(script, [0, 0])
        total[0] += len(part.encode())
        total[1] += len(tokenizer.encode(part))
    return {name: {"bytes": b, "tokens": t, "bytes_per_token": b / max(t, 1)} for name, (b, t) in counts.items()}


def document_of(path: Path, split: str, number: int) -> list[int]:
    """Returns the tokens of a document of a token store. Raises UserError for a number that it does not have."""
    part = TokenStore(path).split(split)
    if not 0 <= number < part.num_documents:
        raise UserError(f"document {number}: {path} has {part.num_documents:,} of {split}, counted from 0")
    return part.document(number).tolist()


def rows_of_step(run: Path, step: int) -> tuple[list[list[MarkedText]], list[str]]:
    """Returns what a step of a run read: its rows in pieces, each with whether it is learnt; and the documents of a
    pretraining run, or the places of the rows of a table, that they were made of. Steps count from 1.

    It is computed from the recipe, so the data must be what they were. Raises UserError for a step that is none."""
    from lmkit.recipe import recipe_file
    from lmkit.recipe.finetuning import FinetuneRecipe, expand_finetuning, is_finetuning
    from lmkit.training import finetuning_run
    from lmkit.training.finetune import render

    run = find_run(run)
    tree, lines = recipe_file.read_run(run / "recipe.yaml")
    last = int(max(RunRecord(run).columns.get("step", ()), default=0))
    if not 1 <= step <= last:
        raise UserError(f"step {step}: {run} has the steps 1 to {last:,}")
    if not is_finetuning(tree):
        return _pretraining_rows(run, tree, lines, step)
    recipe = recipe_file.build_recipe(FinetuneRecipe, tree, lines, expand_finetuning, str(run / "recipe.yaml"))
    with tempfile.TemporaryDirectory() as home:
        if (run / "tokenizer").is_dir():
            shutil.copytree(run / "tokenizer", Path(home) / "tokenizer")
        f = finetuning_run.rebuilt(recipe, Run(Path(home)))
        numbers = _numbers_of_step(f.job, run, step)
        examples = [f.job.work.rows[i] for i in numbers]
        rows = [f.train.rows[e["row"]] if "row" in e else {} for e in examples]
        pieces = [render(e, f.job.tokenizer, row, 200) for e, row in zip(examples, rows, strict=True)]
        return pieces, [f.train.places[e["row"]] for e in examples if "row" in e]


def _pretraining_rows(
    run: Path, tree: dict, lines: dict[str, str], step: int
) -> tuple[list[list[MarkedText]], list[str]]:
    from lmkit.recipe import recipe_file
    from lmkit.recipe.defaults import expand_pretraining
    from lmkit.recipe.pretraining import Recipe
    from lmkit.training import pretraining_run
    from lmkit.training.job import build_pretraining

    recipe = recipe_file.build_recipe(Recipe, tree, lines, expand_pretraining, str(run / "recipe.yaml"))
    recipe, store = pretraining_run.settle(recipe)
    job = build_pretraining(recipe, store)
    examples = [job.work.rows[i] for i in _numbers_of_step(job, run, step)]
    decode = lambda ids: store.tokenizer.decode(ids.tolist(), skip_special=False)
    parts = lambda e: [e[key] for key in ("tokens", "source", "target") if key in e]
    pieces = [[(decode(part), False) for part in parts(example)] for example in examples]
    documents = dict.fromkeys(int(d) for e in examples for d in e["documents"])
    return pieces, [f"document {d}" for d in documents]


def _numbers_of_step(job: Any, run: Path, step: int) -> list[int]:
    """Returns the numbers of the rows that a step of the run read."""
    state = run / "latest/training/state.json"
    job.state.passed_over = json.loads(state.read_text()).get("passed_over", []) if state.is_file() else []
    rows = batch_rows(
        job.batch_of(step - 1), job.batch_rows, len(job.work.rows), job.recipe.train.seed, job.work.mixture
    )
    return [i for _, i in rows]
