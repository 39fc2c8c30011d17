"""Tensors of which each process holds a part (torch's DTensor), whole and back again."""

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, Replicate


def local(t: Tensor) -> Tensor:
    """What this process holds of it, not a copy."""
    return t.to_local() if isinstance(t, DTensor) else t


def like(t: Tensor, mine: Tensor) -> Tensor:
    """The tensor of which `mine` is this process's part, shared out as `t` is."""
    if not isinstance(t, DTensor):
        return mine
    return DTensor.from_local(mine, t.device_mesh, t.placements, run_check=False, shape=t.shape, stride=t.stride())


def whole(t: Tensor, rows: Tensor | None = None) -> Tensor:
    """All of it; `t` itself where nothing is shared out. All processes of its mesh must call together.

    rows: its row i stands where rows[i] says in the whole matrix (tensor parallelism); None: nothing was moved."""
    t = t.full_tensor() if isinstance(t, DTensor) else t
    return t if rows is None else torch.empty_like(t).index_copy_(0, rows.to(t.device), t)


@torch.no_grad()
def fill(t: Tensor, full: Tensor, rows: Tensor | None = None) -> None:
    """The inverse of `whole`: put this process's part of `full` into `t`."""
    full = full if rows is None else full[rows.to(full.device)]
    if isinstance(t, DTensor):
        mine = t.to_local()
        everywhere = [Replicate()] * t.device_mesh.ndim
        full = full.to(device=mine.device, dtype=mine.dtype)
        mine.copy_(DTensor.from_local(full, t.device_mesh, everywhere, run_check=False)
                   .redistribute(placements=t.placements).to_local())  # fmt: skip
    else:
        t.copy_(full)
