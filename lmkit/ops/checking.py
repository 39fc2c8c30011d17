"""lmkit check MODEL|DATA: the checks of `lmkit.checks` on a model, on texts that it writes, or on a corpus.

`--json` prints one object a check: target, check, summary, counts, shares (each {value, low, high}: a 95% interval,
null where it is undefined), examples, blind_spots, and what could not be read (skipped: what, how often)."""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from lmkit.base.display import Meter, note, waiting, write
from lmkit.base.errors import ModelError, UserError
from lmkit.base.runs import model_folder
from lmkit.checks.bbq import check_questions
from lmkit.checks.contamination import check_contamination
from lmkit.checks.memorisation import check_memorisation
from lmkit.checks.pairs import check_pairs, pairs_of, read_records_of_bias
from lmkit.checks.personal import check_personal
from lmkit.checks.result import Result, percent
from lmkit.checks.toxic import Labeller, check_labels, check_words, load_labeller, read_words
from lmkit.data.inputs import Problems
from lmkit.data.tokens.store import TokenStore
from lmkit.generation.engine import complete
from lmkit.generation.sampling import SamplingConfig
from lmkit.model.formats.model_card import write_limit
from lmkit.ops.corpus import note_problems, read_texts
from lmkit.pretrained import Pretrained, load


@dataclass(frozen=True)
class Options:
    """Which checks are asked for, and how; the page docs/check.md explains each field."""

    memorised: Path | None = None
    against: list[str] | None = None
    personal: bool = False
    pairs: str | None = None
    toxic: Path | None = None
    toxic_label: str | None = None
    samples: int = 200
    prompt_tokens: int = 32
    max_tokens: int = 32
    seed: int = 0
    text: str = "text"
    against_text: str = "text"
    separator: str | None = None
    encoding: str = "utf-8"
    card: bool = False


def run_checks(targets: list[str], options: Options, as_json: bool, allow_pickle: bool) -> None:
    """Prints the result of each check that is asked for. Raises UserError where none is, or one that is not for what
    `targets` names, and what the checks raise."""
    problems = Problems()
    loaded = load(targets[0], allow_pickle) if _is_model(targets) else None
    for name in ("against",) if loaded else ("memorised", "pairs", "card"):
        if getattr(options, name):
            raise UserError(f"--{name} is for a {'corpus' if loaded else 'model'}, and {targets[0]} is none")
    if options.card and loaded and loaded.folder.is_file():
        raise UserError(f"--card: {targets[0]} is a file, which has no README.md\n  → leave it out")
    if not (options.memorised or options.against or options.personal or options.pairs or options.toxic):
        raise UserError("nothing to check is named\n  → for example --personal; `lmkit check --help` lists all checks")
    labeller = None
    if options.toxic and _is_model([str(options.toxic)]):
        labeller = load_labeller(options.toxic, options.toxic_label, allow_pickle)
    elif options.toxic_label:
        raise UserError("--toxic-label: is for --toxic with a classifier\n  → leave it out, or name its run")
    for result in _results(targets, loaded, options, problems, labeller):
        _show(" ".join(targets), result, problems, as_json)
        if options.card and loaded:
            note(f"written into {write_limit(loaded.folder, result.check, result.summary)}")


def _is_model(targets: list[str]) -> bool:
    try:
        model_folder(targets[0])
    except ModelError:
        return False
    if len(targets) > 1:
        raise UserError(f"{targets[0]} is a model\n  → name one model, or the files of a corpus")
    return True


def _results(
    targets: list[str], loaded: Pretrained | None, o: Options, problems: Problems, labeller: Labeller | None
) -> Iterator[Result]:
    unit = "samples" if loaded else "documents"
    read = lambda: _samples(loaded, o) if loaded else _texts(targets, o.text, o, problems)
    if loaded and o.memorised:
        yield check_memorisation(loaded, TokenStore(o.memorised), o.prompt_tokens, o.max_tokens, o.samples, o.seed)
    if loaded and o.pairs:
        form, records = read_records_of_bias(o.pairs, problems)
        note(f"{o.pairs}: read as {form}, {len(records):,} records")
        with waiting(f"{len(records):,} records"):
            if form == "BBQ":
                result = check_questions(loaded, records, problems)
            else:
                result = check_pairs(loaded, pairs_of(records, problems))
        yield result
    if o.against:
        yield check_contamination(read(), _texts(o.against, o.against_text, o, problems))
    if o.personal:
        yield check_personal(read(), unit)
    if labeller:
        yield check_labels(read(), labeller, unit)
    elif o.toxic:
        yield check_words(read(), read_words(o.toxic), unit)


def _samples(loaded: Pretrained, o: Options) -> Iterator[tuple[str, str]]:
    """Yields texts that the model writes from nothing, at temperature 1."""
    loaded.check_use("generate")
    config = SamplingConfig(max_tokens=o.max_tokens, seed=o.seed, rules=loaded.rules)
    words = loaded.needs_tokenizer()
    texts = complete(loaded.model, words, [""], config, loaded.eos, o.samples, opening=loaded.opening)
    with Meter("writing", o.samples) as meter:
        for number, text in enumerate(texts, 1):
            meter.update(number, f"{number:,} samples")
            yield f"sample {number}", text.text


def _texts(patterns: list[str], column: str, o: Options, problems: Problems) -> Iterator[tuple[str, str]]:
    return read_texts(patterns, column, problems, "lmkit check", o.separator, o.encoding)


def _show(target: str, result: Result, problems: Problems, as_json: bool) -> None:
    note_problems(problems)
    if as_json:
        shares = {"shares": {name: share._asdict() for name, share in result.shares.items()}}
        facts = {"target": target} | asdict(result) | shares | {"skipped": dict(problems.counts)}
        print(json.dumps(facts, ensure_ascii=False))
    else:
        lines = [f"{target} --{result.check}", f"  {result.summary}"]
        lines += ["  counts       " + ", ".join(f"{name} {n:,}" for name, n in result.counts.items())]
        width = max(28, *map(len, result.shares))
        lines += [f"  {name:{width}} {percent(share)}" for name, share in result.shares.items()]
        lines += [f"  example      {example}" for example in result.examples]
        lines += [f"  cannot see   {blind}" for blind in result.blind_spots]
        write("\n".join(lines) + "\n")
    problems.counts.clear()
    problems.examples.clear()
