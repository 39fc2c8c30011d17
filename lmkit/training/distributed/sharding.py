"""Models that processes share out: how each matrix of a block is split, and how the parts are saved and read again.

Processes share a matrix as Megatron-LM does (Shoeybi et al. 2019, 3): what widens is cut by rows,
what narrows by columns, so that a block needs two sums over the processes forwards and two backwards."""

import json
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

from lmkit.base.errors import StorageError, UserError
from lmkit.base.files import disk_error
from lmkit.model.layers import Block
from lmkit.model.transformer import Transformer

PLAN: dict[str, type[ColwiseParallel | RowwiseParallel]] = {
    "attention.qkv": ColwiseParallel, "attention.output": RowwiseParallel,
    "cross.query": ColwiseParallel, "cross.key_value": ColwiseParallel, "cross.output": RowwiseParallel,
    "mlp.up": ColwiseParallel, "mlp.down": RowwiseParallel,
}  # fmt: skip
PARTIAL = ("q_norm.", "k_norm.", "relative.")  # whole on every process, which sees the gradient of its heads alone


@torch.no_grad()
def split_matrices(model: Transformer, mesh: DeviceMesh) -> None:
    """Cut the blocks of `model` in place. Rows are put in the order of the processes first, so that each gets whole
    heads of queries, keys and values; `model.moved_rows` remembers where they stood. Raises UserError."""
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
            there = {n for n, _ in block.named_modules()}
            parallelize_module(block, mesh, {n: style() for n, style in PLAN.items() if n in there})
            block.attention.keep_heads(mesh.get_local_rank(), mesh.size())
            if "cross" in there:
                block.cross.num_heads //= mesh.size()


def _dealt(heights: list[int], n: int) -> torch.Tensor:
    """Rows of matrices stacked on each other, in the order: a share of each for process 0, one for process 1, ..."""
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


def shared(model: Transformer) -> bool:
    return any(isinstance(p, DTensor) for p in model.parameters())


def save(folder: Path, tensors: dict[str, Tensor], group: Any) -> None:
    """All processes must call together, on a file system they share. group: theirs. Raises StorageError on all."""
    # in one order, whatever a resume did to that of the moments; DCP's format has no scalars
    lined = {k: v if v.dim() else v.reshape(1) for k, v in sorted(tensors.items())}
    writer = HuggingFaceStorageWriter(str(folder), save_distributed=True)
    try:
        dcp.save(lined, storage_writer=writer, process_group=group)
        if dist.get_rank(group) == 0:  # all are written by now
            for file in folder.glob("*.safetensors"):
                _order_header(file)
    except CheckpointException as e:  # which is no Exception to Python
        errors = [error for error, _ in e.failures.values()]
        problem = next(filter(None, map(disk_error, errors)), None)
        if problem is None:
            raise RuntimeError(str(e)) from None
        raise StorageError(f"{folder}: the checkpoint could not be written: {problem.strerror}") from None


def _order_header(file: Path) -> None:
    """safetensors writes the metadata of a header in an order of chance, and equal states are to be equal bytes."""
    with file.open("r+b") as f:
        size = int.from_bytes(f.read(8), "little")
        header = json.loads(f.read(size))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        f.seek(8)
        f.write(json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode().ljust(size))


def load(folder: Path, named: dict[str, Tensor]) -> dict[str, Tensor]:
    """Moments (`parameter::key`), shared out like their parameters. Raises KeyError for those of no parameter."""
    reader = HuggingFaceStorageReader(str(folder))
    tensors: dict[str, Tensor] = {}
    for key, facts in reader.read_metadata().state_dict_metadata.items():
        p = named[key.split("::")[0]]
        alike = facts.size == p.shape  # type: ignore[union-attr]
        tensors[key] = torch.zeros_like(p.detach()) if alike else torch.zeros(facts.size)  # type: ignore[union-attr]
    dcp.load(tensors, storage_reader=reader)
    return tensors
