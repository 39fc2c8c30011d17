"""lmkit eval MODEL --data PATH: loss, perplexity and bits per byte on files of text."""

import json
from collections.abc import Iterator

from rich.console import Console
from rich.table import Table

from lmkit.data.inputs import Input, Problems, list_inputs
from lmkit.data.readers import read_documents
from lmkit.display import Meter, note
from lmkit.errors import DataError
from lmkit.evaluation.perplexity import BATCH_TOKENS, Estimate, Scores, evaluate
from lmkit.pretrained import load
from lmkit.recipe import DataConfig


def run(
    model: str,
    data: list[str],
    stride: int | None,
    as_json: bool,
    batch_tokens: int = BATCH_TOKENS,
    text: str = "text",
    separator: str | None = None,
    allow_pickle: bool = False,
) -> None:
    """Print a table, or one JSON object. What was skipped is said. Raises DataError when no text is left."""
    inputs, problems = list_inputs(data), Problems()
    config = DataConfig(train=data, text=text, separator=separator)
    loaded = load(model, allow_pickle)
    with Meter("eval", sum(item.size for item in inputs)) as meter:
        texts = _texts(inputs, config, problems, meter)
        scores = evaluate(loaded.model, loaded.needs_tokenizer(), texts, stride, batch_tokens)
    if problems.counts:
        note(f"while reading:{_listed(problems)}")
    if scores.unknown:
        note(f"{scores.unknown:,} unknown tokens stand for text the tokenizer cannot spell: the scores are too good")
    if len(scores.nats) == 1:
        note("one document: a 95% interval is undefined, as it tells nothing about the spread between documents")
    rows = {"loss": scores.loss, "perplexity": scores.perplexity, "bits_per_byte": scores.bits_per_byte}
    if as_json:
        print(json.dumps(_facts(model, data, scores, problems) | {k: v._asdict() for k, v in rows.items()}))
    else:
        _table(model, scores, rows)


def _texts(inputs: list[Input], config: DataConfig, problems: Problems, meter: Meter) -> Iterator[str]:
    before, number = 0, 0
    for item in inputs:
        for document in read_documents(item, config, problems):
            number += 1
            yield document.text
            meter.update(before + item.done, f"{number:,} documents")
        before += item.done
    if not number:
        raise DataError(f"{', '.join(item.name for item in inputs)}: there is no text to score{_listed(problems)}")


def _listed(problems: Problems) -> str:
    return "".join(f"\n  {n:,} {kind}, like {problems.examples[kind][0]}" for kind, n in problems.counts.items())


def _facts(model: str, data: list[str], scores: Scores, problems: Problems) -> dict[str, object]:
    return {
        "model": model,
        "data": data,
        "documents": len(scores.nats),
        "tokens": sum(scores.tokens),
        "bytes": sum(scores.bytes),
        "unknown_tokens": scores.unknown,
        "context": scores.context,
        "stride": scores.stride,
        "skipped": dict(problems.counts),
    }


def _table(model: str, scores: Scores, rows: dict[str, Estimate]) -> None:
    sizes = f"{len(scores.nats):,} documents, {sum(scores.tokens):,} tokens, {sum(scores.bytes):,} bytes"
    windows = f"windows of {scores.context:,} tokens, stride {scores.stride:,}"
    table = Table("", "value", "95% interval over documents", title=model, caption=f"{sizes}\n{windows}")
    for name, (value, low, high) in rows.items():
        interval = "undefined" if low is None else f"{low:.4f} to {high:.4f}"
        table.add_row(name.replace("_", " "), f"{value:.4f}", interval)
    Console().print(table)
