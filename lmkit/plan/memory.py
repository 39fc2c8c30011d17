"""Parameters and memory of a training step, by published formulas, for `lmkit plan` and for what a run tells at its
start. It needs no torch.

Sources: Korthikanti et al. 2022 (arXiv:2205.05198) for activations, Rajbhandari et al. 2019 (ZeRO, arXiv:1910.02054)
for the state on every GPU."""

from dataclasses import dataclass
from typing import Any

from lmkit.architecture.model_config import ModelConfig
from lmkit.recipe.optimizers import OPTIMIZERS, OptimizerName

CHUNK = 512  # rows of logits that are computed at a time, as in lmkit.model.loss


@dataclass(frozen=True)
class Parameters:
    """Numbers of parameters."""

    embedding: int  # tokens, positions, segments
    matrices: int  # matrices of all blocks, which Muon trains
    rest: int  # norms, biases, small projections
    head: int  # the head's own weights; a tied head is in `embedding`

    @property
    def total(self) -> int:
        return self.embedding + self.matrices + self.rest + self.head


def parameters(c: ModelConfig) -> Parameters:
    """Returns exactly the numbers of parameters that `lmkit.model.transformer.Transformer(c)` has."""
    width = c.embedding_size or c.hidden_size
    embedding, rest = c.vocab_size * width, 0
    for s, cross in stacks_of(c):
        embedding += (s.context + s.position_offset) * width * (s.positions == "learned") + s.type_vocab_size * width
        own = s.layer_groups * s.group_layers or s.num_layers
        rest += own * _block_vectors(s, cross) - _norm(s, s.hidden_size) * (not s.first_norm)
        rest += _norm(s, width) * s.embedding_norm + _norm(s, s.hidden_size) * s.final_norm
        rest += s.hidden_size * (width + 1) * (width != s.hidden_size or bool(s.layer_groups))
        rest += s.relative_buckets * s.num_heads * (s.positions == "relative")
    matrices = sum((s.layer_groups * s.group_layers or s.num_layers) * s.block_matrices(x) for s, x in stacks_of(c))
    spec = c.table.heads["lm"]
    head = 0 if c.tied else c.vocab_size * width
    rest += (c.hidden_size + spec.bias) * width * ("dense" in spec.modules) + _norm(c, width) * ("norm" in spec.modules)
    rest += c.vocab_size * (c.head_bias == "learned")
    if c.head == "pairs":
        pairs = c.spec
        rest += c.hidden_size * (c.hidden_size + pairs.bias) * ("dense" in pairs.modules)
        rest += _norm(c, c.hidden_size) * ("norm" in pairs.modules) + 2 * (c.hidden_size + pairs.output_bias)
    return Parameters(embedding, matrices, rest, head)


def stacks_of(c: ModelConfig) -> list[tuple[ModelConfig, bool]]:
    """Returns the axes of each stack, and whether it also attends to another stack."""
    return [(c, False), (c.decoder, True)] if c.stacks == "encoder_decoder" else [(c, False)]


def _norm(c: ModelConfig, size: int) -> int:
    return size * (1 + c.norm_bias) if c.norm == "layer" else size * c.norm_gain


def _block_vectors(c: ModelConfig, cross: bool) -> int:
    queries, pairs, wide = c.num_heads * c.head_dim, 2 * c.num_kv_heads * c.head_dim, c.intermediate_size
    biases = c.qkv_bias * (queries + pairs) + c.output_bias * c.hidden_size
    biases += cross * (3 * queries * c.qkv_bias + c.hidden_size * c.output_bias)
    biases += c.mlp_bias * (wide * (2 if c.gated else 1) + c.hidden_size)
    per_head = 2 * c.head_dim * (c.qk_norm != "none" and c.norm_gain)
    return biases + per_head + (2 + cross) * _norm(c, c.hidden_size)


def activation_bytes(c: ModelConfig, number: int, tensor: int = 1, recompute: bool = False) -> float:
    """Returns the bytes per token that the forward pass keeps for the backward pass.

    This is Korthikanti's equation 1 for the tensors that this model keeps: no softmax matrix, since attention is fused,
    and no dropout. The tensors were counted with torch's saved-tensor hooks; compiled blocks keep fewer. Tensor
    parallelism splits all of them except those of norms (their equation 2). number: bytes of a number in matrix
    products; norms and the residual stream stay float32. recompute: only the float32 inputs of blocks are kept."""
    total = 0.0
    for s, cross in stacks_of(c):
        layers, size = s.num_layers * (s.group_layers if s.layer_groups else 1), s.hidden_size
        queries, keys = s.num_heads * s.head_dim, s.num_kv_heads * s.head_dim
        same = number == 4 and s.norm == "rms" and not s.norm_gain  # then the derivative needs only the norm's output
        norms = (2 + cross) * size * (4 if same else 4 + number)
        attention = number * (2 * queries + 2 * keys) + 4 * s.num_heads
        attention += number * (queries + keys) * (s.positions == "rope")
        attention += (4 + number * (s.norm_gain and number < 4)) * (queries + keys) * (s.qk_norm != "none" and not same)
        attention += cross * number * 4 * queries
        feed_forward = number * s.intermediate_size * (4 if s.gated else 2)
        total += layers * (4 * size if recompute else norms + (attention + feed_forward) / tensor)
    return total


@dataclass(frozen=True)
class Plan:
    """The training that is planned."""

    model: ModelConfig
    batch: int  # tokens per optimizer step
    tokens: float  # tokens to train on
    optimizer: OptimizerName = "muon"
    average: bool = False  # whether an average of the weights is kept

    @property
    def rows(self) -> int:
        return max(1, self.batch // self.model.context)


@dataclass(frozen=True)
class Mesh:
    """A layout: `tensor` GPUs share each layer; `shards` of the data processes share weights, gradients and moments (1
    means DDP)."""

    gpus: int
    shards: int = 1
    tensor: int = 1

    @property
    def data(self) -> int:
        return self.gpus // self.tensor

    @property
    def name(self) -> str:
        kind = "ddp" if self.shards == 1 else "fsdp" if self.shards == self.data else f"fsdp in {self.shards}"
        return kind if self.tensor == 1 else f"tensor {self.tensor} × {kind}"

    @property
    def keys(self) -> dict[str, Any]:
        """Returns the layout as keys of a recipe's `parallel:` section."""
        if self.shards == 1:
            return {"data": "ddp", "tensor": self.tensor, "shards": 0}
        return {"data": "fsdp", "tensor": self.tensor, "shards": 0 if self.shards == self.data else self.shards}


@dataclass(frozen=True)
class MemoryUse:
    """Bytes on one GPU."""

    weights: float
    gradients: float
    moments: float
    copies: float  # weights in the precision of matrix products; with FSDP those that are gathered at one time
    activations: float
    logits: float
    update: float  # working memory of the optimizer's step, when activations are freed already

    @property
    def total(self) -> float:
        state = self.weights + self.gradients + self.moments + self.copies
        return state + max(self.activations + self.logits, self.update)


def memory(p: Plan, mesh: Mesh, tokens: int, recompute: bool, number: int = 2) -> MemoryUse:
    """Returns the memory of a forward and backward pass over `tokens` on each GPU.

    Weights, gradients and moments are float32, and split over shards (ZeRO stage 3) and tensor-parallel GPUs. Without
    shards, autocast keeps a copy of every matrix in bf16. With shards, these are whole at one time: two blocks, one of
    which is prefetched, embedding and head, and one block's gradient."""
    c, count = p.model, parameters(p.model)
    split = mesh.shards * mesh.tensor
    whole = count.total / mesh.tensor
    moments = moment_bytes(count, p.optimizer) + 4 * count.total * p.average
    table = c.vocab_size * (c.embedding_size or c.hidden_size) / mesh.tensor
    if mesh.shards > 1:
        block = c.decoder.block_matrices(c.stacks == "encoder_decoder") / mesh.tensor
        ends = (count.embedding + count.head) / mesh.tensor
        copies = number * (2 * block + ends) + 4 * block
    else:
        copies = number * (whole - count.embedding / mesh.tensor * (not c.tied)) * (number < 4)
    width = 4 * c.hidden_size
    activations = tokens * activation_bytes(c, number, mesh.tensor, recompute) + tokens * 3 * width  # last norm, head
    layers = c.num_layers + c.num_decoder_layers  # one block's gradients, and its activations if they are recomputed
    activations += tokens * activation_bytes(c, number, mesh.tensor) / layers * (1 + recompute)
    update = 10 * count.matrices / split * (p.optimizer == "muon")  # updates, and half of them stacked three times
    logits = 8 * CHUNK * c.vocab_size / mesh.tensor + 4 * table  # a chunk twice, and the head's own gradient
    own = 4 * whole / mesh.shards  # bytes of the weights that this GPU holds, and of their gradients
    return MemoryUse(own, own, moments / split, copies, activations, logits, update)


def moment_bytes(count: Parameters, optimizer: OptimizerName) -> float:
    """Returns the bytes of what the optimizer keeps besides the weights, in float32."""
    facts = OPTIMIZERS[optimizer]
    return 4 * (facts.moments * count.matrices + facts.other_moments * (count.total - count.matrices))
