"""What `lmkit inspect` shows of many texts: those nearest to one, what layers tell of labels, where a neuron fires."""

import heapq
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import islice

import numpy as np

from lmkit.base.display import note, waiting
from lmkit.base.errors import UserError
from lmkit.base.units import brief
from lmkit.checks.result import percent
from lmkit.data.inputs import Problems
from lmkit.data.tables.splitting import limit, split
from lmkit.data.tables.table import read_table
from lmkit.data.tokens.store import TokenStore
from lmkit.evaluation.intervals import proportion
from lmkit.inspect.nearest import NGRAM, nearest_documents
from lmkit.inspect.neurons import Activations, activations, parse_neuron
from lmkit.inspect.probing import mean_states, probe_layers
from lmkit.inspect.states import note_cut
from lmkit.ops.corpus import note_problems, read_texts
from lmkit.ops.text_views import Shown, View
from lmkit.pretrained import Pretrained
from lmkit.recipe.tasks import TableConfig
from lmkit.text.tokenizer import token_texts

MOST_ROWS = 5_000  # that are probed, and kept in memory
HELD_OUT = 0.2
CHUNK = 256  # texts that are read at a time
AROUND = 20  # tokens that are shown before and after the one at which a neuron fires
SHOWN_CHARS = 200  # of a text that is shared, on a terminal
QUANTILES = (0.0, 0.01, 0.1, 0.5, 0.9, 0.99, 1.0)
BINS = 10


def nearest_view(loaded: Pretrained, text: str, view: View) -> Shown:
    """Returns the documents of a store that share most with a text."""
    assert view.nearest is not None
    store = TokenStore(view.nearest).held()
    if loaded.needs_tokenizer().fingerprint != store.tokenizer.fingerprint:
        note(f"{store.path}: its tokenizer is not that of {loaded.folder}, which may not be trained on it")
    tokenizer, train = store.tokenizer, store.split("train")
    ids = tokenizer.encode(text)
    neighbours = nearest_documents(train, ids, view.most)
    shared = [tokenizer.decode(train.tokens(d.document, d.start, d.start + d.length).tolist()) for d in neighbours]
    in_nearest = (
        range(neighbours[0].start_in_text, neighbours[0].start_in_text + neighbours[0].length)
        if neighbours
        else range(0)
    )
    shades = [(word, float(at in in_nearest)) for at, word in enumerate(token_texts(tokenizer, ids))]
    what = f"{NGRAM} tokens in a row" if len(ids) >= NGRAM else "all tokens"
    lines = [f"{len(neighbours):,} documents, of {train.num_documents:,} that were searched for {what} of the text"]
    lines += [
        f"document {d.document}: {d.length:,} tokens in a row, {d.ngrams:,} n-grams  {brief(part, SHOWN_CHARS)!r}"
        for d, part in zip(neighbours, shared, strict=True)
    ]
    facts = [d._asdict() | {"text": part} for d, part in zip(neighbours, shared, strict=True)]
    return Shown(shades, {"documents": facts, "searched": train.num_documents, "tokens": len(ids)}, lines)


def probe_view(loaded: Pretrained, view: View) -> Shown:
    """Returns what each layer tells of the labels of a table. Raises UserError for rows that hold no texts."""
    sources = view.probe or []
    config = TableConfig(train=sources, text=view.column, label=view.label)
    table = read_table(sources, "classify", config, kind="single")
    for line in table.described(sources):
        note(line)
    if any("text" not in row or "pair" in row for row in table.rows):
        raise UserError("--probe is of single texts with a label each")
    if len(table.rows) > MOST_ROWS:
        note(f"probed are {MOST_ROWS:,} of the {len(table.rows):,} rows, drawn at random")
    parts = split(limit(table, MOST_ROWS, 0), HELD_OUT, 0, "classify")
    train, held = ([str(row["label"]) for row in part.rows] for part in parts)
    states = mean_states(loaded, [row["text"] for part in parts for row in part.rows])
    probes = probe_layers(states[:, : len(train)], train, states[:, len(train) :], held)
    [(commonest, _)] = Counter(train).most_common(1)
    base = proportion(held.count(commonest), len(held))
    lines = [f"{len(train):,} texts to train on, {len(held):,} held out; {commonest!r} alone: {percent(base)}"]
    lines += [
        f"layer {n:>3}  {percent(p.accuracy)}  shuffled labels {p.control.value:.1%}" for n, p in enumerate(probes)
    ]
    layers = [{"layer": n} | {k: e._asdict() for k, e in p._asdict().items()} for n, p in enumerate(probes)]
    counts = {"train": len(train), "held_out": len(held)}
    return Shown([], {"layers": layers, "commonest": {"label": commonest} | base._asdict()} | counts, lines)


@dataclass(order=True)
class Firing:
    """A text, by the largest activation of a neuron in it."""

    activation: float
    place: str
    token: str
    tokens: list[str]  # around it
    activations: list[float]  # at these


def neuron_view(loaded: Pretrained, text: str, view: View) -> Shown:
    """Returns where a neuron fires in a text, or in a corpus, and how its activations are spread."""
    neuron, problems = parse_neuron(loaded, view.neuron or ""), Problems()
    texts = iter([("TEXT", text)])
    if view.data:
        texts = read_texts(view.data, view.column or "text", problems, "lmkit inspect")
    best, values, number, cut = list[Firing](), list[np.ndarray](), 0, 0
    with waiting(f"reading with neuron {view.neuron}"):
        while chunk := list(islice(texts, CHUNK)):
            number += len(chunk)
            for a in activations(loaded, neuron, [text for _, text in chunk]):
                values.append(a.values)
                cut += a.cut
                if len(best) < view.most or float(a.values.max()) > best[0].activation:
                    heapq.heappush(best, _firing(loaded, chunk[a.text][0], a))
                    if len(best) > view.most:
                        heapq.heappop(best)
    note_problems(problems)
    note_cut(cut, number)
    every, best = np.concatenate(values), sorted(best, reverse=True)
    quantiles = dict(zip(map(str, QUANTILES), np.quantile(every, QUANTILES).tolist(), strict=True))
    counts, edges = np.histogram(every, BINS)
    largest = max((abs(a) for firing in best for a in firing.activations), default=0) or 1.0
    facts = {
        "neuron": neuron._asdict(), "texts": number, "tokens": len(every), "positive": float((every > 0).mean()),
        "quantiles": quantiles, "histogram": {"edges": edges.tolist(), "counts": counts.tolist()},
        "top": [asdict(firing) for firing in best],
    }  # fmt: skip
    lines = [f"{f.activation:+9.4f}  {f.token!r:16} {f.place}" for f in best]
    lines.append(f"{len(every):,} tokens of {number:,} texts; above 0 at {facts['positive']:.1%}")
    lines.append("quantiles  " + "  ".join(f"{float(q):.0%} {value:+.4f}" for q, value in quantiles.items()))
    lines += _bars(counts.tolist(), edges.tolist())
    return Shown(list(_shaded(best, largest)), facts, lines)


def _firing(loaded: Pretrained, place: str, a: Activations) -> Firing:
    peak = int(a.values.argmax())
    around = slice(max(0, peak - AROUND), peak + AROUND + 1)
    words = token_texts(loaded.needs_tokenizer(), a.ids[around])
    return Firing(float(a.values[peak]), place, words[peak - around.start], words, a.values[around].tolist())


def _shaded(firings: list[Firing], largest: float) -> Iterator[tuple[str, float]]:
    for number, firing in enumerate(firings):
        if number:
            yield "\n", 0.0
        for word, activation in zip(firing.tokens, firing.activations, strict=True):
            yield word, activation / largest


def _bars(counts: list[int], edges: list[float]) -> list[str]:
    widest = max(counts)
    return [
        f"{low:+9.4f} to {high:+9.4f}  {count:>9,}  {'█' * round(40 * count / widest)}"
        for low, high, count in zip(edges, edges[1:], counts, strict=False)
    ]
