"""What a person sees while a run trains: on a terminal one calm picture, elsewhere a plain line at an interval."""

import resource
import sys
import time
from collections.abc import Iterable
from typing import Any

import torch
from rich.console import RenderableType
from rich.progress import Progress
from rich.text import Text

from lmkit.base.display import Meter, console, sparkline
from lmkit.base.errors import CONTROL
from lmkit.base.units import show_bytes, show_count
from lmkit.training.job import Job
from lmkit.training.rhythm import Rhythm

MOST_LOSSES = 400  # of which the sparkline is drawn; older ones are thinned out
SMOOTH = 0.95  # of the mean loss that is shown, so that it can be read while it changes
BARS = 24
DRAWN_EVERY = 0.25  # seconds between two pictures


class _Picture(Progress):
    """The bar, and the lines that belong under it."""

    lines: tuple[Text, ...] = ()

    def get_renderables(self) -> Iterable[RenderableType]:
        yield from super().get_renderables()
        yield from self.lines


class TrainingMeter(Meter):
    """Shows the steps of a run."""

    def __init__(self, job: Job):
        super().__init__("train", 1.0)
        self.job, self.losses, self.keep_each, self.steps = job, list[float](), 1, 0
        self.mean: float | None = None
        self.sample = self.scores = ""
        self.bar = self.picture = _Picture(
            *self.bar.columns, console=console, transient=True, refresh_per_second=1 / DRAWN_EVERY
        )
        self.task, self.drawn = self.bar.add_task("train", total=1.0, text="", eta="-"), 0.0

    def show(self, row: dict[str, Any], pace: Rhythm, tokens_per_second: float) -> None:
        """Shows a step. row: that of metrics.jsonl."""
        loss, tokens, step = row["loss"], show_count(row["tokens"]), row["step"]
        if loss is not None:
            self._keep(loss)
        if not console.is_terminal:
            loss_text = "not finite" if loss is None else f"{loss:.4f}"
            self.update(pace.now, f"step {step} tokens {tokens} loss {loss_text} tok/s {tokens_per_second:,.0f}")
            return
        if time.monotonic() - self.drawn < DRAWN_EVERY:
            return
        self.drawn = time.monotonic()
        mean = "not finite" if loss is None or self.mean is None else f"{self.mean:.4f}"
        lines = [f"  loss    {mean} {sparkline(self.losses, BARS)}   learning rate {row['lr']:.3g}"]
        lines += [f"  scores  {self.scores}"] if self.scores else []
        memory = show_bytes(memory_in_use(self.job.device))
        lines.append(f"  speed   {tokens_per_second:,.0f} tokens/s   memory {memory}   {_time(self.job, pace)}")
        lines += [f"  sample  {self.sample}"] if self.sample else []
        self.picture.lines = tuple(Text(line, no_wrap=True, overflow="ellipsis", style="dim") for line in lines)
        self.update(pace.now, f"step {step:,}   {tokens} tokens")

    def _keep(self, loss: float) -> None:
        self.mean = loss if self.mean is None else SMOOTH * self.mean + (1 - SMOOTH) * loss
        if self.steps % self.keep_each == 0:
            self.losses.append(loss)
        self.steps += 1
        if len(self.losses) > MOST_LOSSES:
            self.losses, self.keep_each = self.losses[::2], 2 * self.keep_each

    def evaluated(self, scores: dict[str, float], text: str, best: bool) -> None:
        """Shows an evaluation, in a line that stays, and the text that the model wrote."""
        state = self.job.state
        shown = " ".join(f"{k.removeprefix('val_') if k != 'val_loss' else k} {v:.4f}" for k, v in scores.items())
        self.line(f"eval step {state.step} tokens {show_count(state.tokens)} {shown}" + (" ★" if best else ""))
        if state.best:
            name, value = next((k, v) for k, v in state.best.items() if k != "step")
            self.scores = f"best {name.removeprefix('val_')} {value:.4f}, of step {state.best['step']:,.0f}"
            if bits := scores.get("val_bits_per_byte"):
                self.scores += f"   now {bits:.4f} bits per byte"
        if text and console.is_terminal:
            self.sample = text.translate(CONTROL)
        elif text:
            self.line(f"  » {text}")


def memory_in_use(device: torch.device) -> int:
    """Returns the bytes that the run has needed at most: of the GPU where there is one, else of the process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _time(job: Job, pace: Rhythm) -> str:
    """Returns what the time went into."""
    elapsed = max(job.state.elapsed, 1e-9)
    saving, beside = job.state.saving / elapsed, job.state.beside / elapsed
    return f"time: {1 - beside:.0%} steps, {max(beside - saving, 0):.0%} evaluations, {saving:.0%} checkpoints"
