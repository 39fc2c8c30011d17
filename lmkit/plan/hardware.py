"""What GPUs can do, from the data sheets of their makers, for `lmkit plan`. It needs no torch."""

from dataclasses import dataclass

SUSTAINED = 0.6  # the share of the peak that matrix products reach; fitted to one published run, docs/scaling.md


@dataclass(frozen=True)
class Hardware:
    """One GPU, its node and its network. Rates of links are of one direction, as a ring uses them."""

    name: str
    peak: float  # FLOP/s, dense bf16
    memory: float  # bytes
    bandwidth: float  # bytes/s of that memory
    link: float  # bytes/s per GPU, between GPUs of a node
    network: float  # bytes/s per GPU, between nodes
    attention: float  # share of the peak that the attention kernel reaches
    source: str  # where these numbers come from
    node: int = 8  # GPUs in a node
    sustained: float = SUSTAINED  # share of the peak that matrix products reach
    number: int = 2  # bytes of a number in matrix products


_FA2 = "; attention: FlashAttention-2's on an H100, 35% (Shah et al. 2024)"
HARDWARE = {
    "a100-80": Hardware(
        "a100-80", 312e12, 80e9, 2.039e12, 300e9, 25e9, 0.55,
        "NVIDIA A100 80GB SXM datasheet; DGX A100: 8 x 200 Gb/s; attention: Dao 2023, 50-73% of the peak",
    ),
    "h100": Hardware(
        "h100", 989e12, 80e9, 3.35e12, 450e9, 50e9, 0.35,
        "NVIDIA H100 SXM datasheet (1,979 TFLOP/s with sparsity: half of it dense); DGX H100: 8 x 400 Gb/s" + _FA2,
    ),
    "h200": Hardware(
        "h200", 989e12, 141e9, 4.8e12, 450e9, 50e9, 0.35,
        "NVIDIA H200 SXM datasheet; DGX H200: 8 x 400 Gb/s" + _FA2,
    ),
    "b200": Hardware(
        "b200", 2250e12, 180e9, 8e12, 900e9, 50e9, 0.35,
        "NVIDIA DGX B200 datasheet (1,440 GB, 64 TB/s, 8 GPUs; 8 x 400 Gb/s); HGX B200: 4,500 TFLOP/s with sparsity;"
        " attention: assumed as on an H100",
    ),
}  # fmt: skip


def cpu(flops: float, memory: float, bandwidth: float) -> Hardware:
    """Returns this machine, by its measured matrix products (float32 FLOP/s), memory (bytes) and bandwidth (bytes/s).

    Processes would share all of these, so only one process is planned."""
    return Hardware("cpu", flops, memory, bandwidth, 1e9, 1e9, 0.5, "measured here", 1, 1.0, 4)
