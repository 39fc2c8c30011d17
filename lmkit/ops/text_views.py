"""What `lmkit inspect` shows of one text: its losses, its attention, the words of layers, the shares of tokens."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch

from lmkit.base.display import note
from lmkit.inspect.attribution import Method, attribute
from lmkit.inspect.questions import question
from lmkit.inspect.reading import attention_weights, check_view, decoder_ids, lens, text_ids, token_losses
from lmkit.pretrained import Pretrained
from lmkit.text.tokenizer import token_texts

CLOSE = 0.05  # the gap up to which an integral is as exact as it need be

SMALL = 0.1  # a difference of logits that changes odds by a tenth


@dataclass(frozen=True)
class View:
    """What is looked at: one of those in VIEWS, or the losses of the tokens; and what belongs to some of them."""

    attention: bool = False
    lens: bool = False
    attribute: bool = False
    method: Method = "ig"
    label: str | None = None  # whose logit is attributed; None: what the model says
    word: str | None = None  # of taggers: whose label
    context: str | None = None  # of models that find answers: where
    target: str | None = None  # what an encoder-decoder has written
    nearest: Path | None = None  # a token store
    probe: list[str] | None = None  # files of labelled texts
    neuron: str | None = None  # LAYER.NUMBER
    data: list[str] | None = None  # files of texts, for a neuron
    column: str | None = None  # of the texts of `probe` and `data`
    most: int = 5  # that are listed


class Shown(NamedTuple):
    """A view, ready to be printed."""

    shades: list[tuple[str, float]]  # pieces of text, and a shade from -1 to 1 of each
    facts: dict[str, Any]
    lines: list[str]  # below the text


def text_view(loaded: Pretrained, text: str, view: View) -> Shown:
    """Returns a view of one text. Raises UserError for a view that the model does not have."""
    if view.attribute:
        return _attributed(loaded, text, view)
    if not (view.attention or view.lens):
        return _losses(loaded, text, view.target, view.most)
    if view.lens:
        check_view(loaded, "--lens")
    ids, written = text_ids(loaded, text), decoder_ids(loaded, view.target)
    return (_attention if view.attention else _lens)(loaded, ids, written, view.most)


def _losses(loaded: Pretrained, text: str, target: str | None, most: int) -> Shown:
    tokens = token_losses(loaded, text, target, most)
    known = [t for t in tokens if t.log_prob is not None]
    mean = -sum(t.log_prob or 0 for t in known) / max(len(known), 1)
    facts: dict[str, Any] = {"tokens": [t._asdict() for t in tokens], "loss": mean}
    lines = [f"{_chance(t.log_prob)}  {t.text!r:16} {_listed(t.alternatives)}" for t in tokens]
    shades = [(t.text, 0.0 if t.log_prob is None else max(-1.0, t.log_prob / 10)) for t in tokens]
    return Shown(shades, facts, [f"loss {mean:.4f} nats a token, perplexity {math.exp(mean):.2f}", *lines])


def _attention(loaded: Pretrained, ids: list[int], written: list[int] | None, most: int) -> Shown:
    source = token_texts(loaded.needs_tokenizer(), ids)
    if written is None and loaded.config.stacks == "encoder_decoder":  # the decoder reads the text once more
        written = loaded.shifted(torch.tensor([ids]))[0].tolist()
    decoder = source if written is None else token_texts(loaded.needs_tokenizer(), written)
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
    words = token_texts(loaded.needs_tokenizer(), ids if written is None else written)
    chances = lens(loaded, ids, written).softmax(-1)
    best = chances.topk(min(most, chances.size(-1)))
    word = lambda token: loaded.needs_tokenizer().decode([token], skip_special=False)
    listed = lambda place, values: [(word(i), chance) for i, chance in zip(place, values, strict=True)]
    layers = [
        [listed(*pair) for pair in zip(places, values, strict=True)]
        for places, values in zip(best.indices.tolist(), best.values.tolist(), strict=True)
    ]
    lines = [f"layer {n:>3}  {words[i]!r:16} → {_listed(places[i])}"
             for n, places in enumerate(layers, 1) for i in range(len(words))]  # fmt: skip
    return Shown([(word, 0.0) for word in words], {"tokens": words, "layers": layers}, lines)


def _attributed(loaded: Pretrained, text: str, view: View) -> Shown:
    q = question(loaded, text, view.label, view.word, view.context, view.target)
    a, words = attribute(loaded, q, view.method), token_texts(loaded.needs_tokenizer(), q.ids)
    if view.method == "ig" and a.gap > CLOSE:
        note(
            f"the shares miss the difference of the logits by {a.gap:.0%}: the integral is not exact here"
            "\n  → --method occlusion asks the model without each token in turn"
        )
    if abs(a.logit - a.baseline) < SMALL:
        note(f"the text moves this logit by {a.logit - a.baseline:.4f} alone, so the shares tell little")
    largest = max(map(abs, a.scores), default=0) or 1.0
    facts = a._asdict() | {"tokens": words, "output": q.says, "gap": a.gap, "method": view.method}
    facts |= {"probability": q.chance, "likeliest": q.likeliest}
    chance = "" if q.chance is None else f" ({q.chance:.1%})"
    chance += f", where {q.likeliest!r} is likelier" if q.likeliest not in ("", q.says) else ""
    lines = [
        f"{q.says!r}{chance}: logit {a.logit:.4f}, {a.baseline:.4f} without the text; the shares sum to"
        f" {sum(a.scores):.4f}",
        *(f"{score:+9.4f}  {word!r}" for word, score in zip(words, a.scores, strict=True)),
    ]
    if q.tags is not None:
        facts["words"] = q.tags
        lines.append("words: " + "  ".join(f"{n} {word} {tag}" for n, (word, tag) in enumerate(q.tags, 1)))
    return Shown([(word, score / largest) for word, score in zip(words, a.scores, strict=True)], facts, lines)


def _best(weights: list[float], words: list[str], most: int) -> list[tuple[str, float]]:
    order = sorted(range(len(weights)), key=lambda i: -weights[i])[:most]
    return [(words[i], weights[i]) for i in order]


def _listed(pairs: list[tuple[str, float]]) -> str:
    return "  ".join(f"{word!r} {share:.1%}" for word, share in pairs)


def _chance(log_prob: float | None) -> str:
    return "       " if log_prob is None else f"{math.exp(log_prob):7.2%}"
