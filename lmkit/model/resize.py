"""Changes a trained model: more words in its vocabulary, or its labels in another order."""

import torch
from torch import Tensor, nn

from lmkit.model.transformer import Transformer

ROWS = {
    "embedding.weight": 0,
    "head.weight": 0,
    "head.bias": 0,
    "head.final_logits_bias": 1,
}  # parameters with one row per word, and the dimension of these rows


@torch.no_grad()
def resize_vocabulary(model: Transformer, size: int, known: int, used: int) -> Transformer:
    """Returns the model with `size` rows in its embedding and its head; `model` itself where nothing changes.

    The first `known` rows belong to words that it was trained on, and stay bit for bit. The rows from there up to
    `used`, and all that `model` did not have, become the mean of the first `known`. Rows of the old table from `used`
    on stay, since no token uses them. The caller makes sure that `size` is not smaller than what the model has."""
    old = model.config.vocab_size
    assert known <= old <= size and used <= size, (known, old, used, size)
    new = [*range(known, used), *range(max(old, used), size)]
    if not new:
        return model
    state = {k: _grown(v, ROWS[k], size, known, new) if k in ROWS else v for k, v in model.state_dict().items()}
    out = model if size == old else Transformer(model.config.model_copy(update={"vocab_size": size}))
    out.load_state_dict(state)
    return out.train(model.training)


def _grown(old: Tensor, dim: int, size: int, known: int, new: list[int]) -> Tensor:
    """Returns `old` with `size` rows along `dim`, where the rows `new` are the mean of the first `known`."""
    shape = list(old.shape)
    shape[dim] = size
    out = old.new_zeros(shape)
    out.narrow(dim, 0, old.size(dim)).copy_(old)
    mean = old.narrow(dim, 0, known).mean(dim, keepdim=True)
    out.index_copy_(
        dim,
        torch.tensor(new, device=old.device),
        mean.expand([len(new) if i == dim else n for i, n in enumerate(shape)]),
    )
    return out


@torch.no_grad()
def order_labels(model: Transformer, labels: tuple[str, ...]) -> Transformer:
    """Puts the labels of the model into this order, in place, and returns it.

    `labels` are the labels it has; each takes its row of the head along."""
    output = getattr(model.head, "output", None)
    if isinstance(output, nn.Linear) and labels != model.config.labels:
        rows = torch.tensor([model.config.labels.index(label) for label in labels])
        for parameter in output.parameters():
            parameter.copy_(parameter[rows])
        model.config = model.config.model_copy(update={"labels": labels})
    return model
