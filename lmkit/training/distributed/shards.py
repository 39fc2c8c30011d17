"""Training state of a model of which every process holds a part, through torch.distributed.checkpoint (DCP): each
process writes its own in safetensors, and any number of them, one too, can read it."""

import json
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.tensor import DTensor

from lmkit.base.errors import StorageError
from lmkit.base.files import disk_error
from lmkit.model.transformer import Transformer


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
