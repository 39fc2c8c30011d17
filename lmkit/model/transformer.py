"""The whole model: embedding, a stack of blocks, a head. It returns hidden states; the task asks the head for the
positions it scores. Shapes: B batch, T tokens, S keys, D hidden_size, V vocab_size."""

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lmkit.architecture import ModelConfig
from lmkit.model.layers import Block, Cache, make_norm, rope_table


class Embedding(nn.Module):
    def __init__(self, c: ModelConfig):
        super().__init__()
        self.token = nn.Embedding(c.vocab_size, c.hidden_size)
        self.position = nn.Embedding(c.context, c.hidden_size) if c.positions == "learned" else None
        self.norm = make_norm(c, c.hidden_size) if c.embedding_norm else nn.Identity()
        self.dropout = nn.Dropout(c.dropout)

    def forward(self, tokens: Tensor, positions: Tensor) -> Tensor:
        """tokens: (B, T); positions: (T,) or (B, T) -> (B, T, D)."""
        x = self.token(tokens)
        if self.position is not None:
            x = x + self.position(positions)
        return self.dropout(self.norm(x))


class Stack(nn.Module):
    """Causal blocks and the norm after them. `recompute`: activations are made again in the backward pass."""

    def __init__(self, c: ModelConfig):
        super().__init__()
        self.config, self.recompute = c, False
        self.blocks = nn.ModuleList(Block(c) for _ in range(c.num_layers))
        self.norm = make_norm(c, c.hidden_size)
        self.cos: Tensor
        self.sin: Tensor
        if c.positions == "rope":
            cos, sin = rope_table(c)
            self.register_buffer("cos", cos, persistent=False)
            self.register_buffer("sin", sin, persistent=False)

    def forward(
        self,
        x: Tensor,
        positions: Tensor,
        keep: Tensor | None = None,
        segments: Tensor | None = None,
        caches: list[Cache] | None = None,
    ) -> Tensor:
        rope = None
        if self.config.positions == "rope":
            rope = (self.cos[positions], self.sin[positions])  # (T, E), or (B, T, E) for rows that start apart
            if positions.dim() == 2:
                rope = (rope[0][:, None], rope[1][:, None])
        past = caches[0].length if caches else 0
        masks = {
            w: self._mask(x, past, w, keep, segments) for w in {self.config.window(i) for i in range(len(self.blocks))}
        }
        for i, block in enumerate(self.blocks):
            mask = masks[self.config.window(i)]
            if self.recompute and self.training:
                x = checkpoint(block, x, mask, rope, use_reentrant=False)
            else:
                x = block(x, mask, rope, caches[i] if caches else None)
        return self.norm(x)

    def _mask(
        self, x: Tensor, past: int, window: int | None, keep: Tensor | None, segments: Tensor | None
    ) -> Tensor | None:
        """Bool, broadcastable to (B, 1, T, S), True where a query may look; None where plain causal says it all."""
        T, S = x.size(1), past + x.size(1)
        if keep is None and segments is None and (window is None or window >= S) and (past == 0 or T == 1):
            return None
        distance = torch.arange(past, S, device=x.device)[:, None] - torch.arange(S, device=x.device)  # query - key
        mask = (distance >= 0)[None, None]  # (1, 1, T, S)
        if window is not None:
            mask = mask & (distance < window)
        if keep is not None:
            mask = mask & keep[:, None, None, :]
        if segments is not None:
            mask = mask & (segments[:, None, :, None] == segments[:, None, None, :])
        return mask


class Head(nn.Module):
    """Hidden states to vocabulary logits."""

    def __init__(self, c: ModelConfig, embedding: nn.Embedding):
        super().__init__()
        self.softcap = c.logit_softcap
        self.weight = embedding.weight if c.tied else nn.Parameter(torch.empty(c.vocab_size, c.hidden_size))

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., V) float32."""
        logits = nn.functional.linear(x, self.weight.to(x.dtype)).float()
        return logits if self.softcap is None else self.softcap * torch.tanh(logits / self.softcap)


class Transformer(nn.Module):
    """A causal language model of any family in `ModelConfig`."""

    def __init__(self, c: ModelConfig):
        super().__init__()
        self.config = c
        self.embedding = Embedding(c)
        self.decoder = Stack(c)
        self.head = Head(c, self.embedding.token)

    def forward(
        self,
        tokens: Tensor,
        keep: Tensor | None = None,
        segments: Tensor | None = None,
        positions: Tensor | None = None,
        caches: list[Cache] | None = None,
    ) -> Tensor:
        """Hidden states (B, T, D) of `tokens` (B, T).

        keep: (B, S) bool, True on keys that are real; None: all, which keeps the fast causal kernel.
        segments: (B, T) document numbers of packed rows; tokens then see only their own document.
        positions: (T,) or (B, T); default: counted on from what the caches hold.
        """
        if positions is None:
            past = caches[0].length if caches else 0
            positions = torch.arange(past, past + tokens.size(1), device=tokens.device)
        return self.decoder(self.embedding(tokens, positions), positions, keep, segments, caches)

    def new_caches(self, batch: int, length: int) -> list[Cache]:
        """Empty caches for `length` tokens a row."""
        c, like = self.config, self.head.weight
        shape = (batch, c.num_kv_heads, length, c.head_dim)
        return [Cache(like.new_empty(shape), like.new_empty(shape)) for _ in range(c.num_layers)]

    def row_blocks(self, name: str) -> list[int]:
        """Heights of the matrices stacked in parameter `name`: queries, keys and values; gate and up."""
        c, rows = self.config, self.get_parameter(name).size(0)
        if ".qkv." in name:
            return [c.num_heads * c.head_dim, c.num_kv_heads * c.head_dim, c.num_kv_heads * c.head_dim]
        return [rows // 2, rows // 2] if c.gated and ".up." in name else [rows]

    def num_parameters(self) -> dict[str, int]:
        """By part; a tied head counts nothing."""
        sizes = {"embedding": 0, "attention": 0, "feed-forward": 0, "norms": 0, "head": 0}
        for name, p in self.named_parameters():
            part = next((k for k, v in _PARTS.items() if v in name), "norms")
            sizes[part] += p.numel()
        return sizes


_PARTS = {
    "norms": "norm",
    "embedding": "embedding.",
    "attention": ".attention.",
    "feed-forward": ".mlp.",
    "head": "head.",
}


@torch.no_grad()
def init_weights(model: Transformer, seed: int = 0) -> None:
    """Every parameter, in one place, from its own generator: the same seed gives the same weights on any machine.

    nanochat: as its GPT class does (embedding N(0, 0.8), head N(0, 0.001), inputs U(±sqrt(3/D)), outputs 0). Others:
    N(0, 0.02), what writes to the residual stream scaled by 1/sqrt(2 * layers) (GPT-2, Radford et al. 2019, 2.3).
    """
    c, g = model.config, torch.Generator().manual_seed(seed)
    nano = c.family == "nanochat"
    bound = 3**0.5 * c.hidden_size**-0.5  # a uniform distribution of std D**-0.5
    for name, p in model.named_parameters():
        new = torch.empty(p.shape)
        if name.endswith("bias"):
            new.zero_()
        elif "norm" in name:
            new.fill_(1.0)
        elif nano and name.endswith(("output.weight", "down.weight")):
            new.zero_()
        elif nano and ".blocks." in name:
            new.uniform_(-bound * (0.4 if ".mlp." in name else 1), bound * (0.4 if ".mlp." in name else 1), generator=g)
        elif nano:
            new.normal_(0, 0.001 if name.startswith("head") else 0.8, generator=g)
        else:
            residual = name.endswith(("output.weight", "down.weight"))
            new.normal_(0, 0.02 / (2 * c.num_layers) ** 0.5 if residual else 0.02, generator=g)
        p.copy_(new)
