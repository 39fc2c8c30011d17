"""What a run came to, in a line or two after it: what went wrong or was left, and what to try next, as a command."""

import json
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from lmkit.base.units import brief, split_quantity
from lmkit.evaluation.intervals import Estimate

FALLING = 0.02  # the share by which the validation loss must have fallen to the last evaluation to count as falling
RISEN = 0.05  # the share by which it must have risen from its lowest value to the end to count as rising
SHOWN = 3  # labels in a line
LOW = 0.1  # the share of the best possible score below which a model is of no use
MANY = 0.25  # the share of rows that have nothing written, or the same wrong text, of which a verdict tells


def course(run: Path, budget: str, verb: str, by_loss: bool = False) -> list[str]:
    """Returns a line with advice where the validation loss was still falling at the end, or had long risen; where the
    best checkpoint is chosen `by_loss` also where it had risen a little.

    run: its directory; budget: of its recipe; verb: the command that made it."""
    points = _validation_losses(run / "metrics.jsonl")
    if len(points) < 2:
        return []
    losses = [loss for _, loss in points]
    lowest = min(losses)
    if losses[-1] == lowest and losses[-1] < losses[-2] * (1 - FALLING):
        falling = f"the validation loss was still falling at the end ({losses[-2]:.4g} → {losses[-1]:.4g})"
        return [f"{falling}\n  → {_longer(run, budget, verb)}"]
    step = points[losses.index(lowest)][0]
    if losses[-1] > lowest * (1 + RISEN):
        return [
            f"the validation loss has risen since step {step:,} ({lowest:.4g} → {losses[-1]:.4g}): the texts are learnt"
            " by heart\n  → more or other texts, a smaller model, or a shorter budget"
        ]
    if by_loss and losses[-1] > lowest:
        return [
            f"the best checkpoint is that of step {step:,}: its validation loss of {lowest:.4g} has risen to"
            f" {losses[-1]:.4g} since\n  → `best`, which all commands take; more texts help more than more steps"
        ]
    return []


def _longer(run: Path, budget: str, verb: str) -> str:
    """Returns the command that trains as a run did, twice as long."""
    number, unit = split_quantity(budget)
    unit += "s" if unit in ("step", "token", "epoch") else ""
    more = f"{round(2 * number, 6):.15g} {unit}".strip()
    return f"lmkit {verb} {shlex.quote(str(run))} train.budget='{more}' --out {shlex.quote(f'{run}-longer')}"


def beside_frequencies(
    scores: Mapping[str, float], baselines: Mapping[str, Mapping[str, float]], run: Path, budget: str, advised: bool
) -> list[str]:
    """Returns a line where a pretrained model predicts held-out texts no better than the frequencies of tokens, or a
    compressor, do. budget: of its recipe, for advice; advised: other lines have some."""
    unit = "bits_per_byte" if "bits_per_byte" in scores else "perplexity"
    value, advice = scores.get(unit, 0.0), "" if advised else f"\n  → {_longer(run, budget, 'pretrain')}"
    reasons = {
        "unigram": "it has learnt no more than how often each token occurs",
        "xz": "it knows little of the texts",
    }
    for name, reason in reasons.items():
        if value >= (rival := baselines.get(name, {}).get(unit, value + 1)):
            figure = unit.replace("_", " ")
            return [f"{figure} {value:.4g} is no better than that of {name} ({rival:.4g}): {reason}{advice}"]
    return []


def _validation_losses(metrics: Path) -> list[tuple[int, float]]:
    """Returns the step and the validation loss of every evaluation."""
    rows = (json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines() if "val_loss" in line)
    return [(row["step"], row["val_loss"]) for row in rows if row.get("val_loss") is not None]


def beside_baselines(
    columns: Mapping[str, Mapping[str, Estimate]], metric: str, pretrained: bool, top: float = 1
) -> list[str]:
    """Returns a line with advice where a baseline is as good as the model, and the model can become better; or where
    the score is close to 0. Higher scores of `metric` must be better, and `top` the best.

    columns: the scores of the model, called `model`, and of each baseline. pretrained: the model knew texts before."""
    ours = columns["model"].get(metric)
    if ours is None or ours.value == top:
        return []
    rivals = {name: scores[metric] for name, scores in columns.items() if name != "model" and metric in scores}
    best = max(rivals, key=lambda name: rivals[name].value, default=None)
    if best is None or rivals[best].value < ours.value:
        useless = f"{metric} {ours.value:.4f} of {top:g}: next to nothing is right\n  → {advice(pretrained)}"
        return [useless] if ours.value < LOW * top else []
    theirs = rivals[best].value
    clear = ours.high is not None and theirs > ours.high
    better = f"{metric} {ours.value:.4f} is {'worse than' if clear else 'no better than'} that of {best} ({theirs:.4f})"
    return [f"{better}\n  → {advice(pretrained)}"]


def advice(pretrained: bool) -> str:
    """Returns what to try where a fine-tuned model is no good. pretrained: it knew texts before."""
    return "more epochs, or more rows" if pretrained else "start from a trained model: --model FOLDER"


def of_texts(written: Sequence[tuple[str, Sequence[str]]], try_next: str = "") -> list[str]:
    """Returns a line where many rows have nothing written, and one where many have the same wrong text, each with the
    advice `try_next` if there is one.

    written: of each row the text, and the texts that are right; none or "" where nothing is to be written."""
    lines, wanting = [], [text for text, right in written if any(right)]
    if (silent := sum(not text for text in wanting)) and silent >= MANY * len(wanting):
        lines.append(f"writes nothing for {silent:,} of the {len(wanting):,} rows held out that have an answer")
    wrong = Counter(text for text, right in written if text and text not in right)
    text, rows = wrong.most_common(1)[0] if wrong else ("", 0)
    if rows > 1 and rows >= MANY * len(written):
        different = len({text for text, _ in written})
        lines.append(
            f"writes the same wrong text for {rows:,} of {len(written):,} rows held out: `{brief(text)}`"
            f" (different texts in all: {different:,})"
        )
    return [f"{line}\n  → {try_next}" if try_next else line for line in lines]


def never_predicted(counts: Mapping[str, int], rows: int, advice: str) -> list[str]:
    """Returns a line about labels that rows have and the model never predicts. counts: their rows, by label."""
    if not counts:
        return []
    listed = ", ".join(f"`{label}` ({count:,})" for label, count in list(counts.items())[:SHOWN])
    more = f" and {len(counts) - SHOWN:,} more" if len(counts) > SHOWN else ""
    return [f"never predicts {listed}{more}, of {rows:,} rows held out{advice}"]


def as_text(lines: list[str]) -> str:
    """Returns the lines as they are shown after a run, or "" for none."""
    return "".join("\n  verdict  " + line.replace("\n  →", "\n           →") for line in lines).removeprefix("\n")
