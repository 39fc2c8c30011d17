"""The first value of every parameter of a new model."""

import torch
from torch import Tensor

from lmkit.architecture.model_config import ModelConfig
from lmkit.model.transformer import Transformer


@torch.no_grad()
def init_weights(model: Transformer, seed: int = 0) -> None:
    """Fills the model with random weights; one seed gives the same weights on any machine.

    Norms scale by 1, and biases are 0.

    nanochat is filled as its GPT class does it: embedding N(0, 0.8), head N(0, 0.001), inputs U(±sqrt(3/D)), outputs 0.
    T5 is filled as in Raffel et al. 2020; its attention is not scaled, so its queries are. The 2017 Transformer and
    Marian have Glorot's uniform distribution, and embeddings N(0, 1/sqrt(D)). Other families have N(0, 0.02), where
    matrices that write to a pre-norm residual stream are scaled by 1/sqrt(2 * layers) (GPT-2, Radford et al. 2019,
    2.3)."""
    c, g = model.config, torch.Generator().manual_seed(seed)
    for name, p in model.named_parameters():
        new = torch.empty(p.shape)
        if name.endswith("bias"):
            new.zero_()
        elif "norm" in name:
            new.fill_(0.0 if c.norm_plus_one else 1.0)
        elif c.family == "nanochat":
            _nanochat(new, name, c, g)
        elif c.positions == "relative":
            _t5(new, name, c, model.row_blocks(name), g)
        elif c.positions == "sinusoidal":
            _glorot(new, name, c, model.row_blocks(name), g)
        else:
            residual = name.endswith(("attention.output.weight", "down.weight")) and c.norm_position == "pre"
            new.normal_(0, 0.02 / (2 * c.num_layers) ** 0.5 if residual else 0.02, generator=g)
        p.copy_(new)


def _nanochat(new: Tensor, name: str, c: ModelConfig, g: torch.Generator) -> None:
    bound = 3**0.5 * c.hidden_size**-0.5  # a uniform distribution of std D**-0.5
    if name.endswith(("output.weight", "down.weight")):
        new.zero_()
    elif ".blocks." in name:
        new.uniform_(-bound * (0.4 if ".mlp." in name else 1), bound * (0.4 if ".mlp." in name else 1), generator=g)
    else:
        new.normal_(0, 0.001 if name.startswith("head") else 0.8, generator=g)


def _t5(new: Tensor, name: str, c: ModelConfig, rows: list[int], g: torch.Generator) -> None:
    wide = c.hidden_size**-0.5
    if ".blocks." not in name:
        new.normal_(0, 1.0 if name == "embedding.weight" else wide, generator=g)
        return
    writes_residual = name.endswith(("output.weight", "down.weight"))
    new.normal_(0, new.size(1) ** -0.5 if writes_residual else wide, generator=g)
    if ".qkv." in name:
        new[: rows[0]] *= c.head_dim**-0.5
    elif ".query." in name:
        new *= c.head_dim**-0.5


def _glorot(new: Tensor, name: str, c: ModelConfig, rows: list[int], g: torch.Generator) -> None:
    if ".blocks." not in name:
        new.normal_(0, c.hidden_size**-0.5, generator=g)
        return
    for part in new.split(rows):  # the bound of each stacked matrix follows from its own shape
        bound = (6 / sum(part.shape)) ** 0.5
        part.uniform_(-bound, bound, generator=g)
