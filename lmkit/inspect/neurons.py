"""The activations of one neuron of a feed-forward layer: what the layer's second projection reads of it."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from torch import Tensor, nn

from lmkit.base.errors import UserError
from lmkit.inspect.states import read_batch, text_batches
from lmkit.model.layers import FeedForward
from lmkit.model.transformer import Stack
from lmkit.pretrained import Pretrained


class Neuron(NamedTuple):
    """Layers count from 1, neurons from 0."""

    layer: int
    number: int


class Activations(NamedTuple):
    """The activations of a neuron in one text."""

    text: int  # its number
    ids: list[int]
    values: np.ndarray  # (T,) float32
    cut: bool  # whether the text was longer


def parse_neuron(loaded: Pretrained, name: str) -> Neuron:
    """Returns the neuron LAYER.NUMBER; of an encoder-decoder, in its encoder. Raises UserError for one that the model
    does not have."""
    layer, _, number = name.partition(".")
    stack = loaded.model.stacks[0]
    width = _down(stack, 0).in_features
    if not (layer.isdecimal() and number.isdecimal() and 1 <= int(layer) <= len(stack.order) and int(number) < width):
        raise UserError(
            f"--neuron {name!r}: {loaded.folder} has no such neuron\n"
            f"  allowed: LAYER.NUMBER, layers 1 to {len(stack.order)}, numbers 0 to {width - 1}"
        )
    return Neuron(int(layer), int(number))


def _down(stack: Stack, block: int) -> nn.Linear:
    mlp = stack.blocks[block].mlp
    assert isinstance(mlp, FeedForward)
    return mlp.down


def activations(loaded: Pretrained, neuron: Neuron, texts: Sequence[str]) -> Iterator[Activations]:
    """Yields what the neuron makes of each text, in any order."""
    stack, seen = loaded.model.stacks[0], list[Tensor]()
    block = stack.order[neuron.layer - 1]
    call = stack.order[: neuron.layer - 1].count(block)  # layers of ALBERT share their blocks
    keep = lambda _, inputs: seen.append(inputs[0][..., neuron.number])
    for batch in text_batches(loaded, texts):
        hook = _down(stack, block).register_forward_pre_hook(keep)
        try:
            read_batch(loaded, batch)
        finally:
            hook.remove()
        rows, lengths = seen[call].float().cpu().numpy(), batch.keep.sum(1).tolist()
        seen.clear()
        for i, length in enumerate(lengths):
            yield Activations(batch.numbers[i], batch.ids[i, :length].tolist(), rows[i, :length], batch.cut[i])
