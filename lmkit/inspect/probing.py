"""Linear probes: how well a label can be told from the states of each layer (Alain & Bengio 2017).

Shapes: N texts, L layers, D hidden_size."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from lmkit.base.display import Meter
from lmkit.base.errors import DataError
from lmkit.base.order import rng_for
from lmkit.evaluation.intervals import Estimate, proportion
from lmkit.inspect.reading import layer_states
from lmkit.inspect.states import note_cut, read_batch, text_batches
from lmkit.pretrained import Pretrained


class Probe(NamedTuple):
    """What a layer tells of the labels of texts that were held out, as shares of them with 95% intervals."""

    accuracy: Estimate
    control: Estimate  # of a probe of labels that were shuffled, which the states cannot know


def mean_states(loaded: Pretrained, texts: Sequence[str]) -> np.ndarray:
    """Returns the mean over the tokens of each text of what the first layer reads, and of what each layer makes of it
    before the final norm, (L + 1, N, D); of encoder-decoders, in the encoder."""
    means, cut = dict[int, np.ndarray](), 0
    with Meter("reading", len(texts)) as meter:
        for batch in text_batches(loaded, texts):
            with layer_states(loaded.model.stacks[0]) as states:
                read_batch(loaded, batch)
            weights = batch.keep[..., None] / batch.keep.sum(1)[:, None, None]
            rows = [(layer.float() * weights).sum(1).cpu().numpy() for layer in states]  # L + 1 times (B, D)
            means |= {number: np.stack([row[i] for row in rows]) for i, number in enumerate(batch.numbers)}
            cut += sum(batch.cut)
            meter.update(len(means), "texts")
    note_cut(cut, len(texts))
    return np.stack([means[i] for i in range(len(texts))], 1)


def probe_layers(
    states: np.ndarray, labels: Sequence[str], held_states: np.ndarray, held_labels: Sequence[str], seed: int = 0
) -> list[Probe]:
    """Returns the probe of each layer: a logistic regression on its states, each scaled to variance 1.

    states, held_states: (L + 1, N, D) of the texts to train on, and of those held out. The control has the same labels
    in another order on both sides; Hewitt & Liang 2019 shuffle those of words, which occur again. Raises DataError for
    fewer than two labels."""
    if len(set(labels)) < 2:
        raise DataError("all rows to train on have one label\n  → take rows of other labels too, or another --label")
    rng = rng_for(seed, 0, 0)
    shuffled, held_shuffled = rng.permutation(labels).tolist(), rng.permutation(held_labels).tolist()
    probes = []
    with Meter("probing", len(states)) as meter:
        for layer, (x, held) in enumerate(zip(states, held_states, strict=True)):
            right = _right(x, labels, held, held_labels), _right(x, shuffled, held, held_shuffled)
            probes.append(Probe(*(proportion(n, len(held_labels)) for n in right)))
            meter.update(layer + 1, "layers")
    return probes


def _right(x: np.ndarray, labels: Sequence[str], held: np.ndarray, held_labels: Sequence[str]) -> int:
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000)).fit(x, labels)
    return int((model.predict(held) == np.array(held_labels)).sum())
