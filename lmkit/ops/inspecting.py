"""`lmkit inspect`: a look at what a model makes of one text, as coloured text, numbers or a page."""

import html
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console
from rich.text import Text

from lmkit.base.display import note
from lmkit.base.errors import UserError
from lmkit.base.files import write_atomic
from lmkit.inspect.attribution import Method, attribute
from lmkit.inspect.questions import question
from lmkit.inspect.reading import attention_weights, check_view, decoder_ids, lens, text_ids, token_losses
from lmkit.pretrained import Pretrained, load

CLOSE = 0.05  # the gap up to which an integral is as exact as it need be
STYLE = "body{font:16px/1.7 system-ui;max-width:60rem;margin:2rem auto;padding:0 1rem;color-scheme:light dark}"


@dataclass(frozen=True)
class View:
    """What is looked at: one of the three, or the losses of the tokens."""

    attention: bool = False
    lens: bool = False
    attribute: bool = False
    method: Method = "ig"
    label: str | None = None  # whose logit is attributed; None: what the model says
    word: str | None = None  # of taggers: whose label
    context: str | None = None  # of models that find answers: where
    target: str | None = None  # what an encoder-decoder has written


class Shown(NamedTuple):
    """A view, ready to be printed."""

    shades: list[tuple[str, float]]  # pieces of text, and a shade from -1 to 1 of each
    facts: dict[str, Any]
    lines: list[str]  # below the text


def inspect_text(
    model: str, text: str, view: View, most: int, as_json: bool, page: Path | None, allow_pickle: bool
) -> None:
    """Prints a view of a text, or one JSON object, or writes a page that needs nothing else. most: the likeliest tokens
    that are listed. Raises UserError for a view that the model does not have."""
    if sum((view.attention, view.lens, view.attribute)) > 1:
        raise UserError("--attention, --lens and --attribute are views of their own\n  → name one")
    for name in ("label", "word", "context"):
        if getattr(view, name) is not None and not view.attribute:
            raise UserError(f"--{name} is of --attribute\n  → add it, or leave --{name} out")
    loaded = load(model, allow_pickle)
    shown = _look(loaded, text, view, most)
    if page is not None:
        write_atomic(page, _page(model, shown))
        print(page)
    elif as_json:
        print(json.dumps({"model": model, "text": text} | shown.facts, ensure_ascii=False))
    else:
        coloured = Text()
        for word, shade in shown.shades:
            coloured.append(word, style="" if shade == 0 else f"on {_rgb(shade)}")
        Console().print(coloured, soft_wrap=True, highlight=False)
        print("\n".join(shown.lines))


def _look(loaded: Pretrained, text: str, view: View, most: int) -> Shown:
    if view.attribute:
        return _attributed(loaded, text, view)
    if not (view.attention or view.lens):
        return _losses(loaded, text, view.target, most)
    if view.lens:
        check_view(loaded, "--lens")
    ids, written = text_ids(loaded, text), decoder_ids(loaded, view.target)
    return (_attention if view.attention else _lens)(loaded, ids, written, most)


def _losses(loaded: Pretrained, text: str, target: str | None, most: int) -> Shown:
    tokens = token_losses(loaded, text, target, most)
    known = [t for t in tokens if t.log_prob is not None]
    mean = -sum(t.log_prob or 0 for t in known) / max(len(known), 1)
    facts: dict[str, Any] = {"tokens": [t._asdict() for t in tokens], "loss": mean}
    lines = [f"{_chance(t.log_prob)}  {t.text!r:16} {_listed(t.alternatives)}" for t in tokens]
    shades = [(t.text, 0.0 if t.log_prob is None else max(-1.0, t.log_prob / 10)) for t in tokens]
    return Shown(shades, facts, [f"loss {mean:.4f} nats a token, perplexity {math.exp(mean):.2f}", *lines])


def _attention(loaded: Pretrained, ids: list[int], written: list[int] | None, most: int) -> Shown:
    source = _words(loaded, ids)
    decoder = source if written is None else _words(loaded, written)
    weights, lines = attention_weights(loaded, ids, written), []
    for name, layers in weights.items():
        of = name.removesuffix("attentions").replace("_", " ")
        readers, read = source if of == "encoder " else decoder, decoder if of == "decoder " else source
        lines += [
            f"{of}layer {n:>3}  {word!r:16} ← {_listed(_best(row, read, most))}"
            for n, layer in enumerate(layers, 1)
            for word, row in zip(readers, layer.mean(0).tolist(), strict=True)
        ]
    facts = {"tokens": source} | ({} if written is None else {"decoder_tokens": decoder})
    listed = {name: [w.tolist() for w in layers] for name, layers in weights.items()}
    return Shown([(word, 0.0) for word in source], facts | listed, lines)


def _lens(loaded: Pretrained, ids: list[int], written: list[int] | None, most: int) -> Shown:
    words = _words(loaded, ids if written is None else written)
    chances = lens(loaded, ids, written).softmax(-1)
    best = chances.topk(min(most, chances.size(-1)))
    layers = [
        [list(zip(_words(loaded, at), values, strict=True)) for at, values in zip(rows, chance, strict=True)]
        for rows, chance in zip(best.indices.tolist(), best.values.tolist(), strict=True)
    ]
    lines = [f"layer {n:>3}  {words[i]!r:16} → {_listed(places[i])}"
             for n, places in enumerate(layers, 1) for i in range(len(words))]  # fmt: skip
    return Shown([(word, 0.0) for word in words], {"tokens": words, "layers": layers}, lines)


def _attributed(loaded: Pretrained, text: str, view: View) -> Shown:
    q = question(loaded, text, view.label, view.word, view.context, view.target)
    a, words = attribute(loaded, q, view.method), _words(loaded, q.ids)
    if view.method == "ig" and a.gap > CLOSE:
        note(f"the shares miss the difference of the logits by {a.gap:.0%}: the integral is not exact here")
    largest = max(map(abs, a.scores), default=0) or 1.0
    facts = a._asdict() | {"tokens": words, "output": q.says, "gap": a.gap, "method": view.method}
    lines = [
        f"{q.says!r}: logit {a.logit:.4f}, {a.baseline:.4f} without the text; the shares sum to {sum(a.scores):.4f}",
        *(f"{score:+9.4f}  {word!r}" for word, score in zip(words, a.scores, strict=True)),
    ]
    if q.tags is not None:
        facts["words"] = q.tags
        lines.append("words: " + "  ".join(f"{n} {word} {tag}" for n, (word, tag) in enumerate(q.tags, 1)))
    return Shown([(word, score / largest) for word, score in zip(words, a.scores, strict=True)], facts, lines)


def _words(loaded: Pretrained, ids: list[int]) -> list[str]:
    return [loaded.needs_tokenizer().decode([i], skip_special=False) for i in ids]


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


def _page(model: str, shown: Shown) -> str:
    spans = "".join(
        f'<span style="background:{_rgb(shade)};color:#000">{html.escape(word)}</span>' if shade else html.escape(word)
        for word, shade in shown.shades
    )
    rows = html.escape("\n".join(shown.lines))
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{html.escape(model)}</title>'
        f"<style>{STYLE}</style><h1>{html.escape(model)}</h1><p>{spans}</p><pre>{rows}</pre></html>\n"
    )
