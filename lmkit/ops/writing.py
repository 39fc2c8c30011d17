"""Texts that a model continues, writes from others, or fills in, on standard output."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path

from lmkit.base.display import note, write
from lmkit.base.errors import UserError
from lmkit.generation.beam import beam_search
from lmkit.generation.completions import Completion, Opening
from lmkit.generation.engine import complete
from lmkit.generation.filling import Filled, fill_masks
from lmkit.generation.grammar import Grammar, matching, of_schema, one_of
from lmkit.generation.prompts import prompt_ids, source_ids
from lmkit.generation.sampling import SamplingConfig
from lmkit.generation.speculation import Drafter, DraftModel, PromptLookup
from lmkit.generation.weights import prepare
from lmkit.pretrained import Pretrained, load, say_not_followed
from lmkit.recipe.tasks import LengthPenalty
from lmkit.text.languages import Languages, PairFrame, language_frame
from lmkit.text.tokenizer import Tokenizer

CANDIDATES = 5  # listed for a mask
# Options that filling has no use for.
OF_WRITING = (
    "n", "max_tokens", "temperature", "top_p", "min_p", "repetition_penalty", "seed", "stop", "source_lang",
    "target_lang", "min_tokens", "no_repeat_ngram", "stop_ids", "control_tokens", "beam", "length_penalty", "typical_p",
    "presence_penalty", "frequency_penalty", "logit_bias", "logprobs", "choices", "regex", "json_schema", "speculate",
)  # fmt: skip
# Options that beam search has no use for.
OF_SAMPLING = (
    "temperature", "top_k", "top_p", "min_p", "typical_p", "seed", "stream", "stop", "logprobs", "choices", "regex",
    "json_schema", "speculate",
)  # fmt: skip


@dataclass(frozen=True)
class Constraint:
    """What every text has to match; one of these, or none."""

    choices: str | None = None  # texts, with commas between
    regex: str | None = None
    json_schema: Path | None = None

    def grammar(self, loaded: Pretrained, eos: frozenset[int]) -> Grammar | None:
        """Returns the constraint for a model's tokens. Raises UserError for several, or for one that is not valid."""
        given = {"--choices": self.choices, "--regex": self.regex, "--json-schema": self.json_schema}
        named = [name for name, value in given.items() if value is not None]
        if len(named) > 1:
            raise UserError(f"{' and '.join(named)}: a text can follow only one of them")
        if self.choices is not None:
            definition = one_of(self.choices.split(","))
        elif self.regex is not None:
            definition = matching(self.regex)
        elif self.json_schema is not None:
            try:
                definition = of_schema(self.json_schema.read_text(encoding="utf-8"))
            except (OSError, UnicodeDecodeError) as e:
                raise UserError(f"--json-schema {self.json_schema}: it cannot be read: {e}") from None
        else:
            return None
        return Grammar(definition, loaded.needs_tokenizer(), eos, loaded.config.vocab_size)


NO_CONSTRAINT = Constraint()


@dataclass(frozen=True)
class WritingOptions:
    """What a person may ask of texts beyond `SamplingConfig`."""

    languages: Languages = (None, None)  # of the prompts, and of the texts to write
    min_tokens: int = 0  # new tokens before a text may end; 0: as the model's folder says
    no_repeat_ngram: int = 0  # every sequence of so many tokens occurs at most once; 0: as the model's folder says
    stop_ids: tuple[int, ...] = ()  # more tokens that end a text
    control_tokens: bool = False  # names of control tokens in prompts stand for these tokens
    beam: int = 1  # hypotheses of beam search; 1: texts are drawn by `SamplingConfig`
    length_penalty: float = 1.0  # the exponent of the length by which beam search divides log-probabilities
    constraint: Constraint = NO_CONSTRAINT
    quant: str | None = None  # int8: weights of 8 bits
    speculate: str | None = None  # what guesses the next tokens: `lookup`, or a model


def write_texts(
    model: str,
    prompts: list[str],
    config: SamplingConfig,
    samples: int,
    as_json: bool,
    stream: bool,
    allow_pickle: bool,
    given: Sequence[str] = (),
    options: WritingOptions | None = None,
) -> None:
    """Prints each prompt with its continuation, `---` between texts, or a JSON line for each. A text that an
    encoder-decoder writes stands alone, with its source restored below where that had sentinels.

    An encoder fills masks: the whole text, then a line for each candidate (see `_fill`), or one JSON line for each
    mask; `config.top_k` says how many candidates.

    stream: prints while the model writes, one text at a time; otherwise prompts go through the model in batches. given:
    the options that a person named. options: None for those that change nothing. Raises UserError for those without a
    meaning for the model."""
    loaded = load(model, allow_pickle)
    if loaded.config.stacks == "encoder":
        if idle := [f"--{'samples' if k == 'n' else k.replace('_', '-')}" for k in given if k in OF_WRITING]:
            raise UserError(
                f"{', '.join(idle)}: a {loaded.config.family} fills masks, all at once, and draws nothing\n"
                "  → leave it out; --top-k says how many tokens to list for a mask"
            )
        _fill(loaded, prompts, config.top_k or CANDIDATES, as_json)
    else:
        options = options or WritingOptions()
        rules = replace(
            loaded.rules, ends=(*loaded.rules.ends, *options.stop_ids),
            min_new_tokens=options.min_tokens or loaded.rules.min_new_tokens,
            no_repeat_ngram_size=options.no_repeat_ngram or loaded.rules.no_repeat_ngram_size,
        )  # fmt: skip
        say_not_followed(loaded)
        config = replace(config, rules=rules)
        if config.top_logprobs and not as_json:
            raise UserError("--logprobs are numbers for programs\n  → add --json")
        single = stream or len(prompts) * samples * options.beam == 1
        prepare(loaded.model, options.quant, 1 if single and not options.speculate else len(prompts) * samples)
        if options.beam > 1:
            idle = [name for name in given if name in OF_SAMPLING]
            if idle or samples > 1:
                named = ", ".join(f"--{name.replace('_', '-')}" for name in idle or ["samples"])
                raise UserError(f"{named}: beam search takes the likeliest text, and draws nothing\n  → leave it out")
            _search(loaded, prompts, config, as_json, options)
        else:
            _write(loaded, prompts, config, samples, as_json, stream, options)


def _write(
    loaded: Pretrained, prompts: list[str], config: SamplingConfig, samples: int, as_json: bool, stream: bool,
    options: WritingOptions,
) -> None:  # fmt: skip
    loaded.check_use("generate")
    tokenizer, opening, context = loaded.needs_tokenizer(), loaded.opening, loaded.config.context
    if samples > 1 and config.temperature == 0:
        note("temperature 0 always takes the likeliest token: all samples of a prompt are the same")
    printer, cut = _Printer(prompts, samples, as_json, echo=opening is None), 0
    on_text = printer.piece if stream and not as_json else None
    frame, opening = _framed(tokenizer, opening, options)
    eos = loaded.eos | {*options.stop_ids}
    grammar, drafter = options.constraint.grammar(loaded, eos), drafter_of(options.speculate, loaded)
    for row in complete(
        loaded.model, tokenizer, prompts, config, eos, samples, on_text, opening, frame, options.control_tokens,
        grammar, drafter,
    ):  # fmt: skip
        printer.done(row)
        cut += row.finish == "length" and len(row.ids) < config.max_tokens
    if cut:
        included = ", prompt included" if opening is None else ""
        note(f"{cut:,} of the texts ended early: the model's context is {context:,} tokens{included}")


def drafter_of(name: str | None, loaded: Pretrained) -> Callable[[], Drafter] | None:
    """Returns what makes the drafter `lookup`, or that of a smaller model. Raises UserError for a model of other
    tokens, or that is no decoder."""
    if name is None or name == "lookup":
        return None if name is None else PromptLookup
    draft = load(name)
    if draft.config.stacks != "decoder" or loaded.config.stacks != "decoder":
        raise UserError("--speculate: a model guesses for another only where both are decoders\n  → --speculate lookup")
    if draft.needs_tokenizer().fingerprint != loaded.needs_tokenizer().fingerprint:
        raise UserError(f"--speculate {name}: it has another tokenizer than {loaded.folder}\n  → --speculate lookup")
    return lambda: DraftModel(draft.model)


def _search(
    loaded: Pretrained, prompts: list[str], config: SamplingConfig, as_json: bool, options: WritingOptions
) -> None:
    """Prints the likeliest text of each prompt that beam search finds."""
    loaded.check_use("generate")
    tokenizer = loaded.needs_tokenizer()
    frame, opening = _framed(tokenizer, loaded.opening, options)
    if opening is None:
        ids = [prompt_ids(tokenizer, prompt, options.control_tokens) for prompt in prompts]
    else:
        ids = [source_ids(tokenizer, prompt, frame) for prompt in prompts]
    penalty, eos = LengthPenalty(alpha=options.length_penalty), loaded.eos | {*options.stop_ids}
    printer = _Printer(prompts, 1, as_json, echo=opening is None)
    for row in beam_search(loaded.model, ids, config, options.beam, penalty, eos, opening):
        row.text = tokenizer.decode(i for i in row.ids if i not in eos)
        printer.done(row)


def _framed(
    tokenizer: Tokenizer, opening: Opening | None, options: WritingOptions
) -> tuple[PairFrame | None, Opening | None]:
    """Returns the control tokens around sources, and how texts begin, where languages are asked for."""
    if not any(options.languages):
        return None, opening
    frame = language_frame(tokenizer, *options.languages)
    if opening:
        opening = replace(opening, start=opening.start if frame.start is None else frame.start, forced=frame.forced)
    return frame, opening


def write_filled(model: str, prompts: list[str], top_k: int, as_json: bool, allow_pickle: bool) -> None:
    """Prints what an encoder fills in, as `write_texts` does. Raises UserError for a model that fills no masks."""
    loaded = load(model, allow_pickle)
    if loaded.config.stacks != "encoder":
        raise UserError(f"{model}: a {loaded.config.family} fills no masks, but writes\n  → lmkit generate {model}")
    _fill(loaded, prompts, top_k, as_json)


def _fill(loaded: Pretrained, prompts: list[str], top_k: int, as_json: bool) -> None:
    """Prints the filled text, and under it for each candidate the number of its mask, its probability and the token as
    JSON writes it, with tabs between; `---` stands between texts."""
    loaded.check_use("fill")
    filled = fill_masks(loaded.model, loaded.needs_tokenizer(), prompts, top_k)
    for row, group in groupby(filled, key=lambda mask: mask.row):
        masks = list(group)
        if as_json:
            for number, mask in enumerate(masks, 1):
                print(json.dumps({"prompt": prompts[row]} | _facts(number, mask), ensure_ascii=False), flush=True)
            continue
        write("---\n" if row else "")
        write(masks[0].text.removesuffix("\n") + "\n")  # standard input ends with one
        for number, mask in enumerate(masks, 1):
            for c in mask.candidates:
                write(f"{number}\t{c.probability:.4f}\t{json.dumps(c.text, ensure_ascii=False)}\n")


def _facts(number: int, mask: Filled) -> dict[str, object]:
    candidates = [c._asdict() for c in mask.candidates]
    return {"mask": number, "position": mask.position, "candidates": candidates, "text": mask.text}


class _Printer:
    """Prints texts. echo: a text goes on from its prompt, which is printed before it."""

    def __init__(self, prompts: list[str], samples: int, as_json: bool, echo: bool):
        self.prompts, self.samples, self.as_json, self.echo, self.begun = prompts, samples, as_json, echo, -1

    def piece(self, row: Completion, text: str) -> None:
        """Shows new text of a row that is being written."""
        if row.row > self.begun:
            self.begun = row.row
            write("---\n" if row.row else "")
            write(self.prompts[row.row // self.samples] if self.echo else "")
        write(text)

    def done(self, row: Completion) -> None:
        prompt = self.prompts[row.row // self.samples]
        if self.as_json:
            line = {"prompt": prompt, "sample": row.sample, "text": row.text, "ids": row.ids, "logprobs": row.logprobs}
            if row.alternatives:
                line["top_logprobs"] = row.alternatives
            line |= {"finish": row.finish} | ({"restored": row.restored} if row.restored else {})
            print(json.dumps(line, ensure_ascii=False), flush=True)
        else:
            self.piece(row, "" if row.row == self.begun else row.text)
            write(f"\n{row.restored}\n" if row.restored else "\n")
