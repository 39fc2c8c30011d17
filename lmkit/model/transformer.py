"""The whole model: embedding, one or two stacks of blocks, a head. It returns hidden states; the task then asks the
head for predictions at the positions that it scores.

Shapes: B batch, T tokens, S keys, H heads, E head_dim, D hidden_size, W embedding width, V vocab_size."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lmkit.architecture.model_config import ModelConfig
from lmkit.model.heads import Head, TaskHead
from lmkit.model.layers import Block, Cache, Dropout, make_norm, relative_bucket, sinusoids
from lmkit.model.loss import TokenScores
from lmkit.model.rope import rope_table

Memory = Tensor | list[tuple[Tensor, Tensor]]  # an encoder's states (B, S, D), or keys and values of each block


class Inputs(nn.Module):
    """What a stack does with token embeddings before its first block: it adds positions and which text of a pair a
    token belongs to, applies a norm, and projects to the width of the blocks."""

    def __init__(self, c: ModelConfig):
        super().__init__()
        width = c.embedding_size or c.hidden_size
        rows = c.context + c.position_offset
        self.position = nn.Embedding(rows, width) if c.positions == "learned" else None
        self.places: Tensor
        if c.positions == "sinusoidal":
            self.register_buffer("places", sinusoids(rows, width, c.closed_sinusoids), persistent=False)
        self.segment = nn.Embedding(c.type_vocab_size, width) if c.type_vocab_size else None
        self.norm = make_norm(c, width) if c.embedding_norm else nn.Identity()
        self.dropout = Dropout(c.dropout)
        projected = width != c.hidden_size or c.layer_groups
        self.projection = nn.Linear(width, c.hidden_size) if projected else nn.Identity()

    def forward(self, x: Tensor, positions: Tensor, types: Tensor | None) -> Tensor:
        """Returns (B, T, D) for embeddings x (B, T, W).

        positions: (T,) or (B, T), rows of the table of positions; types: (B, T), None means all 0."""
        if self.segment is not None:
            x = x + (self.segment.weight[0] if types is None else self.segment(types))
        if self.position is not None:
            x = x + self.position(positions)
        elif hasattr(self, "places"):
            x = x + self.places[positions]
        return self.projection(self.dropout(self.norm(x)))


class Stack(nn.Module):
    """Blocks and the norm after them. With `recompute`, the backward pass computes activations again to save memory."""

    def __init__(self, c: ModelConfig, causal: bool, cross: bool = False):
        super().__init__()
        self.config, self.causal, self.recompute = c, causal, False
        self.inputs = Inputs(c)
        own = c.layer_groups * c.group_layers or c.num_layers
        self.blocks = nn.ModuleList(Block(c, causal, cross, first=i == 0) for i in range(own))
        self.norm = make_norm(c, c.hidden_size) if c.final_norm else nn.Identity()
        if c.positions == "rope":
            self.register_buffer("rope", rope_table(c, c.rope_theta, c.rope_scaling), persistent=False)
            if c.long_from:
                self.register_buffer("rope_long", rope_table(c, c.rope_theta, c.rope_scaling, True), persistent=False)
            if c.rope_theta_local:
                self.register_buffer("rope_local", rope_table(c, c.rope_theta_local), persistent=False)
        self.relative = nn.Embedding(c.relative_buckets, c.num_heads) if c.positions == "relative" else None

    @property
    def order(self) -> list[int]:
        """Returns the number of the block that each layer runs.

        In ALBERT, layer i runs all blocks of group i // (layers / groups), one after the other."""
        c = self.config
        if not c.layer_groups:
            return list(range(c.num_layers))
        share = c.num_layers // c.layer_groups
        return [i // share * c.group_layers + j for i in range(c.num_layers) for j in range(c.group_layers)]

    def forward(
        self,
        x: Tensor,
        positions: Tensor,
        types: Tensor | None = None,
        keep: Tensor | None = None,
        segments: Tensor | None = None,
        caches: list[Cache] | None = None,
        memory: Memory | None = None,
        memory_keep: Tensor | None = None,
    ) -> Tensor:
        """Returns hidden states (B, T, D) of embeddings x (B, T, W).

        positions: (T,) or (B, T), without the offset of the table; memory_keep: (B, S) bool, True on real tokens of the
        encoder; the other arguments are those of `Transformer.forward`."""
        c = self.config
        x = self.inputs(x, positions + c.position_offset, types)
        ropes: dict[int | None, Tensor | None] = {None: self._rope("rope", positions)}
        if c.sliding_window is not None:
            ropes[c.sliding_window] = self._rope("rope_local", positions) if c.rope_theta_local else ropes[None]
        cache = caches[0] if caches else None
        windows = {c.window(i) for i in range(c.num_layers)}
        masks = {w: self._mask(positions, x.size(1), cache, w, keep, segments) for w in windows}
        memory_mask = None if memory_keep is None else memory_keep[:, None, None, :]
        for i, n in enumerate(self.order):
            window, cache = c.window(i // c.group_layers), caches[i] if caches else None
            rope = None if i in c.nope_layers else ropes[window]
            read = memory[i] if isinstance(memory, list) else memory
            if self.recompute and self.training:
                x = checkpoint(self.blocks[n], x, masks[window], rope, None, read, memory_mask, use_reentrant=False)
            else:
                x = self.blocks[n](x, masks[window], rope, cache, read, memory_mask)
        return self.norm(x)

    def _rope(self, name: str, positions: Tensor) -> Tensor | None:
        """Returns cos and sin, (2, T, E), or (2, B, 1, T, E) where each row has positions of its own; None where the
        model has other positions than RoPE."""
        if self.config.positions != "rope":
            return None
        rope = getattr(self, name)[:, positions]
        if name == "rope" and self.config.long_from:  # a text is long by its own last position
            long = positions.amax(-1, keepdim=True)[..., None] >= self.config.long_from
            rope = torch.where(long, self.get_buffer("rope_long")[:, positions], rope)
        return rope[:, :, None] if positions.dim() == 2 else rope

    def _mask(
        self, positions: Tensor, T: int, cache: Cache | None, window: int | None, keep: Tensor | None,
        segments: Tensor | None,
    ) -> Tensor | None:  # fmt: skip
        """Returns the mask of attention, which `Attention.forward` describes.

        It is bool, broadcastable to (B, 1, T, S), True where a query may look. It is None where a query of a decoder
        sees itself and all before it, or a query of an encoder sees everything. With relative positions it holds scores
        to add, (1 or B, H, T, S).
        T: number of queries; cache: that of a block, before their tokens are in it; window: the sliding window in
        tokens, None for none."""
        past, ragged = (0, False) if cache is None else (cache.past, cache.columns is not None)
        S, device = past + T, positions.device
        # How many keys a query sees in one direction, itself included.
        reach = S if window is None else window if self.causal else window // 2 + 1
        plain = not ragged and keep is None and segments is None and reach >= S
        plain = plain and (not self.causal or past == 0 or T == 1)
        if plain and self.relative is None:
            return None
        queries = positions if ragged else torch.arange(past, S, device=device)[None]  # (1 or B, T)
        distance = torch.arange(S, device=device) - queries[..., None]  # (1 or B, T, S), key - query
        mask = distance.abs() < reach
        if self.causal:
            mask = mask & (distance <= 0)
        mask = mask[:, None]  # (1 or B, 1, T, S)
        if keep is not None:
            mask = mask & keep[:, None, None, :]
        if segments is not None:
            mask = mask & (segments[:, None, :, None] == segments[:, None, None, :])
        if self.relative is None:
            return mask
        c = self.config
        buckets = relative_bucket(distance, self.causal, c.relative_buckets, c.relative_distance)
        bias = self.relative(buckets).permute(0, 3, 1, 2)  # (1 or B, H, T, S)
        return bias if plain and not self.causal else bias.masked_fill(~mask, float("-inf"))


class Transformer(nn.Module):
    """A decoder, an encoder, or both, of any family that `ModelConfig` describes, with one head."""

    def __init__(self, c: ModelConfig):
        super().__init__()
        self.config = c
        self.moved_rows: dict[str, Tensor] = {}  # where rows of a parameter stood before tensor parallelism moved them
        self.embedding = nn.Embedding(c.vocab_size, c.embedding_size or c.hidden_size)
        self.encoder = None if c.stacks == "decoder" else Stack(c, causal=False)
        both = c.stacks == "encoder_decoder"
        self.decoder = None if c.stacks == "encoder" else Stack(c.decoder, causal=True, cross=both)
        self.head: Head | TaskHead = (
            Head(c, self.embedding) if c.head in ("lm", "pairs") else TaskHead(c, c.spec, len(c.labels))
        )
        self.pairs = TaskHead(c, c.spec, 2) if c.head == "pairs" else None

    @property
    def stacks(self) -> list[Stack]:
        return [s for s in (self.encoder, self.decoder) if s is not None]

    def forward(
        self,
        tokens: Tensor,
        keep: Tensor | None = None,
        segments: Tensor | None = None,
        positions: Tensor | None = None,
        types: Tensor | None = None,
        targets: Tensor | None = None,
        caches: list[Cache] | None = None,
    ) -> Tensor:
        """Returns hidden states (B, T, D) of `tokens` (B, T); with two stacks (B, T', D) of the decoder's `targets`.

        keep: (B, S) bool, True on keys that are real; None means all, and lets the fast attention kernel run.
        segments: (B, T) document numbers of packed rows; tokens then see only their own document.
        positions: (T,) or (B, T); by default they count on from what the caches hold.
        types: (B, T), which text of a pair a token belongs to.
        """
        if self.encoder is None:
            return self._run(self.decoder, tokens, positions, types, keep, segments, caches)
        states = self._run(self.encoder, tokens, positions, types, keep, segments)
        if self.decoder is None:
            return states
        assert targets is not None, "an encoder-decoder needs `targets`, what its decoder reads"
        return self.decode(targets, states, keep)

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Puts the model in eval mode for the time of a `with` block, and back into training mode after it.

        A model that is in eval mode already stays untouched, since a walk over all modules takes a millisecond or
        more."""
        if not self.training:
            yield
            return
        self.eval()
        try:
            yield
        finally:
            self.train()

    def encode(self, tokens: Tensor, keep: Tensor | None = None) -> Tensor:
        """Returns the encoder's states (B, S, D) of `tokens` (B, S)."""
        return self._run(self.encoder, tokens, None, None, keep, None)

    def decode(
        self, targets: Tensor, memory: Memory, memory_keep: Tensor | None = None, caches: list[Cache] | None = None,
        positions: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """Returns the decoder's states (B, T, D) of `targets` (B, T).

        Padding must be on the right of targets, where no real token sees it."""
        more = {"memory": memory, "memory_keep": memory_keep}
        return self._run(self.decoder, targets, positions, None, None, None, caches, **more)

    def _run(
        self, stack: Stack | None, tokens: Tensor, positions: Tensor | None, types: Tensor | None,
        keep: Tensor | None, segments: Tensor | None, caches: list[Cache] | None = None, **more: Memory | None,
    ) -> Tensor:  # fmt: skip
        assert stack is not None, f"a {self.config.stacks} has no such stack"
        c, pad = self.config, self.config.position_padding_id
        if positions is None and pad is not None:  # RoBERTa counts real tokens only
            real = tokens != pad
            positions = real.cumsum(1) * real - 1
        elif positions is None:
            past = caches[0].past if caches else 0
            positions = torch.arange(past, past + tokens.size(1), device=tokens.device)
        x = self.embedding(tokens)
        x = x * c.hidden_size**0.5 if c.scaled_embedding else x
        return stack(x, positions, types, keep, segments, caches, **more)

    def word_loss(self, states: Tensor, labels: Tensor, smoothing: float = 0.0) -> TokenScores:
        """Returns the summed cross-entropy of the words at states (B, T, D); see `Head.loss`."""
        return self._word_head.loss(states, labels, smoothing)

    def word_log_probs(self, states: Tensor, labels: Tensor) -> Tensor:
        """Returns log-probabilities (B, T) of the words at states (B, T, D); see `Head.log_probs`.

        For a batch b of a decoder, `model.word_log_probs(model(b.tokens), b.labels).sum(1)` are the log-probabilities
        of its rows, (B,)."""
        return self._word_head.log_probs(states, labels)

    @property
    def _word_head(self) -> Head:
        assert isinstance(self.head, Head), f"a model with a `{self.config.head}` head predicts no words"
        return self.head

    def new_caches(self, batch: int, length: int, cross: bool = False) -> list[Cache]:
        """Returns empty caches, one per layer of the decoder, for `length` tokens in each of `batch` rows.

        cross: they are for what the decoder reads of an encoder's states."""
        c, like = self.config.decoder, self.embedding.weight
        shape = (batch, c.num_heads if cross else c.num_kv_heads, length, c.head_dim)
        return [Cache(like.new_empty(shape), like.new_empty(shape)) for _ in range(c.num_layers)]

    def read(self, memory: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Returns keys and values of an encoder's states (B, S, D) for each block of the decoder.

        Generation calls it once per text, since they are the same for every token that the decoder writes."""
        assert self.decoder is not None
        return [block.cross.project(memory) for block in self.decoder.blocks]  # type: ignore[operator, union-attr]

    def row_blocks(self, name: str) -> list[int]:
        """Returns the number of rows of each matrix that is stacked in parameter `name`: queries, keys and values, or
        gate and up."""
        c, rows = self.config.decoder if name.startswith("decoder") else self.config, self.get_parameter(name).size(0)
        if ".qkv." in name:
            return [c.num_heads * c.head_dim, c.num_kv_heads * c.head_dim, c.num_kv_heads * c.head_dim]
        halves = ".key_value." in name or (c.gated and ".up." in name)
        return [rows // 2, rows // 2] if halves else [rows]

    def num_parameters(self) -> dict[str, int]:
        """Returns the number of parameters of each part of the model; a tied head has none of its own."""
        sizes = dict.fromkeys(["embedding", "attention", "feed-forward", "norms", "head"], 0)
        for name, p in self.named_parameters():
            part = next((part for mark, part in _PARTS.items() if mark in name), "norms")
            sizes[part] += p.numel()
        return sizes


_PARTS = {
    "norm": "norms", "embedding": "embedding", "inputs.": "embedding", ".attention.": "attention",
    ".cross.": "attention", "relative": "attention", ".mlp.": "feed-forward", "head.": "head", "pairs.": "head",
}  # fmt: skip
