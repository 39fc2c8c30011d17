"""lmkit generate MODEL [PROMPT]: continue texts."""

import json
import sys

from lmkit.display import note
from lmkit.generation.engine import Completion, complete
from lmkit.generation.sampling import SamplingConfig
from lmkit.pretrained import load

# Control characters could move the cursor or retitle the window: a model must not steer a terminal.
CONTROL = {c: None for c in (*range(0x20), *range(0x7F, 0xA0)) if chr(c) not in "\n\t"}


def run(
    model: str,
    prompts: list[str],
    config: SamplingConfig,
    samples: int,
    as_json: bool,
    stream: bool,
    allow_pickle: bool,
) -> None:
    """Print each prompt with its continuation, `---` between texts, or one JSON line for each.

    stream: print while writing, one text at a time; otherwise prompts go through the model in batches."""
    loaded = load(model, allow_pickle)
    tokenizer, context = loaded.needs_tokenizer(), loaded.config.context
    if samples > 1 and config.temperature == 0:
        note("temperature 0 always takes the likeliest token: all samples of a prompt are the same")
    printer, cut = _Printer(prompts, samples, as_json), 0
    on_text = printer.piece if stream and not as_json else None
    for row in complete(loaded.model, tokenizer, prompts, config, loaded.eos, samples, on_text):
        printer.done(row)
        cut += row.finish == "length" and len(row.ids) < config.max_tokens
    if cut:
        note(f"{cut:,} of the texts ended early: the model's context is {context:,} tokens, prompt included")


class _Printer:
    def __init__(self, prompts: list[str], samples: int, as_json: bool):
        self.prompts, self.samples, self.as_json, self.begun = prompts, samples, as_json, -1

    def piece(self, row: Completion, text: str) -> None:
        """Show new text of a row that is being written, after its prompt."""
        if row.row > self.begun:
            self.begun = row.row
            self._out("---\n" if row.row else "")
            self._out(self.prompts[row.row // self.samples])
        self._out(text)

    def done(self, row: Completion) -> None:
        prompt = self.prompts[row.row // self.samples]
        if self.as_json:
            line = {"prompt": prompt, "sample": row.sample, "text": row.text, "ids": row.ids, "logprobs": row.logprobs}
            print(json.dumps(line | {"finish": row.finish}, ensure_ascii=False), flush=True)
        else:
            self.piece(row, "" if row.row == self.begun else row.text)
            self._out("\n")

    def _out(self, text: str) -> None:
        sys.stdout.write(text.translate(CONTROL) if sys.stdout.isatty() else text)
        sys.stdout.flush()
