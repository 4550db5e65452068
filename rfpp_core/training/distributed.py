"""Several processes as one trainer: each takes its slice of the global batch.

A process knows its place from the environment that torchrun sets (``RANK``, ``WORLD_SIZE``,
``LOCAL_RANK``, ``MASTER_ADDR``, ``MASTER_PORT``).  Without it there is one process and nothing
here does anything.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn.parallel import DistributedDataParallel

from rfpp_core.runtime import Rank, process_rank

PATIENCE = timedelta(days=7)  # the others wait while the first holds out for a lock


@contextmanager
def group(device: torch.device) -> Iterator[Rank]:
    """Joins the processes for as long as the block runs.

    After an error they are not left in order: that could wait for those that wait for this one,
    and would make their errors the first to be seen.
    """
    rank = process_rank()
    if rank.world == 1:
        yield rank
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=PATIENCE)
    yield rank
    dist.destroy_process_group()


def tell(value: Any) -> Any:
    """The first process's ``value``, for all."""
    if process_rank().world == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box)
    return box[0]


def wait() -> None:
    """Until all processes are here."""
    if process_rank().world > 1:
        dist.barrier()


def mean(value: Tensor) -> Tensor:
    """The mean of a tensor over the processes."""
    rank = process_rank()
    if rank.world > 1:
        value = value.clone()
        dist.all_reduce(value)
        value /= rank.world
    return value


def parallel(net: nn.Module, device: torch.device) -> nn.Module:
    """The network with gradients averaged over the processes."""
    if process_rank().world == 1:
        return net
    ids = [device] if device.type == "cuda" else None
    with warnings.catch_warnings():  # newer torch has another name for the last argument
        warnings.simplefilter("ignore", FutureWarning)
        return DistributedDataParallel(net, device_ids=ids, broadcast_buffers=False)


def unsynchronised(net: nn.Module, last: bool) -> AbstractContextManager[None]:
    """Averages gradients only with the last part of a batch, which has the sum of them all."""
    if isinstance(net, DistributedDataParallel) and not last:
        return net.no_sync()
    return nullcontext()
