"""Several processes on one run: the only place that knows ranks exist.

torchrun starts the processes (`lmkit pretrain --processes N` calls it). Each reads its share of every batch; what they
compute is added up, so that loss, gradient and the order of the data are those of one process.
"""

import atexit
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.rendezvous import rendezvous
from torch.nn.parallel import DistributedDataParallel

from lmkit.base.display import note
from lmkit.base.errors import ProcessFailed, UserError
from lmkit.model.sharding import local, whole
from lmkit.model.transformer import Transformer
from lmkit.objectives.batch import Batch, Loss, Objective
from lmkit.recipe.pretraining import ParallelConfig
from lmkit.training.distributed.sharding import PARTIAL, split_matrices

T = TypeVar("T")
LONGEST_WAIT = timedelta(days=2)  # for rank 0 to tokenize or evaluate; a hang is noticed by the watchdog


@dataclass(frozen=True)
class World:
    """The processes of a run, and this one's place among them. By default there is no other."""

    rank: int = 0
    size: int = 1
    data_rank: int = 0  # which share of each batch it reads; processes that share its matrices read the same
    data_size: int = 1
    mesh: DeviceMesh | None = None  # (replicate, shard, tensor)
    store: Any = None  # torchrun's, for signs of life
    saving: Any = None  # a group of its own: checkpoints may be written while training communicates

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
            values = torch.zeros_like(values)  # the first of those that share matrices speaks for them
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
        """`function` of x (n, ...), a row at a time as it were: each process does its share of the rows."""
        if self.size == 1:
            return function(x)
        share = -(-len(x) // self.size)
        mine, out = x.new_zeros(share, *x.shape[1:]), x.new_empty(share * self.size, *x.shape[1:])
        rows = x[self.rank * share : (self.rank + 1) * share]
        if len(rows):
            mine[: len(rows)] = function(rows)
        dist.all_gather(list(out.chunk(self.size)), mine)
        return out[: len(x)]


ALONE = World()
_STORE: Any = None  # of the process group: torch gives it to whoever makes the group, once


def join(c: ParallelConfig, device: torch.device) -> World:
    """Meet the other processes that torchrun started, if there are any. Raises UserError for a layout that their number
    does not allow."""
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
    mesh = init_device_mesh(device.type, (replicas, shards, tensor), mesh_dim_names=("replicate", "shard", "tensor"))
    return World(rank, size, rank // tensor, size // tensor, mesh, _STORE, dist.new_group(backend="gloo"))


def _meet() -> tuple[Any, int, int]:
    """(store, rank, number of processes). Raises UserError, ProcessFailed."""
    how = "  → start them by --processes N or torchrun; for one process, unset WORLD_SIZE and RANK"
    try:
        store, rank, size = next(iter(rendezvous("env://")))
    except ValueError as e:
        raise UserError(f"WORLD_SIZE is set, so this is one of several processes, but not whole: {e}\n{how}") from None
    except RuntimeError as e:  # torch's DistError
        place = ":".join(os.environ.get(f"MASTER_{k}", "") for k in ("ADDR", "PORT"))
        raise ProcessFailed(f"the processes do not meet at {place}: {str(e).splitlines()[0]}\n{how}") from None
    # a restart has the launcher's store of before, with addresses of processes that are gone
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    return dist.PrefixStore(f"attempt {attempt}", store), rank, size


def layout(c: ParallelConfig, size: int) -> tuple[int, int, int]:
    """(copies of the model, shards of each, processes that share each matrix). Raises UserError."""
    if size % c.tensor:
        raise UserError(f"parallel.tensor {c.tensor} does not divide the {size} processes")
    data = size // c.tensor
    shards = 1 if c.data == "ddp" else c.shards or data
    if data % shards:
        raise UserError(f"parallel.shards {shards} does not divide the {data} processes that read different data")
    return data // shards, shards, c.tensor


class Scored(nn.Module):
    """Model and task as one forward: what DDP and FSDP2 wrap."""

    def __init__(self, model: Transformer):
        super().__init__()
        self.model = model

    def forward(
        self, objective: Objective, batch: Batch
    ) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]:
        loss = objective.loss(self.model, batch)
        return loss.sums, loss.hits, loss.nats


class Parallel:
    """A model on all its processes. With one it is the model itself."""

    def __init__(self, model: Transformer, world: World, c: ParallelConfig, precision: str):
        """Shards or copies `model` in place; every process holds the same weights."""
        self.model, self.world, self.module = model, world, nn.Module()
        scored = Scored(model)
        if world.mesh is not None:
            if world.shares_matrices:
                split_matrices(model, world.mesh["tensor"])
            _shard(scored, world.mesh, c, precision)
            self.module = scored
        elif world.size > 1:
            self.module = DistributedDataParallel(scored)
            self.module.broadcast_buffers = False  # all hold the same; its argument has other names in other torches
        else:
            self.module = scored
            model.embedding.sparse = model.embedding.weight.device.type == "cpu"

    def loss(self, objective: Objective, batch: Batch) -> Loss:
        return Loss(*self.module(objective, batch))

    @contextmanager
    def accumulating(self, last: bool) -> Iterator[None]:
        """Gradients of all but the last micro-batch stay at home."""
        if isinstance(self.module, DistributedDataParallel) and not last:
            with self.module.no_sync():
                yield
            return
        if isinstance(self.module, FSDPModule):
            self.module.set_requires_gradient_sync(last)
        yield

    def start_gradient(self) -> None:
        """A pass moves few rows of the token embedding, yet makes a gradient of all of them: on a CPU up to a third of
        a short step. There each pass adds its rows to one gradient that stays in place."""
        weight = self.model.embedding.weight
        if self.model.embedding.sparse and weight.requires_grad:
            weight.grad = torch.zeros_like(weight) if weight.grad is None else weight.grad.zero_()

    def clear_gradient(self) -> None:
        """After a step. What stays in place is cleared by the next `start_gradient`."""
        for p in self.model.parameters():
            if p is not self.model.embedding.weight or not self.model.embedding.sparse:
                p.grad = None

    def finish_gradient(self) -> None:
        """Add up what every process that shares matrices saw of a few parameters that they do not share."""
        if self.world.mesh is None or not self.world.shares_matrices:
            return
        group = self.world.mesh.get_group("tensor")
        for name, p in self.model.named_parameters():
            if p.grad is not None and any(part in name for part in PARTIAL):
                dist.all_reduce(local(p.grad), group=group)

    def by_first(self, compute: Callable[[], T]) -> T:
        """What rank 0 makes of the whole model, told to all."""
        everyone = self.world.sharded  # FSDP2 counts forward passes, and they must be as many on all processes
        with self.whole():
            value = compute() if self.world.first or everyone else None
        return self.world.agree(value)  # type: ignore[return-value]

    @contextmanager
    def whole(self) -> Iterator[None]:
        """All weights on every process, so that each can use the model by itself."""
        shards = [m for m in self.module.modules() if isinstance(m, FSDPModule)]
        for m in shards:
            m.set_reshard_after_forward(False, recurse=False)
            m.unshard()
        try:
            yield
        finally:
            for m in shards:
                m.set_reshard_after_forward(True, recurse=False)
                m.reshard()


def _meshes(grads: list[Tensor]) -> list[list[Tensor]]:
    """Those on one mesh together: torch computes with no others at once."""
    apart: dict[Any, list[Tensor]] = {}
    for g in grads:
        apart.setdefault(getattr(g, "device_mesh", None), []).append(g)
    return list(apart.values())


def gradient_norm(grads: list[Tensor]) -> Tensor:
    """() float32, over all shards."""
    norms = [whole(torch.nn.utils.get_total_norm(group, foreach=True)) for group in _meshes(grads)]
    return norms[0] if len(norms) == 1 else torch.stack(norms).norm()


def scale_gradients(grads: list[Tensor], longest: float, norm: Tensor) -> None:
    """In place, to `longest` where their norm is more; by torch's rule, longest / (norm + 1e-6)."""
    torch._foreach_mul_([local(g) for g in grads], (longest / (norm + 1e-6)).clamp(max=1.0))


def _shard(scored: Scored, mesh: DeviceMesh, c: ParallelConfig, precision: str) -> None:
    """FSDP2: each block's weights come together when it runs. One replica of each shard is plain copying."""
    reduced = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision)
    options: dict[str, Any] = {
        "mesh": mesh["replicate", "shard"],
        "mp_policy": MixedPrecisionPolicy(param_dtype=reduced, reduce_dtype=torch.float32 if reduced else None),
        "reshard_after_forward": True,
    }
    if c.offload:
        options["offload_policy"] = CPUOffloadPolicy()
    for stack in scored.model.stacks:
        for block in stack.blocks:
            fully_shard(block, **options)
    fully_shard(scored, **options)
