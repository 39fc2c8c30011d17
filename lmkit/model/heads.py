"""Heads turn hidden states into words or labels.

Shapes: B batch, T tokens, D hidden_size, W embedding width, V vocab_size, L labels."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lmkit.architecture.families import HeadSpec
from lmkit.architecture.model_config import ModelConfig
from lmkit.model.layers import ACTIVATIONS, Dropout, make_norm
from lmkit.model.loss import IGNORE, TokenScores, head_loss, label_log_probs


class Head(nn.Module):
    """Turns hidden states into logits over the vocabulary; in encoders through one more layer."""

    def __init__(self, c: ModelConfig, embedding: nn.Embedding):
        super().__init__()
        spec, width = c.table.heads["lm"], embedding.embedding_dim
        self.softcap, self.scale = c.logit_softcap, c.hidden_size**-0.5 if c.scaled_head else None
        self.dense = nn.Linear(c.hidden_size, width, bias=spec.bias) if "dense" in spec.modules else None
        self.norm = make_norm(c, width) if "norm" in spec.modules else nn.Identity()
        self.activation = ACTIVATIONS[spec.activation or c.activation] if self.dense else None
        self.weight = embedding.weight if c.tied else nn.Parameter(torch.empty(c.vocab_size, width))
        self.bias: Tensor | None = None
        if c.head_bias == "learned":
            self.bias = nn.Parameter(torch.empty(c.vocab_size))
        elif c.head_bias == "fixed":  # BART's: zeros, unless a file says otherwise
            self.register_buffer("final_logits_bias", torch.zeros(1, c.vocab_size))
        self.product: nn.Module | None = None  # computes the logits in the place of the weight, which it approximates

    def transform(self, x: Tensor) -> Tensor:
        """Returns the states (..., W) that are multiplied with the word vectors, from hidden states x (..., D)."""
        if self.dense is not None and self.activation is not None:
            x = self.norm(self.activation(self.dense(x)))
        return x if self.scale is None else x * self.scale

    @property
    def word_bias(self) -> Tensor | None:
        """Returns the bias of the logits, (V,), or None where the head has none."""
        fixed = getattr(self, "final_logits_bias", None)
        return self.bias if fixed is None else fixed[0]

    def forward(self, x: Tensor) -> Tensor:
        """Returns the logits (..., V), in float32, of hidden states x (..., D)."""
        x = self.transform(x)
        if self.product is not None:
            logits = self.product(x)
        else:
            bias = self.word_bias
            logits = F.linear(x, self.weight.to(x.dtype), None if bias is None else bias.to(x.dtype)).float()
        return logits if self.softcap is None else self.softcap * torch.tanh(logits / self.softcap)

    def loss(self, hidden: Tensor, labels: Tensor, smoothing: float = 0.0) -> TokenScores:
        """Returns the summed cross-entropy of hidden (B, T, D) against labels (B, T).

        Positions whose label is IGNORE are not scored, and the head does not compute them."""
        hidden, labels = hidden.flatten(0, -2), labels.flatten()
        scored = labels != IGNORE
        if not bool(scored.all()):
            hidden, labels = hidden[scored], labels[scored]
        return head_loss(self.transform(hidden), self.weight, labels, self.softcap, self.word_bias, smoothing)

    def log_probs(self, hidden: Tensor, labels: Tensor) -> Tensor:
        """Returns the log-probability of each label (B, T), given hidden (B, T, D): (B, T) float32 with gradient.

        It is 0 where the label is IGNORE, so the sum over a row is the log-probability of all that is scored there."""
        scored = labels != IGNORE
        states = self.transform(hidden[scored])
        values = label_log_probs(states, self.weight, labels[scored], self.softcap, self.word_bias)
        return values.new_zeros(labels.shape).masked_scatter(scored, values)


class TaskHead(nn.Module):
    """Predicts labels of whole texts, labels of tokens, or the ends of spans.

    Its layers are [dense, activation, norm,] output, as `HeadSpec` says. Without labels there is no output layer, and
    the head returns what that layer would read."""

    def __init__(self, c: ModelConfig, spec: HeadSpec, num_labels: int):
        super().__init__()
        self.pool = {"cls": "first"}.get(c.pooling, c.pooling) if spec.pool == "pooling" else spec.pool
        rate = c.dropout if c.head_dropout is None else c.head_dropout
        self.dropout = Dropout(rate)
        self.dense = nn.Linear(c.hidden_size, c.hidden_size, bias=spec.bias) if "dense" in spec.modules else None
        self.activation = torch.tanh if spec.activation == "tanh" else ACTIVATIONS[spec.activation]
        self.norm = make_norm(c, c.hidden_size) if "norm" in spec.modules else nn.Identity()
        has_output = "output" in spec.modules and num_labels
        self.output = nn.Linear(c.hidden_size, num_labels, bias=spec.output_bias) if has_output else None
        self.unit: float | None = None  # of numbers, in training: a power of two, which files have in the output layer

    def forward(self, x: Tensor, at: Tensor | None = None, keep: Tensor | None = None) -> Tensor:
        """Returns the logits of the labels: (B, T, L) for heads over tokens, else (B, L).

        x: (B, T, D) hidden states.
        at: (B,) the position whose state stands for the row; needed for the poolings `last` and `end`.
        keep: (B, T) bool, True on real tokens, for the pooling `mean`; None where all tokens are real."""
        if self.pool == "first":
            x = x[:, 0]
        elif self.pool == "mean":
            weight = torch.ones_like(x[..., :1]) if keep is None else keep[..., None].to(x.dtype)
            x = (x * weight).sum(1) / weight.sum(1)
        elif self.pool in ("last", "end"):
            assert at is not None, f"pooling `{self.pool}` needs `at`"
            x = x[torch.arange(x.size(0), device=x.device), at]  # `len` would fix the size in a traced graph
        if self.dense is not None:
            x = self.norm(self.activation(self.dense(x)))
        if self.output is None:
            return x
        x = self.dropout(x)
        if self.unit is None:
            return self.output(x)
        with torch.autocast(x.device.type, enabled=False):  # few digits of a mean would be left in bf16
            weight, bias = (None if p is None else p.float() for p in (self.output.weight, self.output.bias))
            return F.linear(x.float(), weight, bias) * self.unit

    @torch.no_grad()
    def measure_in(self, unit: float, start: float | None) -> None:
        """Has the output layer predict numbers in this unit, a power of two. start: of a new head, what its bias is to
        predict at first, if it has one; None: the head goes on predicting what it did, bit for bit."""
        assert self.output is not None
        self.unit = unit
        if start is None:
            for p in self.output.parameters():
                p.div_(unit)
        elif self.output.bias is not None:
            self.output.bias.fill_(start / unit)
