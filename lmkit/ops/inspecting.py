"""`lmkit inspect`: a look at what a model makes of texts, as coloured text, numbers or a page."""

import html
import json
from pathlib import Path

from rich.console import Console
from rich.text import Text

from lmkit.base.errors import UserError
from lmkit.base.files import write_atomic
from lmkit.ops.corpus_views import nearest_view, neuron_view, probe_view
from lmkit.ops.text_views import Shown, View, text_view
from lmkit.pretrained import Pretrained, load

STYLE = "body{font:16px/1.7 system-ui;max-width:60rem;margin:2rem auto;padding:0 1rem;color-scheme:light dark}"
STYLE += "p{white-space:pre-wrap}"
VIEWS = ("attention", "lens", "attribute", "nearest", "probe", "neuron")
BELONGS = {  # the views that each option is of
    "label": ("attribute", "probe"), "word": ("attribute",), "context": ("attribute",),
    "target": ("attribute", "attention", "lens"), "data": ("neuron",), "column": ("probe", "neuron"),
}  # fmt: skip


def inspect_text(
    model: str, text: str | None, view: View, as_json: bool, page: Path | None, allow_pickle: bool
) -> None:
    """Prints a view, or one JSON object, or writes a page that needs nothing else. Raises UserError for a view that the
    model does not have, and for options that do not belong together."""
    _check(text, view)
    shown = _look(load(model, allow_pickle), text or "", view)
    if page is not None:
        write_atomic(page, _page(model, shown))
        print(page)
    elif as_json:
        print(json.dumps({"model": model, "text": text} | shown.facts, ensure_ascii=False))
    else:
        coloured = Text()
        for word, shade in shown.shades:
            coloured.append(word, style="" if shade == 0 else f"on {_rgb(shade)}")
        if shown.shades:
            Console().print(coloured, soft_wrap=True, highlight=False)
        print("\n".join(shown.lines))


def _check(text: str | None, view: View) -> None:
    named = [name for name in VIEWS if getattr(view, name)]
    if len(named) > 1:
        raise UserError(f"{' and '.join(f'--{name}' for name in named)} are views of their own\n  → name one")
    for option, views in BELONGS.items():
        losses = option == "target" and not named
        if getattr(view, option) is not None and not losses and not set(named) & set(views):
            flag = "text" if option == "column" else option
            raise UserError(f"--{flag} is of {', '.join(f'--{name}' for name in views)}\n  → leave it out, or add one")
    needs_text = not (view.probe or view.data)
    if (text is not None) != needs_text:
        raise UserError("TEXT is missing" if needs_text else "files are read in the place of TEXT\n  → leave TEXT out")


def _look(loaded: Pretrained, text: str, view: View) -> Shown:
    if view.nearest:
        return nearest_view(loaded, text, view)
    if view.probe:
        return probe_view(loaded, view)
    return neuron_view(loaded, text, view) if view.neuron else text_view(loaded, text, view)


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
