"""lmkit eval MODEL --data PATH: scores on files of text, of pairs or of labelled rows, by what the model is. Fine-tuned
models have the scores of their task (`lmkit.tasks.evaluate`); what follows is about the others.

Decoders: loss, perplexity and bits per byte. Encoders: the same of masked tokens, and pseudo-perplexity. Encoder-
decoders: of target texts with `--target`, else of texts that were damaged as the family's own training does it, or as
the run's recipe says.

`--json` prints one object. Where the run of the model learnt from these files: trained_on. Always: model, data,
documents (or pairs), unknown_tokens, dropped_bytes, context, skipped (what: how often), and loss (nats a token) and
perplexity as {value, low, high}: a 95% interval over documents, null for one. Decoders: tokens, bytes, stride,
bits_per_byte (not where bytes were dropped); with --by the scores of each value of a column, with --worst the documents
of the most bits a byte. Encoders: tokens (of the text), masked_tokens, windows, noise, accuracy, pseudo_tokens,
pseudo_windows, pseudo_documents, pseudo_log_likelihood (nats, their sum), pseudo_perplexity.
Encoder-decoders: source_tokens, target_tokens, accuracy, and without --target noise, spans and span_accuracy. noise:
the settings, and where they are from."""

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from lmkit.base.display import Meter, note
from lmkit.base.errors import DataError, UserError
from lmkit.data.documents import read_documents, read_pairs, unread_advice
from lmkit.data.encodings import AS_IN_TRAINING, settle_encodings
from lmkit.data.inputs import Document, Input, Pairing, Problems, list_inputs
from lmkit.evaluation import masked_lm, perplexity, seq2seq
from lmkit.evaluation.intervals import Estimate
from lmkit.evaluation.scoring import BATCH_TOKENS, Tally
from lmkit.model.heads import Head
from lmkit.ops.training_data import encoding_of, note_learnt, note_separator
from lmkit.pretrained import Pretrained, load
from lmkit.recipe import recipe_file as recipes
from lmkit.recipe.defaults import expand_pretraining
from lmkit.recipe.objectives import (
    DenoisingConfig,
    MaskedLMConfig,
    ObjectiveConfig,
    SpanCorruptionConfig,
    default_objective,
)
from lmkit.recipe.pretraining import DataConfig, Recipe
from lmkit.recipe.task_settings import run_of, settings_of
from lmkit.tasks import evaluate
from lmkit.tasks.table import TASKS, changed, load_all, task_of
from lmkit.tasks.task import score_table, scores_as_json, sliced

SHOWN = 80  # characters of a document that is listed
PLL_TOKENS = 2000  # each costs a forward pass
NOT_COMPARABLE = "the scores do not compare with those of other tokenizers"


@dataclass
class Report:
    facts: dict[str, Any]  # for machines, in this order
    rows: dict[str, Estimate]
    caption: list[str]
    unit: str = "documents"
    notes: list[str] = field(default_factory=list)
    skipped: dict[str, int] = field(default_factory=dict)
    lines: list[str] = field(default_factory=list)  # below the table


@dataclass
class Texts:
    """The texts to score, and what went wrong while they were read."""

    inputs: list[Input]
    config: DataConfig
    by: str | None = None  # a column whose value is kept of each
    worst: int = 0
    problems: Problems = field(default_factory=Problems)
    seen: list[tuple[str, Any, str]] = field(default_factory=list)  # place, value and begin of each, where one is asked

    @contextmanager
    def reading(self) -> Iterator[Iterator[Document]]:
        """Gives the documents, or pairs, and shows a bar meanwhile. Raises DataError where there are none."""
        with Meter("eval", sum(item.size for item in self.inputs)) as meter:
            yield self._documents(meter)

    def _documents(self, meter: Meter) -> Iterator[Document]:
        unit = "pairs" if self.config.target else "documents"
        before, number = 0, 0
        for item in self.inputs:
            if self.config.target:
                documents = read_pairs(item, self.config, self.problems)
            else:
                documents = read_documents(item, self.config, self.problems, self.by)
            for document in documents:
                number += 1
                if self.by or self.worst:
                    self.seen.append((f"{item.name}:{document.line}", document.beside, document.text[:SHOWN]))
                yield document
                meter.update(before + item.done, f"{number:,} {unit}")
            before += item.done
        if not number:
            names = ", ".join(item.name for item in self.inputs)
            raise DataError(f"{names}: there is no text to score{_listed(self.problems)}{unread_advice(self.problems)}")


def evaluate_models(
    models: list[str], data: list[str], task: str | None, columns: dict[str, str | None], as_json: bool,
    allow_pickle: bool, changes: dict[str, Any] | None = None, by: str | None = None, worst: int = 0,
    settings: dict[str, Any] | None = None, **options: Any,
) -> dict[str, Any]:  # fmt: skip
    """Prints the scores of one model on what it was made for, or of two side by side. Returns what stands in the JSON.

    columns: those that a person named, of text, pair, label and target; and `encoding`. changes: of the task's
    settings. by, worst, settings: as for `evaluate_tables`. options: of `evaluate_texts`, for models that predict
    words. Raises UserError for options without a use."""
    if len(set(models)) != len(models) or len(models) > 2:
        what = f"{models[0]} is named twice" if len(models) == 2 else f"{len(models)} models"
        raise UserError(f"{what}\n  → name one model, or two that differ, to compare them")
    tasks = [task_of(model, task) for model in models]
    solved = [changed(t, changes or {}) for t in tasks if t is not None and t.name in TASKS]
    if len(solved) == len(models):
        if idle := [f"--{k.replace('_', '-')}" for k, v in options.items() if v is not None]:
            raise UserError(f"{', '.join(idle)}: {models[0]} was fine-tuned to {solved[0].name}\n  → leave it out")
        loaded = {model: load_all(model, t, allow_pickle) for model, t in zip(models, solved, strict=True)}
        learnt = note_learnt(models, data)
        return evaluate.evaluate_tables(loaded, solved, data, columns, as_json, by, worst, settings, learnt)
    if len(models) > 1:
        raise UserError("two models are compared on a task they were both fine-tuned for\n  → name one")
    if named := [*(changes or {}), *(role for role in ("pair", "label") if columns.get(role) is not None)]:
        raise UserError(f"--{named[0]}: {models[0]} was not fine-tuned for labels\n  → leave it out")
    if tasks[0] is not None and (trained := settings_of(models[0])):  # of `lm`, which read its texts so
        columns["text"] = columns["text"] or trained.columns.get("text")
        if columns["target"] is None:
            options["separator"] = options["separator"] or trained.separator
    options |= {"text": columns["text"] or "text", "encoding": columns.get("encoding") or encoding_of(models[0])}
    if options["encoding"] not in ("utf-8", columns.get("encoding")):
        note(AS_IN_TRAINING.format(options["encoding"]))
    options |= {"target": columns["target"], "by": by, "worst": worst}
    return evaluate_texts(models[0], data, as_json=as_json, allow_pickle=allow_pickle, settings=settings, **options)


def evaluate_texts(
    model: str,
    data: list[str],
    stride: int | None,
    as_json: bool,
    batch_tokens: int = BATCH_TOKENS,
    text: str = "text",
    separator: str | None = None,
    allow_pickle: bool = False,
    target: str | None = None,
    pll_tokens: int | None = None,
    encoding: str = "utf-8",
    text_files: list[str] | None = None,
    by: str | None = None,
    worst: int = 0,
    settings: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Prints a table, or one JSON object, and says what was skipped. Returns what stands in the JSON.

    by: a column by whose values the scores of a decoder are told apart; worst: how many of its documents are listed.
    settings: of the command, which stand in the JSON too. Raises UserError for a model that predicts no words and for
    options it has no use for, DataError when no text is left."""
    if target is not None and separator is not None:
        raise UserError("--separator ends documents and --target makes pairs\n  → leave one of them out")
    keys = {"train": data, "text": text, "separator": separator, "target": target, "encoding": encoding}
    config = recipes.build_recipe(DataConfig, keys | {"text_files": text_files or []}, {}, where="lmkit eval")
    inputs = settle_encodings(list_inputs(data, None if target is None else Pairing(text, target), config))
    texts = Texts(inputs, config, by, worst)
    loaded = load(model, allow_pickle)
    _check(
        model, loaded, {"stride": stride, "by": by, "worst": worst or None, "target": target, "pll-tokens": pll_tokens}
    )
    if loaded.config.stacks == "decoder":
        report = _decoder(loaded, texts, stride, batch_tokens)
    elif loaded.config.stacks == "encoder":
        limit = PLL_TOKENS if pll_tokens is None else pll_tokens
        report = _encoder(loaded, texts, _run_task(model), limit, batch_tokens)
    elif target is not None:
        report = _pairs(loaded, texts, batch_tokens)
    else:
        report = _noise(loaded, texts, _noise_config(loaded, model), batch_tokens)
    if target is None and any(item.kind == "txt" for item in inputs):
        note_separator(model, config.separator)
    if learnt := note_learnt([model], data):
        report.facts["trained_on"] = learnt
    return _show(model, data, report, texts.problems, as_json, settings)


def _check(model: str, loaded: Pretrained, options: dict[str, Any]) -> None:
    c = loaded.config
    if not isinstance(loaded.model.head, Head):
        what = {"none": "no head", "sequence": "a head for labels of texts", "token": "a head for labels of tokens"}
        labels = f" ({', '.join(c.labels)})" if c.labels else ""
        raise UserError(
            f"{model} ({c.family}) has {what.get(c.head, 'a head for spans of text')}{labels}: it predicts no words\n"
            "  → name the model it was fine-tuned from"
        )
    uses = {
        "stride": "decoder",
        "by": "decoder",
        "worst": "decoder",
        "target": "encoder_decoder",
        "pll-tokens": "encoder",
    }
    for name, value in options.items():
        if value is not None and c.stacks != uses[name]:
            kind = uses[name].replace("_", "-")
            raise UserError(f"--{name} is for {kind}s, which {model} ({c.family}) is not\n  → leave it out")


def _run_task(model: str) -> ObjectiveConfig | None:
    """Returns what a run was pretrained for; None for a folder that is no run, and for a run of continued pretraining,
    which keeps to its family's objective."""
    path = Path(model) / "recipe.yaml"
    if not path.is_file() or run_of(model):
        return None
    return recipes.load_recipe(Recipe, path, expand=expand_pretraining).task


def _noise_config(loaded: Pretrained, model: str) -> tuple[seq2seq.NoiseConfig, str]:
    """Returns how texts are damaged for this model, and where that is from. Raises UserError for a model that was not
    trained to write damaged texts again."""
    task, family = _run_task(model), loaded.config.family
    if isinstance(task, SpanCorruptionConfig | DenoisingConfig):
        return task, "recipe"
    if task is None and default_objective(family) == "span_corruption":
        return SpanCorruptionConfig(name="span_corruption"), "defaults"
    if task is None and family == "bart":  # mBART's own noise begins and ends with languages, which lmkit's does not
        return DenoisingConfig(name="denoising"), "defaults"
    raise UserError(
        f"{model} ({family}) writes one text from another and is scored on pairs\n"
        "  → pass --target: the column, key or file ending of the target text, like --text en --target de"
    )


def _decoder(loaded: Pretrained, texts: Texts, stride: int | None, batch_tokens: int) -> Report:
    tokenizer = loaded.needs_tokenizer()
    with texts.reading() as documents:
        s = perplexity.evaluate_perplexity(loaded.model, tokenizer, (d.text for d in documents), stride, batch_tokens)
    facts = {
        "documents": len(s.nats), "tokens": sum(s.tokens), "bytes": sum(s.bytes), "unknown_tokens": s.unknown,
        "dropped_bytes": s.unspelt, "context": s.context, "stride": s.stride,
    }  # fmt: skip
    caption = [
        f"{len(s.nats):,} documents, {sum(s.tokens):,} tokens, {sum(s.bytes):,} bytes",
        f"windows of {s.context:,} tokens, stride {s.stride:,}",
    ]
    rows = {"loss": s.loss, "perplexity": s.perplexity}
    if s.bits_per_byte is not None:
        rows["bits_per_byte"] = s.bits_per_byte
    report = Report(facts, rows, caption, notes=_unspelt(s, "the scores are too good"))
    if texts.by:
        _slice_documents(report, s, texts.by, [texts.seen[number][1] for number in s.numbers])
    if texts.worst:
        _list_documents(report, s, [texts.seen[number] for number in s.numbers], texts.worst)
    return report


def _slice_documents(report: Report, s: perplexity.Scores, by: str, values: list[Any]) -> None:
    slices = {value: (numbers, s.part(numbers)) for value, numbers in sliced(by, values).items()}
    scores = {value: {"loss": part.loss, "perplexity": part.perplexity}
              | ({} if part.bits_per_byte is None else {"bits_per_byte": part.bits_per_byte})
              for value, (_, part) in slices.items()}  # fmt: skip
    report.facts["by"] = {by: {value: {"documents": len(numbers)} | scores_as_json(scores[value])
                               for value, (numbers, _) in slices.items()}}  # fmt: skip
    named = {f"{value} ({len(numbers):,})": scores[value] for value, (numbers, _) in slices.items()}
    report.lines.append(score_table(f"by {by} (documents)", named, len(values)))


def _list_documents(report: Report, s: perplexity.Scores, seen: list[tuple[str, Any, str]], most: int) -> None:
    """Lists the documents of the most bits a byte."""
    bits = [nats / math.log(2) / size for nats, size in zip(s.nats, s.bytes, strict=True)]
    order = sorted(range(len(bits)), key=bits.__getitem__, reverse=True)[:most]
    report.facts["worst"] = [
        {"place": seen[i][0], "bits_per_byte": bits[i], "loss": s.nats[i] / s.tokens[i], "tokens": s.tokens[i],
         "text": seen[i][2]} for i in order
    ]  # fmt: skip
    report.lines += [
        f"{row['place']}: {row['bits_per_byte']:.4f} bits a byte, {row['tokens']:,} tokens: {row['text']!r}"
        for row in report.facts["worst"]
    ]


def _encoder(
    loaded: Pretrained, texts: Texts, task: ObjectiveConfig | None, pll_tokens: int, batch_tokens: int
) -> Report:
    model, tokenizer = loaded.model, loaded.needs_tokenizer()
    if pll_tokens:
        masked_lm.maskable_words(model, tokenizer)  # a tokenizer without words ends it here, before anything is read
    config, source = (task, "recipe") if isinstance(task, MaskedLMConfig) else (None, "defaults")
    config = config or MaskedLMConfig(name="masked_lm")
    with texts.reading() as documents:
        read = (d.text for d in documents)
        s = masked_lm.evaluate_masked_lm(model, tokenizer, read, config, pll_tokens, batch_tokens=batch_tokens)
    noise, masked = masked_lm.noise(config) | {"from": source}, sum(s.tokens)
    facts = {
        "documents": s.documents, "tokens": s.text_tokens, "masked_tokens": masked, "unknown_tokens": s.unknown,
        "dropped_bytes": s.unspelt, "context": loaded.config.context, "windows": s.windows, "noise": noise,
    }  # fmt: skip
    rows = {"loss": s.loss, "perplexity": s.perplexity, "accuracy": s.accuracy}
    caption = [
        f"{s.documents:,} documents, {s.text_tokens:,} tokens, {masked:,} of them masked",
        f"{s.windows:,} windows of up to {loaded.config.context:,} tokens; {_described(noise)}",
    ]
    unknown = "they are never masked, and the pseudo-perplexity is too good" if pll_tokens else "they are never masked"
    if pll_tokens:
        with Meter("pseudo-perplexity", s.sample.tokens) as meter:
            tally = masked_lm.score_sample(model, tokenizer, s.sample, batch_tokens, meter.update)
        covered = sum(tally.tokens)
        facts |= {"pseudo_tokens": covered, "pseudo_log_likelihood": -sum(tally.nats)}
        facts |= {"pseudo_windows": len(s.sample.windows), "pseudo_documents": tally.documents}
        rows["pseudo_perplexity"] = tally.perplexity
        whole = f"pseudo-perplexity over all {covered:,} tokens"
        part = f"pseudo-perplexity over {covered:,} of {s.text_tokens:,} tokens: {len(s.sample.windows):,} windows"
        few = f"{part} at random, of {tally.documents:,} documents (--pll-tokens)"
        caption.append(whole if covered == s.text_tokens else few)
    return Report(facts, rows, caption, notes=_unspelt(s, unknown), skipped=s.skipped)


def _pairs(loaded: Pretrained, texts: Texts, batch_tokens: int) -> Report:
    tokenizer, start = loaded.needs_tokenizer(), loaded.decoder_start
    with texts.reading() as pairs:
        read = ((pair.text, pair.target or "") for pair in pairs)
        s = seq2seq.evaluate_pairs(loaded.model, tokenizer, read, start, batch_tokens)
    facts = {"pairs": s.documents} | _written(loaded, s)
    caption = [f"{s.documents:,} pairs, {s.source_tokens:,} source tokens, {sum(s.tokens):,} target tokens"]
    rows = {"loss": s.loss, "perplexity": s.perplexity, "accuracy": s.accuracy}
    return Report(facts, rows, caption, "pairs", _unspelt(s, NOT_COMPARABLE), s.skipped)


def _noise(loaded: Pretrained, texts: Texts, chosen: tuple[seq2seq.NoiseConfig, str], batch_tokens: int) -> Report:
    config, source = chosen
    tokenizer, start = loaded.needs_tokenizer(), loaded.decoder_start
    with texts.reading() as documents:
        read = (d.text for d in documents)
        s = seq2seq.evaluate_noise(loaded.model, tokenizer, read, config, start, batch_tokens=batch_tokens)
    noise = config.model_dump(mode="json") | {"from": source}
    facts = {"documents": s.documents} | _written(loaded, s) | {"noise": noise, "spans": sum(s.spans)}
    rows = {"loss": s.loss, "perplexity": s.perplexity, "accuracy": s.accuracy}
    if s.span_accuracy:
        rows["span_accuracy"] = s.span_accuracy
    caption = [
        f"{s.documents:,} documents, {s.source_tokens:,} source tokens, {sum(s.tokens):,} target tokens,"
        f" {sum(s.spans):,} spans of noise",
        _described(noise),
    ]
    return Report(facts, rows, caption, notes=_unspelt(s, NOT_COMPARABLE), skipped=s.skipped)


def _written(loaded: Pretrained, s: seq2seq.WrittenScores) -> dict[str, Any]:
    return {
        "source_tokens": s.source_tokens, "target_tokens": sum(s.tokens), "unknown_tokens": s.unknown,
        "dropped_bytes": s.unspelt, "context": loaded.config.context,
    }  # fmt: skip


def _unspelt(s: Tally, so: str) -> list[str]:
    notes = []
    if s.unknown:
        notes.append(f"{s.unknown:,} unknown tokens stand for text the tokenizer cannot spell: {so}")
    if s.unspelt:
        notes.append(
            f"the tokenizer dropped {s.unspelt:,} bytes of the text, for which it has no token: the scores are of the"
            " rest, and there are no bits per byte"
        )
    return notes


def _described(noise: dict[str, Any]) -> str:
    """Returns noise in words, like `name (defaults): rate 0.15, split 0.8/0.1/0.1`."""

    def said(value: Any) -> str:
        if isinstance(value, dict):
            return ", ".join(f"{k} {said(v)}" for k, v in value.items() if v)  # what is off is not said
        if isinstance(value, list | tuple):
            return (" | " if isinstance(value[0], dict) else "/").join(said(v) for v in value)
        return str(value)

    return f"{noise['name']} ({noise['from']}): {said({k: v for k, v in noise.items() if k not in ('name', 'from')})}"


def _listed(problems: Problems) -> str:
    return "".join(f"\n  {n:,} {kind}, like {problems.examples[kind][0]}" for kind, n in problems.counts.items())


def _show(
    model: str, data: list[str], report: Report, problems: Problems, as_json: bool, settings: dict[str, Any] | None
) -> dict[str, Any]:
    if problems.counts:
        note(f"while reading:{_listed(problems)}")
    for kind, n in report.skipped.items():
        note(f"left out: {n:,} {kind}")
    for said in report.notes:
        note(said)
    if report.facts.get("documents", report.facts.get("pairs")) == 1:
        one = report.unit.removesuffix("s")
        note(f"one {one}: a 95% interval is undefined, as it tells nothing about the spread between {report.unit}")
    skipped = {"skipped": problems.counts | report.skipped}
    estimates = {name: estimate._asdict() for name, estimate in report.rows.items()}
    facts = {"model": model, "data": data} | report.facts | skipped | estimates
    if as_json:
        print(json.dumps(facts | ({"settings": settings} if settings else {})))
        return facts
    table = Table(
        "", "value", f"95% interval over {report.unit}", title=escape(model), caption="\n".join(report.caption)
    )
    for name, (value, low, high) in report.rows.items():
        interval = "undefined" if low is None else f"{low:.4f} to {high:.4f}"
        table.add_row(name.replace("_", " "), f"{value:.4f}", interval)
    Console().print(table)
    if report.lines:
        print("\n".join(report.lines))
    return facts
