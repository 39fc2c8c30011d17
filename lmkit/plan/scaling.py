"""Scale on paper: what a training step needs on any number of GPUs, by published formulas. Arithmetic only, no torch.

An estimate: docs/scaling.md sets it beside runs that were measured. GPUs = tensor x data processes; `shards` of the
data processes hold one set of weights between them, and data / shards such sets are replicas. Sources, cited below by
their first author:

- Kaplan et al. 2020 (arXiv:2001.08361), Hoffmann et al. 2022 (Chinchilla, arXiv:2203.15556), appendix F, and Chowdhery
  et al. 2022 (PaLM, arXiv:2204.02311), appendix B: FLOPs of a step, and MFU
- Korthikanti et al. 2022 (arXiv:2205.05198): activations and communication of tensor parallelism
- Rajbhandari et al. 2019 (ZeRO, arXiv:1910.02054): state on every GPU, and communication of sharding
- Patarasuk & Yuan 2009 (doi:10.1016/j.jpdc.2008.09.002): bytes of a ring all-reduce
- Dao 2023 (FlashAttention-2, arXiv:2307.08691), Shah et al. 2024 (FlashAttention-3, arXiv:2407.08608): attention's rate
- Jordan et al. 2024 (kellerjordan.github.io/posts/muon): FLOPs of Muon's iterations
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from lmkit.architecture.model_config import ModelConfig
from lmkit.plan.hardware import Hardware

USABLE = 0.92  # of a GPU's memory: the rest is CUDA's context, NCCL's buffers and gaps (an assumption)
LINK = 0.8  # of a link's rate that NCCL reaches; an assumption near published nccl-tests
TRAFFIC = 4  # every kept activation is written, read, and so is its gradient: 4 passes over memory (an assumption)
LAUNCH = 3e-4  # seconds a layer and pass at least: some 60 kernels, 5 µs each to start (an assumption)
HOP, NETWORK_HOP = 3.4e-6, 14e-6  # seconds a step of a ring takes: NCCL's own model, src/graph/tuning.cc, `Simple`
CHUNK = 512  # rows of logits at a time: lmkit.model.loss
ITERATIONS = 5  # of Newton-Schulz: lmkit.training.optimizers.muon


_LLAMA_3 = {"family": "llama", "vocab_size": 128256, "context": 8192, "norm_eps": 1e-5, "rope_theta": 500_000.0}
SHAPES: dict[str, dict[str, Any]] = {  # beyond the presets: too large to train here, to plan all the same
    name: _LLAMA_3
    | {"num_layers": layers, "hidden_size": hidden, "num_heads": heads, "num_kv_heads": 8, "head_dim": 128}
    | {"intermediate_size": wide}
    for name, layers, hidden, heads, wide in (
        ("llama-3-8b", 32, 4096, 32, 14336), ("llama-3-70b", 80, 8192, 64, 28672),
        ("llama-3-405b", 126, 16384, 128, 53248),
    )
}  # fmt: skip


@dataclass(frozen=True)
class Parameters:
    embedding: int  # tokens, positions, segments
    matrices: int  # of all blocks: what Muon trains
    rest: int  # norms, biases, small projections
    head: int  # of its own; a tied one is in `embedding`

    @property
    def total(self) -> int:
        return self.embedding + self.matrices + self.rest + self.head


def parameters(c: ModelConfig) -> Parameters:
    """Exactly those of `lmkit.model.transformer.Transformer(c)`."""
    width = c.embedding_size or c.hidden_size
    embedding, rest = c.vocab_size * width, 0
    for s, cross in _stacks(c):
        embedding += (s.context + s.position_offset) * width * (s.positions == "learned") + s.type_vocab_size * width
        own = s.layer_groups * s.group_layers or s.num_layers
        rest += own * _block_vectors(s, cross) - _norm(s, s.hidden_size) * (not s.first_norm)
        rest += _norm(s, width) * s.embedding_norm + _norm(s, s.hidden_size) * s.final_norm
        rest += s.hidden_size * (width + 1) * (width != s.hidden_size or bool(s.layer_groups))
        rest += s.relative_buckets * s.num_heads * (s.positions == "relative")
    matrices = sum((s.layer_groups * s.group_layers or s.num_layers) * block_matrices(s, x) for s, x in _stacks(c))
    spec = c.table.heads["lm"]
    head = 0 if c.tied else c.vocab_size * width
    rest += (c.hidden_size + spec.bias) * width * ("dense" in spec.modules) + _norm(c, width) * ("norm" in spec.modules)
    rest += c.vocab_size * (c.head_bias == "learned")
    if c.head == "pairs":
        pairs = c.spec
        rest += c.hidden_size * (c.hidden_size + pairs.bias) * ("dense" in pairs.modules)
        rest += _norm(c, c.hidden_size) * ("norm" in pairs.modules) + 2 * (c.hidden_size + pairs.output_bias)
    return Parameters(embedding, matrices, rest, head)


def _stacks(c: ModelConfig) -> list[tuple[ModelConfig, bool]]:
    """Each stack's axes, and whether it also reads another."""
    return [(c, False), (c.decoder, True)] if c.stacks == "encoder_decoder" else [(c, False)]


def block_matrices(c: ModelConfig, cross: bool = False) -> int:
    """Weights of one block that meet every token: attention and feed-forward."""
    attention = c.hidden_size * c.head_dim * (2 * c.num_heads + 2 * c.num_kv_heads)
    read = c.hidden_size * c.head_dim * 4 * c.num_heads * cross
    return attention + read + c.hidden_size * c.intermediate_size * (3 if c.gated else 2)


def _norm(c: ModelConfig, size: int) -> int:
    return size * (1 + c.norm_bias) if c.norm == "layer" else size * c.norm_gain


def _block_vectors(c: ModelConfig, cross: bool) -> int:
    queries, pairs, wide = c.num_heads * c.head_dim, 2 * c.num_kv_heads * c.head_dim, c.intermediate_size
    biases = c.qkv_bias * (queries + pairs) + c.output_bias * c.hidden_size
    biases += cross * (3 * queries * c.qkv_bias + c.hidden_size * c.output_bias)
    biases += c.mlp_bias * (wide * (2 if c.gated else 1) + c.hidden_size)
    per_head = 2 * c.head_dim * (c.qk_norm != "none" and c.norm_gain)
    return biases + per_head + (2 + cross) * _norm(c, c.hidden_size)


def matmul_weights(c: ModelConfig) -> int:
    """Weights a token meets in matrix products, those of shared blocks as often as they are used, and the head."""
    blocks = sum(s.num_layers * (s.group_layers if s.layer_groups else 1) * block_matrices(s, x) for s, x in _stacks(c))
    return blocks + c.vocab_size * (c.embedding_size or c.hidden_size)


def attention_flops(c: ModelConfig, length: int) -> float:
    """FLOPs a token of scores and weighted sums, forwards and backwards: 12 a layer, head and its width, and position
    (PaLM, appendix B; Chinchilla, appendix F). All `length` positions count, or those of the window, although half of a
    causal triangle is empty: the convention of published MFU."""
    total = 0
    for s, cross in _stacks(c):
        seen = sum(min(length, s.window(i) or length) for i in range(s.num_layers)) + cross * s.num_layers * length
        total += 12 * s.num_heads * s.head_dim * seen
    return total


def model_flops(c: ModelConfig, length: int) -> float:
    """FLOPs a token that the model needs: 6 for each weight (2 forwards, 4 backwards: Kaplan, 2.1), and attention."""
    return 6 * matmul_weights(c) + attention_flops(c, length)


def activation_bytes(c: ModelConfig, number: int, tensor: int = 1, recompute: bool = False) -> float:
    """Bytes kept of a token for the backward pass: what Korthikanti's equation 1 counts, for the tensors this model
    keeps (no softmax matrix: attention is fused; no dropout), as counted with torch's saved-tensor hooks; compiled
    blocks keep less. Tensor parallelism splits all but the norms (their equation 2). `number`: bytes in matrix
    products; norms and the residual stream stay float32. recompute: the float32 inputs of the blocks alone."""
    total = 0.0
    for s, cross in _stacks(c):
        layers, size = s.num_layers * (s.group_layers if s.layer_groups else 1), s.hidden_size
        queries, keys = s.num_heads * s.head_dim, s.num_kv_heads * s.head_dim
        same = number == 4 and s.norm == "rms" and not s.norm_gain  # then a norm's output is what its derivative needs
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
    """What is trained."""

    model: ModelConfig
    batch: int  # tokens an optimizer step
    tokens: float  # to train on
    optimizer: str = "muon"
    average: bool = False  # of the weights, too

    @property
    def rows(self) -> int:
        return max(1, self.batch // self.model.context)


@dataclass(frozen=True)
class Mesh:
    """`tensor` GPUs share each layer; `shards` of the data processes share weights, gradients and moments (1: DDP)."""

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
        """The recipe's `parallel:` section."""
        if self.shards == 1:
            return {"data": "ddp", "tensor": self.tensor, "shards": 0}
        return {"data": "fsdp", "tensor": self.tensor, "shards": 0 if self.shards == self.data else self.shards}


@dataclass(frozen=True)
class Memory:
    """Bytes on one GPU."""

    weights: float
    gradients: float
    moments: float
    copies: float  # weights in the precision of matrix products; under FSDP those gathered at one time
    activations: float
    logits: float
    update: float  # working memory of the optimizer's step, when activations are gone

    @property
    def total(self) -> float:
        kept = self.weights + self.gradients + self.moments + self.copies
        return kept + max(self.activations + self.logits, self.update)


def memory(p: Plan, layout: Mesh, tokens: int, recompute: bool, number: int = 2) -> Memory:
    """Of a forward and backward pass over `tokens`. Weights, gradients and moments are float32 and split over shards
    (ZeRO stage 3) and tensor-parallel GPUs. Without shards, autocast keeps a copy of every matrix in bf16; with them
    two blocks (one prefetched) and the embedding and head are whole at a time, and one block's gradient."""
    c, count = p.model, parameters(p.model)
    split = layout.shards * layout.tensor
    whole = count.total / layout.tensor
    moments = moment_bytes(count, p.optimizer) + 4 * count.total * p.average
    table = c.vocab_size * (c.embedding_size or c.hidden_size) / layout.tensor
    if layout.shards > 1:
        block = block_matrices(c.decoder, c.stacks == "encoder_decoder") / layout.tensor
        ends = (count.embedding + count.head) / layout.tensor
        copies = number * (2 * block + ends) + 4 * block
    else:
        copies = number * (whole - count.embedding / layout.tensor * (not c.tied)) * (number < 4)
    width = 4 * c.hidden_size
    kept = tokens * activation_bytes(c, number, layout.tensor, recompute) + tokens * 3 * width  # last norm, head
    layers = c.num_layers + c.num_decoder_layers  # one block's gradients, and its activations where they are made again
    kept += tokens * activation_bytes(c, number, layout.tensor) / layers * (1 + recompute)
    update = 10 * count.matrices / split * (p.optimizer == "muon")  # updates, and half of them stacked three times
    logits = 8 * CHUNK * c.vocab_size / layout.tensor + 4 * table  # a chunk twice, and the head's own gradient
    return Memory(4 * whole / layout.shards, 4 * whole / layout.shards, moments / split, copies, kept, logits, update)


def moment_bytes(count: Parameters, optimizer: str) -> float:
    """float32: one moment for a matrix under Muon, two under Adam (ZeRO, 3.1)."""
    if optimizer == "muon":
        return 4 * count.matrices + 8 * (count.total - count.matrices)
    return {"sgd": 4, "adagrad": 4, "adafactor": 0.4}.get(optimizer, 8) * count.total


def all_reduce_bytes(size: float, members: int) -> float:
    """Sent by each of the members of a ring: 2 (n - 1) / n of the size (Patarasuk & Yuan)."""
    return 2 * (members - 1) / members * size


def gather_bytes(size: float, members: int) -> float:
    """Sent by each in a ring all-gather or reduce-scatter: (n - 1) / n of the whole (ZeRO, 7.1)."""
    return (members - 1) / members * size


@dataclass(frozen=True)
class Traffic:
    """Bytes each GPU sends in a step."""

    gradients: float  # all-reduce of float32 gradients between replicas
    shards: float  # FSDP: all-gather of weights before both passes, reduce-scatter of float32 gradients
    tensor: float  # all-reduce of activations

    @property
    def total(self) -> float:
        return self.gradients + self.shards + self.tensor


def traffic(p: Plan, layout: Mesh, passes: int, recompute: bool, number: int = 2) -> Traffic:
    """`passes`: micro-batches of a step. FSDP gathers and scatters in each; replicas reduce once. Tensor parallelism: 4
    all-reduces a layer, 2 forwards and 2 backwards (Korthikanti, 4.2.2; with sequence parallelism the same bytes), and
    2 more where the forward pass is made again."""
    c, whole = p.model, parameters(p.model).total / layout.tensor
    rows = math.ceil(p.rows / layout.data)
    layers = c.num_layers + c.num_decoder_layers
    one = all_reduce_bytes(rows * c.context * c.hidden_size * number, layout.tensor)
    return Traffic(
        all_reduce_bytes(4 * whole / layout.shards, layout.data // layout.shards),
        passes * (2 * gather_bytes(number * whole, layout.shards) + gather_bytes(4 * whole, layout.shards)),
        layers * (6 if recompute else 4) * one,
    )


def rate(hardware: Hardware, members: int, apart: int) -> float:
    """Bytes/s of a ring of `members` GPUs that are `apart` GPUs from each other. Across nodes all members of a node
    share its network cards: as many as it has members."""
    if members * apart <= hardware.node:
        return LINK * hardware.link
    return LINK * min(hardware.link, max(1, hardware.node // apart) * hardware.network)


def compute_seconds(p: Plan, hw: Hardware, layout: Mesh, tokens: int, recompute: bool) -> float:
    """Of a forward and backward pass: matrix products, attention (causal: half the scores; backwards 5 products for the
    2 forwards: Dao), and passes over memory for everything else."""
    c = p.model
    weights, again = matmul_weights(c), matmul_weights(c) - c.vocab_size * (c.embedding_size or c.hidden_size)
    products = (6 * weights + 2 * again * recompute) / layout.tensor
    attention = attention_flops(c, c.context) * (0.5 if c.causal else 1) * (7 + 2 * recompute) / 6 / layout.tensor
    moved = (TRAFFIC + recompute) * activation_bytes(c, hw.number, layout.tensor)
    each = products / (hw.peak * hw.sustained) + attention / (hw.peak * hw.attention) + moved / hw.bandwidth
    return tokens * each


def optimizer_seconds(p: Plan, hw: Hardware, layout: Mesh) -> float:
    """Weights, gradients and moments are read, weights and moments written. Muon: 20 m² n + 10 m³ FLOPs for a matrix of
    m <= n (Jordan), of all matrices on every replica under DDP, of a share of them under FSDP."""
    c, count = p.model, parameters(p.model)
    split = layout.shards * layout.tensor
    seconds = (12 * count.total + 2 * moment_bytes(count, p.optimizer)) / split / hw.bandwidth
    if p.optimizer == "muon":
        ratio = c.hidden_size / max(c.hidden_size, c.intermediate_size)
        flops = ITERATIONS * (4 + 2 * ratio) * c.hidden_size * count.matrices
        seconds += flops / split / (hw.peak * hw.sustained)
    return seconds


@dataclass(frozen=True)
class Forecast:
    """One layout, its micro-batch chosen, or why it cannot be."""

    layout: Mesh
    micro_batch: int  # tokens
    recompute: bool
    memory: Memory
    other_activations: float  # with recomputation if that is off, without if it is on
    fits: bool
    traffic: Traffic
    seconds: float  # a step
    exposed: float  # of these, waiting for other GPUs
    tokens_per_second: float
    mfu: float
    hours: float

    @property
    def gpu_hours(self) -> float:
        return self.hours * self.layout.gpus


def estimate(p: Plan, hw: Hardware, layout: Mesh, micro: int, recompute: bool) -> Forecast:
    """One micro-batch of `micro` tokens a GPU at a time. Overlap is assumed as FSDP2 and DDP do it: gathers behind the
    layers' work, the reduction of gradients behind the last backward pass (2/3 of its time), and a layer's share of
    each never; tensor parallelism waits for each all-reduce."""
    c = p.model
    passes = math.ceil(math.ceil(p.rows / layout.data) * c.context / micro)
    held = memory(p, layout, micro, recompute, hw.number)
    other = memory(p, layout, micro, not recompute, hw.number)
    sent = traffic(p, layout, passes, recompute, hw.number)
    layers = c.num_layers + c.num_decoder_layers
    work = max(layers * LAUNCH * (4 if recompute else 3) / 3, compute_seconds(p, hw, layout, micro, recompute))
    nodes = math.ceil(layout.shards * layout.tensor / hw.node)
    hops = (layout.shards - nodes) * HOP + (nodes - 1) * NETWORK_HOP if layout.shards > 1 else 0.0
    shard = sent.shards / rate(hw, layout.shards, layout.tensor) / passes + 3 * layers * hops
    reduce = sent.gradients / rate(hw, layout.data // layout.shards, layout.shards * layout.tensor)
    exposed = passes * (max(0.0, shard - work) + shard / layers)
    exposed += max(0.0, reduce - max(work, shard) * 2 / 3) + reduce / layers + sent.tensor / rate(hw, layout.tensor, 1)
    seconds = passes * work + optimizer_seconds(p, hw, layout) + exposed
    speed = p.rows * c.context / seconds
    used = speed * model_flops(c, c.context) / (layout.gpus * hw.peak)
    fits = held.total <= USABLE * hw.memory
    hours = p.tokens / speed / 3600
    return Forecast(
        layout, micro, recompute, held, other.activations, fits, sent, seconds, exposed, speed, used, hours
    )  # fmt: skip


def best_of(p: Plan, hw: Hardware, layout: Mesh) -> Forecast:
    """Micro-batch and recomputation that are fastest (the largest within a hundredth) among those that fit; else those
    that need the least memory."""
    rows, context = math.ceil(p.rows / layout.data), p.model.context
    sizes = [n for n in range(1, rows + 1) if rows % n == 0 and n * context <= max(context, 2**18)]
    tried = [estimate(p, hw, layout, n * context, again) for n in sizes for again in (False, True)]
    fitting = [e for e in tried if e.fits]
    if not fitting:
        return min(tried, key=lambda e: e.memory.total)
    least = min(e.seconds for e in fitting)
    return max((e for e in fitting if e.seconds <= 1.01 * least), key=lambda e: (not e.recompute, e.micro_batch))


def layouts(p: Plan, hw: Hardware, gpus: int) -> Iterator[Mesh]:
    """The sensible ones: DDP, FSDP over all and within a node, each beside tensor parallelism inside a node. Every data
    process needs a row of the batch, every tensor-parallel GPU as many heads."""
    heads = math.gcd(p.model.num_heads, p.model.num_kv_heads)
    for tensor in (t for t in (1, 2, 4, 8) if t <= hw.node and gpus % t == 0 and heads % t == 0):
        data = gpus // tensor
        inside = hw.node // tensor
        if data <= p.rows:
            for shards in dict.fromkeys(s for s in (1, data, inside) if 1 <= s <= data and data % s == 0):
                yield Mesh(gpus, shards, tensor)


def compare(p: Plan, hw: Hardware, gpus: int) -> list[Forecast]:
    """The best of each kind of layout: without tensor parallelism all, of those with it the fastest that fits."""
    found = [best_of(p, hw, layout) for layout in layouts(p, hw, gpus)]
    split = [e for e in found if e.layout.tensor > 1]
    chosen = fastest(split) or min(split, key=lambda e: e.memory.total, default=None)
    return [e for e in found if e.layout.tensor == 1] + ([chosen] if chosen else [])


def fastest(found: list[Forecast]) -> Forecast | None:
    """That fits; the simplest (first) within a hundredth of the highest rate."""
    fitting = [e for e in found if e.fits]
    most = max((e.tokens_per_second for e in fitting), default=0.0)
    return next((e for e in fitting if e.tokens_per_second >= 0.99 * most), None)
