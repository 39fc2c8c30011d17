"""Tiny runs, each start of one in a process of its own, forked from one that has loaded torch and computed nothing."""

import contextlib
import mmap
import os
import random
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from lmkit.base.errors import UserError
from lmkit.base.runs import Run
from lmkit.data.tokens import tokenize as tokenizing
from lmkit.training import loop, pretraining_run

STEPS = 40
TASKS = {
    "causal_lm": "family: gpt2, num_heads: 2, context: 16",
    "masked_lm": "family: bert, num_heads: 2, context: 16",
    "span_corruption": "family: t5, num_heads: 2, context: 32",
}
WORDS = ["the", "cat", "sat", "on", "a", "mat", "and", "saw", "one", "red", "bird", "fly", "over", "an", "old", "hill"]
WEIGHTS = ("model.safetensors", "training/weights.safetensors", "training/optimizer.safetensors")
PHASES = ("starting", "tokenizing", "step", "evaluation", "saving", "linking", "ending")


def prepare(folder: Path) -> None:
    lines = [" ".join(WORDS[(i * 7 + j * j) % len(WORDS)] for j in range(3 + i % 9)) for i in range(120)]
    (folder / "corpus.txt").write_text("\n".join(lines))
    for task, model in TASKS.items():
        context = int(model.rpartition(" ")[2])
        (folder / f"{task}.yaml").write_text(
            f"model: {{{model}, hidden_size: 16, num_layers: 2, dropout: 0.1, attention_dropout: 0.1}}\n"
            'tokenizer: {type: bytes}\ndata: {train: corpus.txt, validation: 20%, separator: "\\n"}\n'
            "optimizer: {lr: 5e-3, name: adamw}\nschedule: {warmup: 2}\nevaluate: {every: 8, sample: null}\n"
            f"train: {{budget: {STEPS} steps, batch: {8 * context}, micro_batch: {8 * context}, ema: 0.9}}\n"
            "checkpoint: {every: 5, keep: 3}\n"
        )


def forked(work: Callable[[], int], log: Path | None = None) -> int:
    """The pid of a process that does this."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    with open(log or os.devnull, "a") as out:
        os.dup2(out.fileno(), 1)
        os.dup2(out.fileno(), 2)
        sys.stdout = sys.stderr = out
        try:
            code = work()
        except UserError as e:
            print(f"lmkit: {e}", flush=True)
            code = e.exit_code
        except BaseException:
            import traceback

            traceback.print_exc(file=out)
        finally:
            out.flush()
            os._exit(code)


def ended(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def train(out: Path, task: str, settings: tuple[str, ...] = ()) -> int:
    """The one command of a run: it starts, or goes on. Every run has its own cache, so that it tokenizes too."""
    os.environ["LMKIT_CACHE"] = str(out.with_name(out.name + "-cache"))
    if (out / "recipe.yaml").exists():
        return pretraining_run.resume(out)
    return pretraining_run.start(Path(f"{task}.yaml"), settings, out)


def whole_run(out: Path, task: str, settings: tuple[str, ...] = (), before: Callable[[], None] = lambda: None) -> int:
    def work() -> int:
        before()
        return train(out, task, settings)

    return ended(forked(work, out.with_name(out.name + ".log")))


def differs(a: Path, b: Path) -> list[str]:
    """Of two finished runs: files that are not the same to the byte."""
    names = [f"checkpoints/step-{STEPS:08d}/{name}" for name in WEIGHTS]
    apart = [n for n in (*names, "metrics.jsonl") if not same_bytes(a / n, b / n)]
    links = [link for link in ("best", "latest") if (a / link).resolve().name != (b / link).resolve().name]
    return apart + links


def same_bytes(a: Path, b: Path) -> bool:
    return (not a.exists() and not b.exists()) or (a.exists() and b.exists() and a.read_bytes() == b.read_bytes())


def at(owner: Any, name: str, act: Callable[[int], None]) -> None:
    """Call `act` with a count, from 1, whenever `owner.name` is called."""
    real, seen = getattr(owner, name), [0]

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        seen[0] += 1
        act(seen[0])
        return real(*args, **kwargs)

    setattr(owner, name, wrapped)


def watched(phase: mmap.mmap) -> None:
    """In the process that is to be killed: what it does stands in shared memory. Saving may go on beside training."""

    def during(owner: Any, name: str, number: int, byte: int = 0) -> None:
        real = getattr(owner, name)

        def wrapped(*args: Any, **kwargs: Any) -> Any:
            before, phase[byte] = phase[byte], number
            try:
                return real(*args, **kwargs)
            finally:
                phase[byte] = before

        setattr(owner, name, wrapped)

    during(tokenizing._Job, "run", PHASES.index("tokenizing"))
    during(loop, "train", PHASES.index("step"))
    during(loop, "evaluate", PHASES.index("evaluation"))
    during(Run, "save", PHASES.index("saving"), byte=1)
    during(Run, "_point", PHASES.index("linking"), byte=1)


def newest_step(out: Path) -> int | None:
    found = [p for p in (out / "checkpoints").glob("step-*") if not p.suffix]
    return max((int(p.name[-8:]) for p in found), default=None)


@contextlib.contextmanager
def damaged(file: Path, how: str, rng: random.Random) -> Iterator[bool]:
    """A file of a checkpoint is damaged meanwhile. False: its bytes happen to be the same."""
    before = file.read_bytes()
    data = bytearray(before)
    if how == "bit flips":
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    elif how == "truncations":
        data = data[: rng.randrange(len(data))]
    else:
        start = rng.randrange(len(data)) // 4096 * 4096
        data[start : start + 4096] = bytes(len(data[start : start + 4096]))
    file.write_bytes(data)
    yield data != before
    file.write_bytes(before)
