"""Models that several processes share: splits them and the matrices of their blocks, and saves and reads the parts.

It is imported only where processes do: what it takes of torch costs every other run a second at its start.

Matrices are split as in Megatron-LM (Shoeybi et al. 2019, 3): those at the beginning of attention and of feed-forward
by rows, those at the end by columns. So a block needs two sums over the processes forwards, and two backwards."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

from lmkit.base.errors import StorageError, UserError
from lmkit.base.files import disk_error
from lmkit.model.layers import Block
from lmkit.model.sharding import local
from lmkit.model.transformer import Transformer
from lmkit.recipe.pretraining import ParallelConfig

PLAN: dict[str, type[ColwiseParallel | RowwiseParallel]] = {
    "attention.qkv": ColwiseParallel, "attention.output": RowwiseParallel,
    "cross.query": ColwiseParallel, "cross.key_value": ColwiseParallel, "cross.output": RowwiseParallel,
    "mlp.up": ColwiseParallel, "mlp.down": RowwiseParallel,
}  # fmt: skip
# Parameters that are whole on every process. Each process computes only the part of their gradient from its own heads.
PARTIAL = ("q_norm.", "k_norm.", "relative.")


@torch.no_grad()
def split_matrices(model: Transformer, mesh: DeviceMesh) -> None:
    """Splits the matrices in the blocks of `model` between the processes, in place.

    Rows are put in the order of the processes first, so that each gets whole heads of queries, keys and values;
    `model.moved_rows` says where they were before. Raises UserError where the number of processes does not divide the
    model's sizes."""
    _check(model, mesh.size())
    by_name = dict(model.named_parameters())
    for name, p in by_name.items():
        heights = model.row_blocks(name) if p.dim() == 2 and ".blocks." in name else []
        if len(heights) > 1:
            rows = _dealt(heights, mesh.size())
            for moved in (name, name.removesuffix("weight") + "bias"):
                if moved in by_name:
                    by_name[moved].copy_(by_name[moved][rows])
                    model.moved_rows[moved] = rows
    for stack in model.stacks:
        for block in stack.blocks:
            assert isinstance(block, Block)
            layer_names = {n for n, _ in block.named_modules()}
            parallelize_module(block, mesh, {n: style() for n, style in PLAN.items() if n in layer_names})
            block.attention.keep_heads(mesh.get_local_rank(), mesh.size())
            if "cross" in layer_names:
                block.cross.num_heads //= mesh.size()


def _dealt(heights: list[int], n: int) -> torch.Tensor:
    """Returns the rows of matrices stacked on each other in the order of `n` processes.

    First come a share of each matrix for process 0, then one of each for process 1, and so on."""
    starts = [sum(heights[:i]) for i in range(len(heights))]
    shares = [
        torch.arange(s + r * h // n, s + (r + 1) * h // n)
        for r in range(n)
        for s, h in zip(starts, heights, strict=True)
    ]
    return torch.cat(shares)


def _check(model: Transformer, n: int) -> None:
    for c in {id(s.config): s.config for s in model.stacks}.values():
        for key in ("num_heads", "num_kv_heads", "intermediate_size"):
            if getattr(c, key) % n:
                raise UserError(
                    f"parallel.tensor {n} does not divide model.{key} {getattr(c, key)}\n  → a divisor of it"
                )


def shard(scored: nn.Module, model: Transformer, mesh: DeviceMesh, c: ParallelConfig, precision: str) -> None:
    """Shards `scored`, which holds the model, with FSDP2: the weights of a block are gathered when it runs.

    With one shard per copy of the model, this is plain data parallelism."""
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision)
    options: dict[str, Any] = {
        "mesh": mesh["replicate", "shard"],
        "mp_policy": MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32 if dtype else None),
        "reshard_after_forward": True,
    }
    if c.offload:
        options["offload_policy"] = CPUOffloadPolicy()
    for stack in model.stacks:
        for block in stack.blocks:
            fully_shard(block, **options)
    fully_shard(scored, **options)


@contextmanager
def gathered(scored: nn.Module) -> Iterator[None]:
    """Gathers all weights on every process for the time of a `with` block."""
    shards = [m for m in scored.modules() if isinstance(m, FSDPModule)]
    for m in shards:
        m.set_reshard_after_forward(False, recurse=False)
        m.unshard()
    try:
        yield
    finally:
        for m in shards:
            m.set_reshard_after_forward(True, recurse=False)
            m.reshard()


def add_up_partial(model: Transformer, group: Any) -> None:
    """Adds up the gradients of the few parameters that are whole on each of the processes that share matrices."""
    for name, p in model.named_parameters():
        if p.grad is not None and any(part in name for part in PARTIAL):
            dist.all_reduce(local(p.grad), group=group)


def save_shards(folder: Path, tensors: dict[str, Tensor], group: Any) -> None:
    """Writes the parts of all processes, which must call together and share the file system.

    group: the group of these processes. Raises StorageError on all of them where one cannot write."""
    # Sorted, since a resume may change the order of the moments. torch's format for checkpoints has no scalars.
    tensors_to_write = {k: v if v.dim() else v.reshape(1) for k, v in sorted(tensors.items())}
    writer = HuggingFaceStorageWriter(str(folder), save_distributed=True)
    try:
        dcp.save(tensors_to_write, storage_writer=writer, process_group=group)
        if dist.get_rank(group) == 0:  # all are written by now
            for file in folder.glob("*.safetensors"):
                _order_header(file)
    except CheckpointException as e:  # in Python's classes, it is no Exception
        errors = [error for error, _ in e.failures.values()]
        problem = next(filter(None, map(disk_error, errors)), None)
        if problem is None:
            raise RuntimeError(str(e)) from None
        raise StorageError(f"{folder}: the checkpoint could not be written: {problem.strerror}") from None


def _order_header(file: Path) -> None:
    """Sorts the metadata in the header of a safetensors file, so that equal states are equal bytes.

    safetensors writes it in a random order."""
    with file.open("r+b") as f:
        size = int.from_bytes(f.read(8), "little")
        header = json.loads(f.read(size))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        f.seek(8)
        f.write(json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode().ljust(size))


def load_shards(folder: Path, named: dict[str, Tensor]) -> dict[str, Tensor]:
    """Returns the moments, by names such as `parameter::key`, shared between processes as their parameters are.

    Raises KeyError for moments of an unknown parameter."""
    reader = HuggingFaceStorageReader(str(folder))
    tensors: dict[str, Tensor] = {}
    for key, facts in reader.read_metadata().state_dict_metadata.items():
        p = named[key.split("::")[0]]
        alike = facts.size == p.shape  # type: ignore[union-attr]
        tensors[key] = torch.zeros_like(p.detach()) if alike else torch.zeros(facts.size)  # type: ignore[union-attr]
    dcp.load(tensors, storage_reader=reader)
    return tensors
