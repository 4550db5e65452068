"""Several processes as one trainer: each takes its slice of the global batch.

A process knows its rank from the environment that torchrun sets (``RANK``, ``WORLD_SIZE``,
``LOCAL_RANK``, ``MASTER_ADDR``, ``MASTER_PORT``).  Without it there is one process, and the
functions here do nothing.
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

TIMEOUT = timedelta(days=7)  # the others wait while the first waits for a lock


@contextmanager
def group(device: torch.device) -> Iterator[Rank]:
    """Joins the processes while the block runs.

    After an error the group is not destroyed: that could wait for processes that wait for this
    one, and their errors would be seen before this one's.
    """
    rank = process_rank()
    if rank.world == 1:
        yield rank
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=TIMEOUT)
    yield rank
    dist.destroy_process_group()


def tell(value: Any) -> Any:
    """The ``value`` of the first process, in all of them."""
    if process_rank().world == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box)
    return box[0]


def wait() -> None:
    """Waits until all processes are here."""
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
