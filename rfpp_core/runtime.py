"""Where code runs: devices, cores, and single-threaded work on several threads.

torch is imported on use: a worker process pins its device before.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from rfpp_core.errors import UserError

if TYPE_CHECKING:
    import torch

A = TypeVar("A")
B = TypeVar("B")


def cores() -> int:
    """Cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def memory() -> int:
    """Bytes of memory this process may use: the machine's, or its container's share."""
    whole = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        share = Path("/sys/fs/cgroup/memory.max").read_text().strip()
    except OSError:
        return whole
    return min(whole, int(share)) if share.isdigit() else whole


def device() -> torch.device:
    """The first CUDA device (of several processes, each its own), unless ``RFPP_DEVICE`` names
    another or ``cpu``.

    Raises:
        UserError: if there is no such device.
    """
    import torch

    own = f"cuda:{os.environ['LOCAL_RANK']}" if "LOCAL_RANK" in os.environ else "cuda"
    name = os.environ.get("RFPP_DEVICE") or (own if torch.cuda.is_available() else "cpu")
    try:
        found = torch.device(name)
    except RuntimeError:
        found = None
    count = torch.cuda.device_count()
    known = found is not None and found.type in ("cpu", "cuda")
    if found is None or not known or (found.type == "cuda" and (found.index or 0) >= count):
        raise UserError(f"RFPP_DEVICE is {name[:80]!r}; there are cpu and {count} CUDA device(s)")
    return found


def signature(device: torch.device) -> str:
    """What a result's bits may depend on beside its inputs: device, instruction set, torch."""
    import torch

    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)}, torch {torch.__version__}"
    return f"cpu {torch.backends.cpu.get_cpu_capability()}, torch {torch.__version__}"


def exact() -> None:
    """Settings under which equal inputs give equal bits on one kind of device."""
    import torch

    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False


def map_exact(fn: Callable[[A], B], items: Iterable[A], threads: int) -> list[B]:
    """``[fn(item) for item in items]`` on Python threads that each compute single-threaded.

    Results cannot depend on the number of threads, as those of an operator split over threads
    may; and small images run faster this way, without a barrier at every operator.
    """
    import torch

    before = torch.get_num_threads()

    def one(item: A) -> B:
        torch.set_num_threads(1)
        return fn(item)

    try:
        with ThreadPoolExecutor(max(1, threads)) as pool:
            return list(pool.map(one, items))
    finally:
        torch.set_num_threads(before)
