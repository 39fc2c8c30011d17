"""lmkit check MODEL|DATA: the checks of `lmkit.checks` on a model, on texts that it writes, or on a corpus.

`--json` prints one object a check: target, check, summary, counts, shares (each {value, low, high}: a 95% interval,
null where it is undefined), examples, blind_spots, and what could not be read (skipped: what, how often)."""

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lmkit.base.display import note, waiting, write
from lmkit.base.errors import DataError, ModelError, UserError
from lmkit.base.runs import model_folder
from lmkit.checks.contamination import check_contamination
from lmkit.checks.memorisation import check_memorisation
from lmkit.checks.pairs import check_pairs, read_pairs
from lmkit.checks.personal import check_personal
from lmkit.checks.result import Result, percent
from lmkit.checks.toxic import check_words, read_words
from lmkit.data.documents import read_documents, unread_advice
from lmkit.data.encodings import settle_encodings
from lmkit.data.inputs import Problems, list_inputs
from lmkit.data.tokens.store import TokenStore, is_store
from lmkit.model.formats.model_card import write_limit
from lmkit.pretrained import Pretrained, load
from lmkit.recipe import recipe_file as recipes
from lmkit.recipe.pretraining import DataConfig


@dataclass(frozen=True)
class Asked:
    """The checks that are asked for."""

    memorised: Path | None = None
    against: list[str] | None = None
    personal: bool = False
    pairs: str | None = None
    toxic: Path | None = None


@dataclass(frozen=True)
class Reading:
    """How the texts of a corpus are read, and those of evaluation files."""

    text: str = "text"
    against_text: str = "text"
    separator: str | None = None
    encoding: str = "utf-8"


@dataclass(frozen=True)
class Writing:
    """What a model is given, and how much it writes."""

    samples: int = 200
    prompt_tokens: int = 32
    max_tokens: int = 32
    seed: int = 0
    allow_pickle: bool = False


def run_checks(
    targets: list[str], asked: Asked, reading: Reading, writing: Writing, as_json: bool, card: bool = False
) -> None:
    """Prints the result of each check that is asked for.

    card: writes their summaries into the model's card. Raises UserError where no check is asked for, or one that is not
    for what `targets` names, and what the checks raise."""
    problems = Problems()
    loaded = load(targets[0], writing.allow_pickle) if _is_model(targets) else None
    checks = _of_model(loaded, asked, writing, problems) if loaded else _of_corpus(targets, asked, reading, problems)
    if card and (loaded is None or loaded.folder.is_file()):
        raise UserError(f"--card: {targets[0]} is no folder of a model\n  → leave it out")
    if not checks:
        raise UserError("nothing to check is named\n  → for example --personal; `lmkit check --help` lists all checks")
    for check in checks:
        with waiting("checking"):
            result = check()
        _show(" ".join(targets), result, problems, as_json)
        if card and loaded:
            note(f"written into {write_limit(loaded.folder, result.check, result.summary)}")


def _is_model(targets: list[str]) -> bool:
    try:
        model_folder(targets[0])
    except ModelError:
        return False
    if len(targets) > 1:
        raise UserError(f"{targets[0]} is a model\n  → name one model, or the files of a corpus")
    return True


def _of_model(
    loaded: Pretrained, asked: Asked, writing: Writing, problems: Problems
) -> list[Callable[[], Result]]:  # fmt: skip
    if asked.against:
        raise UserError("--against looks for evaluation texts in a corpus\n  → name the corpus instead of a model")
    checks = list[Callable[[], Result]]()
    if store := asked.memorised:
        sizes = (writing.prompt_tokens, writing.max_tokens, writing.samples, writing.seed)
        checks.append(lambda: check_memorisation(loaded, TokenStore(store), *sizes))
    if file := asked.pairs:
        checks.append(lambda: check_pairs(loaded, read_pairs(file, problems)))
    return checks + _of_texts(lambda: _samples(loaded, writing), "samples", asked)


def _of_corpus(
    targets: list[str], asked: Asked, reading: Reading, problems: Problems
) -> list[Callable[[], Result]]:  # fmt: skip
    if option := next((name for name in ("memorised", "pairs") if getattr(asked, name)), None):
        raise UserError(f"--{option} checks a model, and {targets[0]} is none\n  → name a run or a model's folder")
    checks = list[Callable[[], Result]]()
    if files := asked.against:
        read = lambda: _texts(files, reading.against_text, reading, problems)
        checks.append(lambda: check_contamination(_texts(targets, reading.text, reading, problems), read()))
    return checks + _of_texts(lambda: _texts(targets, reading.text, reading, problems), "documents", asked)


def _of_texts(
    read: Callable[[], Iterator[tuple[str, str]]], unit: str, asked: Asked
) -> list[Callable[[], Result]]:  # fmt: skip
    """Returns the checks of texts, whether they were written by a model or stand in a corpus."""
    checks = list[Callable[[], Result]]()
    if asked.personal:
        checks.append(lambda: check_personal(read(), unit))
    if file := asked.toxic:
        checks.append(lambda: check_words(read(), read_words(file), unit))
    return checks


def _samples(loaded: Pretrained, writing: Writing) -> Iterator[tuple[str, str]]:
    """Yields texts that the model writes from nothing, at temperature 1."""
    texts = loaded.generate([""], writing.samples, max_tokens=writing.max_tokens, seed=writing.seed)
    return ((f"sample {number}", text.text) for number, text in enumerate(texts, 1))


def _texts(patterns: list[str], column: str, reading: Reading, problems: Problems) -> Iterator[tuple[str, str]]:
    """Yields (place, text) of the documents of files, or of a token store. Raises DataError where there are none."""
    if len(patterns) == 1 and is_store(patterns[0]):
        store = TokenStore(patterns[0])
        split = store.split("train")
        if not split.num_documents:
            raise DataError(f"{store.path}: holds no training document")
        for number in range(split.num_documents):
            yield f"{patterns[0]} document {number}", store.tokenizer.decode(split.document(number).tolist())
        return
    keys: dict[str, Any] = {"train": patterns, "text": column, "separator": reading.separator}
    config = recipes.build_recipe(DataConfig, keys | {"encoding": reading.encoding}, {}, where="lmkit check")
    number = 0
    for item in settle_encodings(list_inputs(patterns, None, config)):
        for document in read_documents(item, config, problems):
            number += 1
            yield f"{item.name}:{document.line}", document.text
    if not number:
        raise DataError(f"{', '.join(patterns)}: there is no text to check{unread_advice(problems)}")


def _show(target: str, result: Result, problems: Problems, as_json: bool) -> None:
    for kind, n in problems.counts.items():
        note(f"while reading: {n:,} {kind}, like {problems.examples[kind][0]}")
    if as_json:
        shares = {"shares": {name: share._asdict() for name, share in result.shares.items()}}
        facts = {"target": target} | asdict(result) | shares | {"skipped": dict(problems.counts)}
        print(json.dumps(facts, ensure_ascii=False))
    else:
        lines = [f"{target} --{result.check}", f"  {result.summary}"]
        lines += ["  counts       " + ", ".join(f"{name} {n:,}" for name, n in result.counts.items())]
        lines += [f"  {name:28} {percent(share)}" for name, share in result.shares.items()]
        lines += [f"  example      {example}" for example in result.examples]
        lines += [f"  cannot see   {blind}" for blind in result.blind_spots]
        write("\n".join(lines) + "\n")
    problems.counts.clear()
    problems.examples.clear()
