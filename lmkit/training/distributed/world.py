"""Several processes on one run: the only place that knows ranks exist.

torchrun starts the processes (`lmkit pretrain --processes N` calls it). Each reads its share of every batch, and their
results are added up, so that loss, gradient and the order of the data are the same as with one process.
"""

import atexit
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.fsdp import FSDPModule

from lmkit.base.display import note
from lmkit.base.errors import ProcessFailed, UserError
from lmkit.model.sharding import local, whole
from lmkit.model.transformer import Transformer
from lmkit.objectives.batch import Batch, Loss, Objective
from lmkit.recipe.pretraining import ParallelConfig

T = TypeVar("T")
LONGEST_WAIT = timedelta(days=2)  # rank 0 may tokenize or evaluate for so long; the watchdog notices a hang


@dataclass(frozen=True)
class World:
    """The processes of a run, and the place of this one among them. By default it is the only one."""

    rank: int = 0
    size: int = 1
    data_rank: int = 0  # the share of each batch that it reads; processes that share matrices read the same share
    data_size: int = 1  # the number of shares
    mesh: "DeviceMesh | None" = None  # (replicate, shard, tensor); None where each process holds the whole model
    store: Any = None  # torchrun's store, for signs of life
    saving: Any = None  # a separate group of processes, so that checkpoints are written while training communicates

    @property
    def first(self) -> bool:
        return self.rank == 0

    @property
    def sharded(self) -> bool:
        """Says whether no process holds the whole model."""
        return self.mesh is not None

    @property
    def shares_matrices(self) -> bool:
        return self.mesh is not None and self.mesh["tensor"].size() > 1

    def total(self, values: Sequence[float]) -> list[float]:
        """Returns the sums over all shares of the data, equal on all processes, after waiting for them."""
        return list(values) if self.size == 1 else self._add_up(torch.tensor(values, dtype=torch.float64)).tolist()

    def total_tensor(self, values: Tensor) -> Tensor:
        """Returns the sum of a tensor over all shares of the data, on its device."""
        return values if self.size == 1 else self._add_up(values)

    def _add_up(self, values: Tensor) -> Tensor:
        if self.mesh is not None and self.mesh.get_local_rank("tensor"):
            values = torch.zeros_like(values)  # processes that share matrices read the same data: only one counts
        dist.all_reduce(values)
        return values

    def most(self, number: int) -> int:
        """Returns the largest value of `number` over all processes."""
        if self.size == 1:
            return number
        largest = torch.tensor(number)
        dist.all_reduce(largest, dist.ReduceOp.MAX)
        return int(largest)

    def agree(self, value: T) -> T:
        """Returns the value that rank 0 has."""
        if self.size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0)
        return box[0]

    def check_same(self, **facts: str) -> None:
        """Raises UserError where the processes were given different facts."""
        if self.size == 1:
            return
        everyone: list[Any] = [None] * self.size
        dist.all_gather_object(everyone, facts)
        for name in facts:
            apart = [rank for rank, theirs in enumerate(everyone) if theirs[name] != everyone[0][name]]
            if apart:
                raise UserError(
                    f"processes were started with another {name} than rank 0: {apart}\n  → copy it to every machine"
                )

    @contextmanager
    def first_alone(self) -> Iterator[None]:
        """Lets rank 0 go first, as where a cache is filled, and then the others."""
        if not self.first:
            self.wait()
        yield
        if self.first:
            self.wait()

    def wait(self) -> None:
        if self.size > 1:
            dist.barrier()

    def wait_to_save(self) -> None:
        dist.barrier(self.saving)

    def spread(self, function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        """Returns `function` of x (n, ...), for which each process computes its share of the rows.

        The function must treat each row by itself."""
        if self.size == 1:
            return function(x)
        share = -(-len(x) // self.size)
        own, result = x.new_zeros(share, *x.shape[1:]), x.new_empty(share * self.size, *x.shape[1:])
        rows = x[self.rank * share : (self.rank + 1) * share]
        if len(rows):
            own[: len(rows)] = function(rows)
        dist.all_gather(list(result.chunk(self.size)), own)
        return result[: len(x)]


ALONE = World()
_STORE: Any = None  # the store of the process group, which torch returns only once, when the group is made


def join(c: ParallelConfig, device: torch.device) -> World:
    """Meets the other processes that torchrun started, if there are any, and returns the world of all of them.

    Raises UserError for a layout that their number does not allow."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        if c.tensor > 1 or c.shards > 1:
            raise UserError(
                f"parallel needs {max(c.tensor, c.shards)} processes or more, and there is one\n"
                "  → --processes N, or torchrun; or leave `parallel` out"
            )
        if c.data == "fsdp" or c.offload:
            note("parallel: there is one process, so nothing is sharded or offloaded (--processes N, or torchrun)")
        return ALONE
    global _STORE
    if not dist.is_initialized():
        _STORE, rank, size = _meet()
        if device.type == "cuda":
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, store=_STORE, rank=rank, world_size=size, timeout=LONGEST_WAIT)
        atexit.register(dist.destroy_process_group)
    rank, (replicas, shards, tensor) = dist.get_rank(), layout(c, size)
    if c.offload and device.type != "cuda":
        raise UserError("parallel.offload moves weights from a GPU to main memory; there is no GPU\n  → leave it out")
    if c.data == "ddp" and tensor == 1:
        return World(rank, size, rank, size, store=_STORE)
    from torch.distributed.device_mesh import init_device_mesh

    mesh = init_device_mesh(device.type, (replicas, shards, tensor), mesh_dim_names=("replicate", "shard", "tensor"))
    return World(rank, size, rank // tensor, size // tensor, mesh, _STORE, dist.new_group(backend="gloo"))


def _meet() -> tuple[Any, int, int]:
    """Meets the other processes. Returns the store, the rank of this one, and the number of processes.

    Raises UserError where environment variables are incomplete, and ProcessFailed where the processes do not meet."""
    from torch.distributed.rendezvous import rendezvous

    how = "  → start them by --processes N or torchrun; for one process, unset WORLD_SIZE and RANK"
    try:
        store, rank, size = next(iter(rendezvous("env://")))
    except ValueError as e:
        raise UserError(f"WORLD_SIZE is set, so this is one of several processes, but not whole: {e}\n{how}") from None
    except RuntimeError as e:  # torch's DistError
        place = ":".join(os.environ.get(f"MASTER_{k}", "") for k in ("ADDR", "PORT"))
        raise ProcessFailed(f"the processes do not meet at {place}: {str(e).splitlines()[0]}\n{how}") from None
    # After a restart, the launcher's store still holds addresses of processes that have ended.
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    return dist.PrefixStore(f"attempt {attempt}", store), rank, size


def layout(c: ParallelConfig, size: int) -> tuple[int, int, int]:
    """Returns (copies of the model, shards of each copy, processes that share each matrix).

    Raises UserError for a layout that the number of processes does not allow."""
    if size % c.tensor:
        raise UserError(f"parallel.tensor {c.tensor} does not divide the {size} processes")
    data = size // c.tensor
    shards = 1 if c.data == "ddp" else c.shards or data
    if data % shards:
        raise UserError(f"parallel.shards {shards} does not divide the {data} processes that read different data")
    return data // shards, shards, c.tensor


class Scored(nn.Module):
    """A module whose forward is the loss of model and objective, as DDP and FSDP2 need it."""

    def __init__(self, model: Transformer):
        super().__init__()
        self.model = model

    def forward(
        self, objective: Objective, batch: Batch
    ) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]:
        loss = objective.loss(self.model, batch)
        return loss.sums, loss.hits, loss.nats


class Parallel:
    """A model that several processes train together. With one process it is the model itself."""

    def __init__(self, model: Transformer, world: World, c: ParallelConfig, precision: str):
        """Shards or copies `model` in place; every process holds the same weights."""
        self.model, self.world, self.module = model, world, nn.Module()
        scored = Scored(model)
        if world.mesh is not None:
            from lmkit.training.distributed import sharding

            if world.shares_matrices:
                sharding.split_matrices(model, world.mesh["tensor"])
            sharding.shard(scored, model, world.mesh, c, precision)
            self.module = scored
        elif world.size > 1:
            self.module = DistributedDataParallel(scored)
            # Buffers are equal on all processes. Versions of torch differ in the name of the argument for this.
            self.module.broadcast_buffers = False
        else:
            self.module = scored
            model.embedding.sparse = model.embedding.weight.device.type == "cpu"

    def loss(self, objective: Objective, batch: Batch) -> Loss:
        return Loss(*self.module(objective, batch))

    @contextmanager
    def accumulating(self, last: bool) -> Iterator[None]:
        """Lets processes add up their gradients only for the last micro-batch of a step, to save communication."""
        if isinstance(self.module, DistributedDataParallel) and not last:
            with self.module.no_sync():
                yield
            return
        if self.world.sharded:
            cast("FSDPModule", self.module).set_requires_gradient_sync(last)
        yield

    def start_gradient(self) -> None:
        """Prepares the gradient of the token embedding before the first pass of a step.

        A pass reads few rows of the embedding, but its gradient has all rows, and making it takes up to a third of a
        short step on a CPU. So on a CPU each pass adds its rows to one gradient, which stays allocated."""
        weight = self.model.embedding.weight
        if self.model.embedding.sparse and weight.requires_grad:
            weight.grad = torch.zeros_like(weight) if weight.grad is None else weight.grad.zero_()

    def clear_gradient(self) -> None:
        """Drops gradients after a step, except the one that `start_gradient` keeps and clears."""
        for p in self.model.parameters():
            if p is not self.model.embedding.weight or not self.model.embedding.sparse:
                p.grad = None

    def finish_gradient(self) -> None:
        """Adds up the gradients of the few parameters that are whole on each of the processes that share matrices."""
        if self.world.mesh is None or not self.world.shares_matrices:
            return
        from lmkit.training.distributed import sharding

        sharding.add_up_partial(self.model, self.world.mesh.get_group("tensor"))

    def by_first(self, compute: Callable[[], T]) -> T:
        """Returns to all processes what `compute` returns on rank 0, which has the whole model meanwhile."""
        everyone = self.world.sharded  # FSDP2 counts forward passes, whose number must be equal on all processes
        with self.whole():
            value = compute() if self.world.first or everyone else None
        return self.world.agree(value)  # type: ignore[return-value]

    @contextmanager
    def whole(self) -> Iterator[None]:
        """Gathers all weights on every process for the time of a `with` block, so that each can use the model alone."""
        if not self.world.sharded:
            yield
            return
        from lmkit.training.distributed import sharding

        with sharding.gathered(self.module):
            yield


def _meshes(grads: list[Tensor]) -> list[list[Tensor]]:
    """Returns the gradients grouped by their mesh, since torch computes only with tensors of one mesh together."""
    groups: dict[Any, list[Tensor]] = {}
    for g in grads:
        groups.setdefault(getattr(g, "device_mesh", None), []).append(g)
    return list(groups.values())


def gradient_norm(grads: list[Tensor]) -> Tensor:
    """Returns the norm of all gradients, () float32, over all shards."""
    norms = [whole(torch.nn.utils.get_total_norm(group, foreach=True)) for group in _meshes(grads)]
    return norms[0] if len(norms) == 1 else torch.stack(norms).norm()


def scale_gradients(grads: list[Tensor], longest: float, norm: Tensor) -> None:
    """Scales the gradients in place so that their norm is at most `longest`.

    As in torch, they are multiplied with longest / (norm + 1e-6) where that is below 1."""
    torch._foreach_mul_([local(g) for g in grads], (longest / (norm + 1e-6)).clamp(max=1.0))
