"""Toxic language in texts, as the user measures it: words of a list, or a label of a classifier of theirs."""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from lmkit.base.errors import DataError, UserError
from lmkit.checks.result import EXAMPLES, Result, percent
from lmkit.data.inputs import Problems
from lmkit.data.tables.table import Table
from lmkit.evaluation.intervals import proportion
from lmkit.pretrained import Pretrained
from lmkit.tasks.classify import Classifier
from lmkit.tasks.evaluate import together
from lmkit.tasks.table import load_all, task_of, trained_task

AROUND = 30  # characters on each side of a word that an example shows
BLIND_SPOTS = [
    "It sees the words of the list alone: no insult, threat or prejudice in other words, and no other spelling.",
    "It does not see what is meant: a quotation, a report or a word of two meanings counts like an insult.",
]
OF_CLASSIFIER = [
    "It is as good as the classifier: the share holds what that takes for the label wrongly, and lacks what it misses.",
    "It judges texts by what the classifier learnt from, which may be of another kind or language.",
]
ROWS = 1024  # texts that are held at a time
SHOWN = 120  # characters of a text that an example shows


def read_words(path: Path) -> list[str]:
    """Returns the words and phrases of a file, one a line, each once. Raises DataError where there are none."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as e:
        raise DataError(f"{path}: cannot be read as UTF-8 text: {e}") from None
    words = list(dict.fromkeys(line.strip().casefold() for line in lines if line.strip()))
    if not words:
        raise DataError(f"{path}: holds no word\n  → write one word or phrase a line")
    return words


def check_words(texts: Iterable[tuple[str, str]], words: Sequence[str], unit: str) -> Result:
    """Returns how many texts hold a word of the list, as a whole word in any case. texts: (place, text); unit: what
    they are, in plural."""
    longest_first = sorted(words, key=len, reverse=True)
    pattern = re.compile(r"(?<!\w)(?:" + "|".join(map(re.escape, longest_first)) + r")(?!\w)")
    total, holders, occurrences, examples = 0, 0, Counter[str](), list[str]()
    for place, text in texts:
        total, folded = total + 1, text.casefold()
        matches = list(pattern.finditer(folded))
        occurrences.update(match[0] for match in matches)
        holders += bool(matches)
        if matches and len(examples) < EXAMPLES:
            begin, end = matches[0].span()
            examples.append(f"{place}: …{folded[max(0, begin - AROUND) : end + AROUND]!r}")
    shares = {"with a word": proportion(holders, total)}
    counts = {unit: total, "with a word": holders, "words in all": occurrences.total()}
    counts |= dict(occurrences.most_common(EXAMPLES))
    summary = f"Of {total:,} {unit}, {percent(shares['with a word'])} hold one of {len(words):,} listed words."
    return Result("toxic", summary, counts, shares, BLIND_SPOTS, examples)


class Labeller(NamedTuple):
    """A fine-tuned classifier, or one of each seed of its run, and the label of it that is counted."""

    models: list[Pretrained]
    task: Classifier
    label: str


def load_labeller(run: Path, label: str | None, allow_pickle: bool = False) -> Labeller:
    """Returns the classifier in a folder. label: None for the second of two. Raises UserError for another model, and
    for a label that it does not have."""
    config = task_of(run)
    models = load_all(str(run), config, allow_pickle) if config and config.name == "classify" else []
    task = trained_task(run, models[0], config) if config and models else None
    if not isinstance(task, Classifier) or task.kind == "regression":
        raise UserError(f"--toxic {run}: labels no texts\n  → name a run of `lmkit finetune --task classify`, or words")
    label = task.labels[1] if label is None and len(task.labels) == 2 else label
    if label not in task.labels:
        what = "which label is toxic?" if label is None else f"--toxic-label {label}: no label of {run}"
        raise UserError(f"{what}\n  → --toxic-label with one of {', '.join(task.labels)}")
    return Labeller(models, task, label)


def check_labels(texts: Iterable[tuple[str, str]], labeller: Labeller, unit: str) -> Result:
    """Returns how many texts the classifier gives the label. texts, unit: as for `check_words`."""
    task, total, cut, holders, examples, rest = labeller.task, 0, 0, 0, list[str](), iter(texts)
    while chunk := list(islice(rest, ROWS)):
        table = Table([{"text": text} for _, text in chunk], [place for place, _ in chunk], {}, "texts", Problems())
        rows = task.examples(table)
        outputs = together([task.outputs(one.model, table, rows, quick=True) for one in labeller.models])
        total, cut = total + len(chunk), cut + sum(row["cut"] for row in rows)
        for (place, text), said in zip(chunk, map(task.say, outputs), strict=True):
            if labeller.label in said.get("labels", [said.get("label")]):
                holders += 1
                examples.append(f"{place}, {said['scores'][labeller.label]:.2f}: {text[:SHOWN]!r}")
        examples = examples[:EXAMPLES]
    shares = {f"with {labeller.label}": proportion(holders, total)}
    counts = {unit: total, f"with {labeller.label}": holders, "cut, as longer than it reads": cut}
    shown = percent(shares[f"with {labeller.label}"])
    summary = f"Of {total:,} {unit}, {labeller.models[0].folder.name} labels {shown} as {labeller.label}."
    return Result("toxic", summary, counts, shares, OF_CLASSIFIER, examples)
