"""Where code runs: devices, cores, and single-threaded work on several threads.

torch is imported on use: a worker process pins its device before.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple, TypeVar

from rfpp_core.errors import UserError

if TYPE_CHECKING:
    import torch

OUT_OF_MEMORY = ("out of memory", "ALLOC_FAILED", "can't allocate memory")
Precision = Literal["fp32", "tf32", "bf16", "fp16"]  # of a network; tf32 is CUDA's
A = TypeVar("A")
B = TypeVar("B")


class Rank(NamedTuple):
    """Which process this is, of how many."""

    rank: int = 0
    world: int = 1

    @property
    def first(self) -> bool:
        return self.rank == 0


def process_rank() -> Rank:
    """This process's place, from ``RANK`` and ``WORLD_SIZE``."""
    return Rank(int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1")))


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
    """The first CUDA device, unless ``RFPP_DEVICE`` names another or ``cpu``.

    Of several processes each takes the device of its ``LOCAL_RANK``, unless the variable says
    ``cpu``.

    Raises:
        UserError: if there is no such device.
    """
    import torch

    given, count = os.environ.get("RFPP_DEVICE", ""), torch.cuda.device_count()
    place = os.environ.get("LOCAL_RANK")
    several = int(os.environ.get("WORLD_SIZE", "1")) > 1
    name = given or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        found = torch.device(name)
    except RuntimeError:
        found = None
    if found is None or found.type not in ("cpu", "cuda"):
        raise UserError(f"RFPP_DEVICE is {name[:80]!r}; there are cpu and {count} CUDA device(s)")
    if found.type == "cuda" and place is not None and (several or found.index is None):
        if int(place) >= count:
            raise UserError(f"there are {count} CUDA device(s), too few for a process each; lower "
                            f"RFPP_PROCESSES, or set RFPP_DEVICE=cpu")  # fmt: skip
        return torch.device("cuda", int(place))
    if found.type == "cuda" and (found.index or 0) >= count:
        raise UserError(f"RFPP_DEVICE is {name[:80]!r}; there are cpu and {count} CUDA device(s)")
    return found


def signature(device: torch.device) -> str:
    """What a result's bits may depend on beside its inputs: device, instruction set, torch; on
    CUDA also cuDNN and the precision of matrix products."""
    import torch

    if device.type == "cuda":
        cudnn = torch.backends.cudnn.version()  # type: ignore[no-untyped-call]
        precision = "tf32" if torch.backends.cuda.matmul.allow_tf32 else "fp32"
        return (
            f"{torch.cuda.get_device_name(device)}, torch {torch.__version__}, cudnn {cudnn}, "
            f"{precision}"
        )
    return f"cpu {torch.backends.cpu.get_cpu_capability()}, torch {torch.__version__}"


def exact(tf32: bool = False) -> None:
    """Settings under which equal inputs give equal bits on one kind of device.

    Args:
        tf32: lets CUDA round the factors of float32 products to 10 bits (other bits, and equal
            ones every time).
    """
    import torch

    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.allow_tf32 = tf32
    torch.backends.cuda.matmul.allow_tf32 = tf32


def exact_training(device: torch.device, tf32: bool = False) -> None:
    """:func:`exact`, and deterministic gradients on CUDA where torch has them (it warns where it
    has none).  To be called before anything runs on the device.

    On a CPU the number of threads alone decides the bits, and nothing more is set.
    """
    import torch

    exact(tf32)
    if device.type == "cuda":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when cuBLAS starts
        torch.use_deterministic_algorithms(True, warn_only=True)
        # every new tensor would be filled with NaN otherwise, for code that reads it unwritten
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """Under which operators compute in bf16 or fp16; without effect for fp32 and tf32."""
    import torch

    dtype = dtype_of(precision)
    return torch.autocast(device.type, dtype, enabled=dtype != torch.float32)


def seed(device: torch.device, value: int) -> None:
    """Seeds what draws on a device by default, as ``torch.manual_seed`` does, but on a CPU without
    the stack trace that torch then keeps for CUDA, which takes as long as a small network's
    operators."""
    import torch

    draws = torch.default_generator if device.type == "cpu" else torch
    draws.manual_seed(value)


def dtype_of(precision: str) -> torch.dtype:
    """In which operators compute; tf32 is float32 to torch."""
    import torch

    return {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision, torch.float32)


@contextmanager
def enough_memory(
    advice: str | Callable[[], str], error: type[Exception] = UserError
) -> Iterator[None]:
    """Turns an error of memory, of a device or of this machine, into ``error``: one line that
    ends in advice, which may be found only then."""
    try:
        yield
    except (RuntimeError, MemoryError) as full:
        reason = _lack_of_memory(full)
        if reason is None:
            raise
        raise error(f"{reason}; {advice if isinstance(advice, str) else advice()}") from None


def _lack_of_memory(error: Exception) -> str | None:
    """The sentence that tells of it, as torch, its libraries and NumPy put it; None for any other
    error."""
    sentences = re.split(r"\. |\n", str(error))
    found = [text for text in sentences if any(sign in text for sign in OUT_OF_MEMORY)]
    if not found and isinstance(error, MemoryError):
        return sentences[0] or "out of memory"
    return found[0] if found else None


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
