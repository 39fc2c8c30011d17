"""Estimates how long a training step takes on any number of GPUs, by published formulas. It needs no torch.

docs/scaling.md compares these estimates with runs that were measured. GPUs = tensor x data processes; `shards` of the
data processes hold one set of weights between them, and data / shards such sets are replicas. Sources, cited below by
their first author or name:

- Kaplan et al. 2020 (arXiv:2001.08361), Hoffmann et al. 2022 (Chinchilla, arXiv:2203.15556), appendix F, and Chowdhery
  et al. 2022 (PaLM, arXiv:2204.02311), appendix B: FLOPs of a step, and MFU
- Korthikanti et al. 2022 (arXiv:2205.05198): communication of tensor parallelism
- Rajbhandari et al. 2019 (ZeRO, arXiv:1910.02054): communication of sharding
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
from lmkit.plan.memory import (
    MemoryUse,
    Mesh,
    Plan,
    activation_bytes,
    memory,
    moment_bytes,
    parameters,
    stacks_of,
)

USABLE = 0.92  # usable share of a GPU's memory; the rest is CUDA's context, NCCL's buffers and gaps (an assumption)
LINK = 0.8  # the share of a link's rate that NCCL reaches; an assumption near published nccl-tests
TRAFFIC = 4  # passes over memory per activation: it is written and read, and so is its gradient (an assumption)
LAUNCH = 3e-4  # the least seconds per layer and pass: some 60 kernels, 5 µs each to start (an assumption)
HOP, NETWORK_HOP = 3.4e-6, 14e-6  # seconds per step of a ring, by NCCL's own model, src/graph/tuning.cc, `Simple`
ITERATIONS = 5  # iterations of Newton-Schulz, as in lmkit.training.optimizers.muon


_LLAMA_3 = {"family": "llama", "vocab_size": 128256, "context": 8192, "norm_eps": 1e-5, "rope_theta": 500_000.0}
SHAPES: dict[str, dict[str, Any]] = {  # sizes besides the presets, only to plan with: too large to train here
    name: _LLAMA_3
    | {"num_layers": layers, "hidden_size": hidden, "num_heads": heads, "num_kv_heads": 8, "head_dim": 128}
    | {"intermediate_size": wide}
    for name, layers, hidden, heads, wide in (
        ("llama-3-8b", 32, 4096, 32, 14336), ("llama-3-70b", 80, 8192, 64, 28672),
        ("llama-3-405b", 126, 16384, 128, 53248),
    )
}  # fmt: skip


def matmul_weights(c: ModelConfig) -> int:
    """Returns the number of weights that a token is multiplied with, the head included.

    Weights of shared blocks count as often as they are used."""
    blocks = sum(
        s.num_layers * (s.group_layers if s.layer_groups else 1) * s.block_matrices(x) for s, x in stacks_of(c)
    )
    return blocks + c.vocab_size * (c.embedding_size or c.hidden_size)


def attention_flops(c: ModelConfig, length: int) -> float:
    """Returns the FLOPs per token of scores and weighted sums, forwards and backwards.

    They are 12 per layer, head, dimension of a head, and position (PaLM, appendix B; Chinchilla, appendix F). All
    `length` positions count, or those of the window, although a causal model needs only half of them; this is the
    convention of published MFU."""
    total = 0
    for s, cross in stacks_of(c):
        seen = sum(min(length, s.window(i) or length) for i in range(s.num_layers)) + cross * s.num_layers * length
        total += 12 * s.num_heads * s.head_dim * seen
    return total


def model_flops(c: ModelConfig, length: int) -> float:
    """Returns the FLOPs per token that the model needs: 6 for each weight (2 forwards, 4 backwards: Kaplan, 2.1), and
    those of attention."""
    return 6 * matmul_weights(c) + attention_flops(c, length)


def all_reduce_bytes(size: float, members: int) -> float:
    """Returns the bytes that each member of a ring sends in an all-reduce: 2 (n - 1) / n of the size (Patarasuk &
    Yuan)."""
    return 2 * (members - 1) / members * size


def gather_bytes(size: float, members: int) -> float:
    """Returns the bytes that each member of a ring sends in an all-gather or reduce-scatter: (n - 1) / n of the whole
    (ZeRO, 7.1)."""
    return (members - 1) / members * size


@dataclass(frozen=True)
class Traffic:
    """Bytes that each GPU sends in a step."""

    gradients: float  # all-reduce of float32 gradients between replicas
    shards: float  # FSDP: all-gather of weights before both passes, reduce-scatter of float32 gradients
    tensor: float  # all-reduce of activations

    @property
    def total(self) -> float:
        return self.gradients + self.shards + self.tensor


def traffic(p: Plan, mesh: Mesh, passes: int, recompute: bool, number: int = 2) -> Traffic:
    """Returns the bytes that each GPU sends in a step of `passes` micro-batches.

    FSDP gathers and scatters in each micro-batch; replicas reduce once. Tensor parallelism needs 4 all-reduces per
    layer, 2 forwards and 2 backwards (Korthikanti, 4.2.2; with sequence parallelism the same bytes), and 2 more where
    the forward pass is computed again. number: bytes of a number in matrix products."""
    c, whole = p.model, parameters(p.model).total / mesh.tensor
    rows = math.ceil(p.rows / mesh.data)
    layers = c.num_layers + c.num_decoder_layers
    one = all_reduce_bytes(rows * c.context * c.hidden_size * number, mesh.tensor)
    return Traffic(
        all_reduce_bytes(4 * whole / mesh.shards, mesh.data // mesh.shards),
        passes * (2 * gather_bytes(number * whole, mesh.shards) + gather_bytes(4 * whole, mesh.shards)),
        layers * (6 if recompute else 4) * one,
    )


def rate(hardware: Hardware, members: int, apart: int) -> float:
    """Returns the bytes/s of a ring of `members` GPUs, where the number of each is `apart` more than that of the last.

    Across nodes, the ring uses as many network cards of each node as it has members there."""
    if members * apart <= hardware.node:
        return LINK * hardware.link
    return LINK * min(hardware.link, max(1, hardware.node // apart) * hardware.network)


def compute_seconds(p: Plan, hw: Hardware, mesh: Mesh, tokens: int, recompute: bool) -> float:
    """Returns the seconds of a forward and backward pass over `tokens`.

    They are those of matrix products, of attention (where causal, of half the scores; 5 products backwards and 2
    forwards: Dao), and of passes over memory for everything else."""
    c = p.model
    weights, again = matmul_weights(c), matmul_weights(c) - c.vocab_size * (c.embedding_size or c.hidden_size)
    products = (6 * weights + 2 * again * recompute) / mesh.tensor
    attention = attention_flops(c, c.context) * (0.5 if c.causal else 1) * (7 + 2 * recompute) / 6 / mesh.tensor
    moved = (TRAFFIC + recompute) * activation_bytes(c, hw.number, mesh.tensor)
    each = products / (hw.peak * hw.sustained) + attention / (hw.peak * hw.attention) + moved / hw.bandwidth
    return tokens * each


def optimizer_seconds(p: Plan, hw: Hardware, mesh: Mesh) -> float:
    """Returns the seconds of the optimizer's step, in which weights, gradients and moments are read, and weights and
    moments are written.

    Muon needs 20 m² n + 10 m³ FLOPs for a matrix (m, n) with m <= n (Jordan). With DDP every replica computes all
    matrices, with FSDP each process a share of them."""
    c, count = p.model, parameters(p.model)
    split = mesh.shards * mesh.tensor
    seconds = (12 * count.total + 2 * moment_bytes(count, p.optimizer)) / split / hw.bandwidth
    if p.optimizer == "muon":
        ratio = c.hidden_size / max(c.hidden_size, c.intermediate_size)
        flops = ITERATIONS * (4 + 2 * ratio) * c.hidden_size * count.matrices
        seconds += flops / split / (hw.peak * hw.sustained)
    return seconds


@dataclass(frozen=True)
class Forecast:
    """The estimate for one layout with one micro-batch."""

    mesh: Mesh
    micro_batch: int  # tokens
    recompute: bool
    memory: MemoryUse
    other_activations: float  # bytes of activations with recomputation if it is off here, without it if it is on
    fits: bool  # whether memory is enough
    traffic: Traffic
    seconds: float  # seconds per step
    exposed: float  # the part of these seconds in which a GPU waits for others
    tokens_per_second: float
    mfu: float
    hours: float

    @property
    def gpu_hours(self) -> float:
        return self.hours * self.mesh.gpus


def estimate(p: Plan, hw: Hardware, mesh: Mesh, micro: int, recompute: bool) -> Forecast:
    """Returns the estimate for a layout where each GPU computes one micro-batch of `micro` tokens at a time.

    Communication is assumed to overlap with computation as in FSDP2 and DDP: gathers with the work of layers, and the
    reduction of gradients with the last backward pass, which is 2/3 of a pass; one layer's share of each cannot
    overlap. Tensor parallelism waits for each all-reduce."""
    c = p.model
    passes = math.ceil(math.ceil(p.rows / mesh.data) * c.context / micro)
    needed = memory(p, mesh, micro, recompute, hw.number)
    other = memory(p, mesh, micro, not recompute, hw.number)
    sent = traffic(p, mesh, passes, recompute, hw.number)
    layers = c.num_layers + c.num_decoder_layers
    work = max(layers * LAUNCH * (4 if recompute else 3) / 3, compute_seconds(p, hw, mesh, micro, recompute))
    nodes = math.ceil(mesh.shards * mesh.tensor / hw.node)
    hops = (mesh.shards - nodes) * HOP + (nodes - 1) * NETWORK_HOP if mesh.shards > 1 else 0.0
    shard = sent.shards / rate(hw, mesh.shards, mesh.tensor) / passes + 3 * layers * hops
    reduce = sent.gradients / rate(hw, mesh.data // mesh.shards, mesh.shards * mesh.tensor)
    exposed = passes * (max(0.0, shard - work) + shard / layers)
    exposed += max(0.0, reduce - max(work, shard) * 2 / 3) + reduce / layers + sent.tensor / rate(hw, mesh.tensor, 1)
    seconds = passes * work + optimizer_seconds(p, hw, mesh) + exposed
    speed = p.rows * c.context / seconds
    used = speed * model_flops(c, c.context) / (mesh.gpus * hw.peak)
    fits = needed.total <= USABLE * hw.memory
    hours = p.tokens / speed / 3600
    return Forecast(
        mesh, micro, recompute, needed, other.activations, fits, sent, seconds, exposed, speed, used, hours
    )  # fmt: skip


def best_forecast(p: Plan, hw: Hardware, mesh: Mesh) -> Forecast:
    """Returns the estimate with the best micro-batch and recomputation for a layout.

    It is the fastest that fits memory; of those within a hundredth of it, one without recomputation and with the
    largest micro-batch is preferred. If none fits, it is the one that needs the least memory."""
    rows, context = math.ceil(p.rows / mesh.data), p.model.context
    sizes = [n for n in range(1, rows + 1) if rows % n == 0 and n * context <= max(context, 2**18)]
    tried = [estimate(p, hw, mesh, n * context, again) for n in sizes for again in (False, True)]
    fitting = [e for e in tried if e.fits]
    if not fitting:
        return min(tried, key=lambda e: e.memory.total)
    least = min(e.seconds for e in fitting)
    return max((e for e in fitting if e.seconds <= 1.01 * least), key=lambda e: (not e.recompute, e.micro_batch))


def possible_meshes(p: Plan, hw: Hardware, gpus: int) -> Iterator[Mesh]:
    """Yields the sensible layouts: DDP, FSDP over all GPUs, and FSDP within a node, each with and without tensor
    parallelism inside a node.

    Every data process needs a row of the batch, and every tensor-parallel GPU the same number of heads."""
    heads = math.gcd(p.model.num_heads, p.model.num_kv_heads)
    for tensor in (t for t in (1, 2, 4, 8) if t <= hw.node and gpus % t == 0 and heads % t == 0):
        data = gpus // tensor
        inside = hw.node // tensor
        if data <= p.rows:
            for shards in dict.fromkeys(s for s in (1, data, inside) if 1 <= s <= data and data % s == 0):
                yield Mesh(gpus, shards, tensor)


def forecast_meshes(p: Plan, hw: Hardware, gpus: int) -> list[Forecast]:
    """Returns an estimate for each layout without tensor parallelism, and the best of those with it.

    The best is the fastest that fits, or else the one that needs the least memory."""
    estimates = [best_forecast(p, hw, mesh) for mesh in possible_meshes(p, hw, gpus)]
    split = [e for e in estimates if e.mesh.tensor > 1]
    chosen = fastest(split) or min(split, key=lambda e: e.memory.total, default=None)
    return [e for e in estimates if e.mesh.tensor == 1] + ([chosen] if chosen else [])


def fastest(found: list[Forecast]) -> Forecast | None:
    """Returns the fastest estimate that fits, or None; within a hundredth of the highest rate, the first one, which is
    the simplest."""
    fitting = [e for e in found if e.fits]
    most = max((e.tokens_per_second for e in fitting), default=0.0)
    return next((e for e in fitting if e.tokens_per_second >= 0.99 * most), None)
