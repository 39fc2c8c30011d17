"""Tensors of which each process holds a part (torch's DTensor): from parts to the whole and back.

torch's module of them is imported only where there are such tensors: it takes seconds, and most runs have none."""

from typing import TYPE_CHECKING, TypeGuard

import torch
from torch import Tensor

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor


def is_shared_out(t: Tensor) -> "TypeGuard[DTensor]":
    """Returns whether `t` is a tensor of which each process holds a part."""
    return hasattr(t, "placements")


def local(t: Tensor) -> Tensor:
    """Returns the part of `t` that this process holds, without a copy; `t` itself where it is not shared out."""
    return t.to_local() if is_shared_out(t) else t


def like(t: Tensor, mine: Tensor) -> Tensor:
    """Returns the tensor of which `mine` is this process's part, shared out in the same way as `t`."""
    if not is_shared_out(t):
        return mine
    from torch.distributed.tensor import DTensor

    return DTensor.from_local(mine, t.device_mesh, t.placements, run_check=False, shape=t.shape, stride=t.stride())


def whole(t: Tensor, rows: Tensor | None = None) -> Tensor:
    """Returns the whole tensor; `t` itself where it is not shared out. All processes of its mesh must call together.

    rows: row i of `t` is row rows[i] of the result, where tensor parallelism has moved rows; None where it has not."""
    t = t.full_tensor() if is_shared_out(t) else t
    return t if rows is None else torch.empty_like(t).index_copy_(0, rows.to(t.device), t)


@torch.no_grad()
def fill_tensor(t: Tensor, full: Tensor, rows: Tensor | None = None) -> None:
    """Puts this process's part of `full` into `t`; it is the inverse of `whole`."""
    full = full if rows is None else full[rows.to(full.device)]
    if is_shared_out(t):
        from torch.distributed.tensor import DTensor, Replicate

        own_part = t.to_local()
        everywhere = [Replicate()] * t.device_mesh.ndim
        full = full.to(device=own_part.device, dtype=own_part.dtype)
        own_part.copy_(DTensor.from_local(full, t.device_mesh, everywhere, run_check=False)
                   .redistribute(placements=t.placements).to_local())  # fmt: skip
    else:
        t.copy_(full)
