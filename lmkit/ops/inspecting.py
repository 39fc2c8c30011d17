"""`lmkit inspect`: a look at what a model makes of one text, as coloured text, numbers or a page."""

import html
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from lmkit.base.display import note
from lmkit.base.errors import UserError
from lmkit.base.files import write_atomic
from lmkit.inspect.attribution import Method, attribute
from lmkit.inspect.reading import attention_weights, lens, text_ids, token_losses
from lmkit.pretrained import Pretrained, load

CLOSE = 0.05  # the gap up to which an integral is as exact as it need be
STYLE = "body{font:16px/1.7 system-ui;max-width:60rem;margin:2rem auto;padding:0 1rem;color-scheme:light dark}"


@dataclass(frozen=True)
class View:
    """What is looked at: one of these, or the losses of the tokens."""

    attention: bool = False
    lens: bool = False
    attribute: bool = False
    method: Method = "ig"
    label: str | None = None  # whose logit is attributed; None: the likeliest


def inspect_text(
    model: str, text: str, target: str | None, view: View, most: int, as_json: bool, page: Path | None,
    allow_pickle: bool,
) -> None:  # fmt: skip
    """Prints a view of a text, or one JSON object, or writes a page that needs nothing else. most: the likeliest tokens
    that are listed. Raises UserError for a view that the model does not have."""
    if sum((view.attention, view.lens, view.attribute)) > 1:
        raise UserError("--attention, --lens and --attribute are views of their own\n  → name one")
    loaded = load(model, allow_pickle)
    shades, facts, lines = _look(loaded, text, target, view, most)
    if page is not None:
        write_atomic(page, _page(model, shades, lines))
        print(page)
    elif as_json:
        print(json.dumps({"model": model, "text": text} | facts, ensure_ascii=False))
    else:
        shown = Text()
        for word, shade in shades:
            shown.append(word, style="" if shade == 0 else f"on {_rgb(shade)}")
        Console().print(shown, soft_wrap=True, highlight=False)
        print("\n".join(lines))


def _look(
    loaded: Pretrained, text: str, target: str | None, view: View, most: int
) -> tuple[list[tuple[str, float]], dict[str, Any], list[str]]:
    """Returns the tokens with a shade from -1 to 1 each, the numbers, and lines to print below."""
    if not (view.attention or view.lens or view.attribute):
        tokens = token_losses(loaded, text, target, most)
        known = [t for t in tokens if t.log_prob is not None]
        mean = -sum(t.log_prob or 0 for t in known) / max(len(known), 1)
        facts: dict[str, Any] = {"tokens": [t._asdict() for t in tokens], "loss": mean}
        lines = [f"{_chance(t.log_prob)}  {t.text!r:16} {_listed(t.alternatives)}" for t in tokens]
        shades = [(t.text, 0.0 if t.log_prob is None else max(-1.0, t.log_prob / 10)) for t in tokens]
        return shades, facts, [f"loss {mean:.4f} nats a token, perplexity {math.exp(mean):.2f}", *lines]
    ids, tokenizer = text_ids(loaded, text), loaded.needs_tokenizer()
    words = [tokenizer.decode([i], skip_special=False) for i in ids]
    plain = [(word, 0.0) for word in words]
    if view.attention:
        weights = attention_weights(loaded, ids)
        lines = [
            f"layer {n:>3}  {words[i]!r:16} ← {_listed(_best(layer.mean(0)[i].tolist(), words, most))}"
            for n, layer in enumerate(weights, 1) for i in range(len(ids))
        ]  # fmt: skip
        return plain, {"tokens": words, "attention": [w.tolist() for w in weights]}, lines
    if view.lens:
        chances = lens(loaded, ids).softmax(-1)
        best = chances.topk(min(most, chances.size(-1)))
        layers = [
            [[(tokenizer.decode([i], skip_special=False), v) for i, v in zip(at, values, strict=True)]
             for at, values in zip(rows, chance, strict=True)]
            for rows, chance in zip(best.indices.tolist(), best.values.tolist(), strict=True)
        ]  # fmt: skip
        lines = [f"layer {n:>3}  {words[i]!r:16} → {_listed(places[i])}"
                 for n, places in enumerate(layers, 1) for i in range(len(ids))]  # fmt: skip
        return plain, {"tokens": words, "layers": layers}, lines
    return _attributed(loaded, ids, words, view)


def _attributed(
    loaded: Pretrained, ids: list[int], words: list[str], view: View
) -> tuple[list[tuple[str, float]], dict[str, Any], list[str]]:
    labels = list(loaded.config.labels)
    if view.label is not None and view.label not in labels:
        raise UserError(f"--label {view.label!r}: the model's labels are {', '.join(labels) or 'words of the text'}")
    a = attribute(loaded, ids, None if view.label is None else labels.index(view.label), view.method)
    named = labels[a.output] if labels else loaded.needs_tokenizer().decode([a.output], skip_special=False)
    if view.method == "ig" and a.gap > CLOSE:
        note(f"the shares miss the difference of the logits by {a.gap:.0%}: the integral is not exact here")
    largest = max(map(abs, a.scores), default=0) or 1.0
    facts = a._asdict() | {"tokens": words, "output": named, "gap": a.gap, "method": view.method}
    head = f"{named!r}: logit {a.logit:.4f}, {a.baseline:.4f} without the text; the shares sum to {sum(a.scores):.4f}"
    lines = [head, *(f"{score:+9.4f}  {word!r}" for word, score in zip(words, a.scores, strict=True))]
    return [(word, score / largest) for word, score in zip(words, a.scores, strict=True)], facts, lines


def _best(weights: list[float], words: list[str], most: int) -> list[tuple[str, float]]:
    order = sorted(range(len(weights)), key=lambda i: -weights[i])[:most]
    return [(words[i], weights[i]) for i in order]


def _listed(pairs: list[tuple[str, float]]) -> str:
    return "  ".join(f"{word!r} {share:.1%}" for word, share in pairs)


def _chance(log_prob: float | None) -> str:
    return "       " if log_prob is None else f"{math.exp(log_prob):7.2%}"


def _rgb(shade: float) -> str:
    """Returns a background: red below 0, blue above, the stronger the further."""
    pale = round(255 - 150 * min(abs(shade), 1))
    return f"rgb(255,{pale},{pale})" if shade < 0 else f"rgb({pale},{pale},255)"


def _page(model: str, shades: list[tuple[str, float]], lines: list[str]) -> str:
    spans = "".join(
        f'<span style="background:{_rgb(shade)};color:#000">{html.escape(word)}</span>' if shade else html.escape(word)
        for word, shade in shades
    )
    rows = html.escape("\n".join(lines))
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{html.escape(model)}</title>'
        f"<style>{STYLE}</style><h1>{html.escape(model)}</h1><p>{spans}</p><pre>{rows}</pre></html>\n"
    )
