"""Texts that a model continues, writes from others, or fills in, on standard output."""

import json
from collections.abc import Sequence
from dataclasses import replace
from itertools import groupby

from lmkit.base.display import note, write
from lmkit.base.errors import UserError
from lmkit.generation.batches import Completion
from lmkit.generation.engine import complete
from lmkit.generation.filling import Filled, fill_masks
from lmkit.generation.sampling import SamplingConfig
from lmkit.pretrained import Pretrained, load, say_not_followed
from lmkit.text.languages import language_frame

CANDIDATES = 5  # listed for a mask
# Options that filling has no use for.
OF_WRITING = (
    "n",
    "max_tokens",
    "temperature",
    "top_p",
    "min_p",
    "repetition_penalty",
    "seed",
    "stop",
    "source_lang",
    "target_lang",
)


def write_texts(
    model: str,
    prompts: list[str],
    config: SamplingConfig,
    samples: int,
    as_json: bool,
    stream: bool,
    allow_pickle: bool,
    given: Sequence[str] = (),
    languages: tuple[str | None, str | None] = (None, None),
) -> None:
    """Prints each prompt with its continuation, `---` between texts, or a JSON line for each. A text that an
    encoder-decoder writes stands alone, with its source restored below where that had sentinels.

    An encoder fills masks: the whole text, then a line for each candidate (see `_fill`), or one JSON line for each
    mask; `config.top_k` says how many candidates.

    stream: prints while the model writes, one text at a time; otherwise prompts go through the model in batches. given:
    the options that a person named. languages: of the prompts, and of the texts to write. Raises UserError for those
    without a meaning for the model."""
    loaded = load(model, allow_pickle)
    if loaded.config.stacks == "encoder":
        if idle := [f"--{'samples' if k == 'n' else k.replace('_', '-')}" for k in given if k in OF_WRITING]:
            raise UserError(
                f"{', '.join(idle)}: a {loaded.config.family} fills masks, all at once, and draws nothing\n"
                "  → leave it out; --top-k says how many tokens to list for a mask"
            )
        _fill(loaded, prompts, config.top_k or CANDIDATES, as_json)
    else:
        config = replace(config, rules=loaded.rules)
        say_not_followed(loaded)
        _write(loaded, prompts, config, samples, as_json, stream, languages)


def _write(
    loaded: Pretrained, prompts: list[str], config: SamplingConfig, samples: int, as_json: bool, stream: bool,
    languages: tuple[str | None, str | None],
) -> None:  # fmt: skip
    loaded.check_use("generate")
    tokenizer, opening, context = loaded.needs_tokenizer(), loaded.opening, loaded.config.context
    if samples > 1 and config.temperature == 0:
        note("temperature 0 always takes the likeliest token: all samples of a prompt are the same")
    printer, cut = _Printer(prompts, samples, as_json, echo=opening is None), 0
    on_text = printer.piece if stream and not as_json else None
    frame = language_frame(tokenizer, *languages) if any(languages) else None
    if frame and opening:
        opening = replace(opening, start=opening.start if frame.start is None else frame.start, forced=frame.forced)
    for row in complete(loaded.model, tokenizer, prompts, config, loaded.eos, samples, on_text, opening, frame):
        printer.done(row)
        cut += row.finish == "length" and len(row.ids) < config.max_tokens
    if cut:
        included = ", prompt included" if opening is None else ""
        note(f"{cut:,} of the texts ended early: the model's context is {context:,} tokens{included}")


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
            line |= {"finish": row.finish} | ({"restored": row.restored} if row.restored else {})
            print(json.dumps(line, ensure_ascii=False), flush=True)
        else:
            self.piece(row, "" if row.row == self.begun else row.text)
            write(f"\n{row.restored}\n" if row.restored else "\n")
