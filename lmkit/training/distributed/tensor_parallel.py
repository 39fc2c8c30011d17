"""Processes that share each matrix of a block, as Megatron-LM does (Shoeybi et al. 2019, 3): what widens is cut by
rows, what narrows by columns, so that a block needs two sums over the processes forwards and two backwards."""

import torch
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

from lmkit.base.errors import UserError
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
