"""Where code runs: the device, and single-threaded work on several threads."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

A = TypeVar("A")
B = TypeVar("B")


def device() -> torch.device:
    """The first CUDA device, unless ``RFPP_DEVICE`` names another or ``cpu``."""
    name = os.environ.get("RFPP_DEVICE") or ("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(name)


def exact() -> None:
    """Settings under which equal inputs give equal bits on one kind of device."""
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False


def map_exact(fn: Callable[[A], B], items: Iterable[A], threads: int) -> list[B]:
    """``[fn(item) for item in items]`` on Python threads that each compute single-threaded.

    Results cannot depend on the number of threads, as those of an operator split over threads
    may; and small images run faster this way, without a barrier at every operator.
    """
    before = torch.get_num_threads()

    def one(item: A) -> B:
        torch.set_num_threads(1)
        return fn(item)

    try:
        with ThreadPoolExecutor(max(1, threads)) as pool:
            return list(pool.map(one, items))
    finally:
        torch.set_num_threads(before)
