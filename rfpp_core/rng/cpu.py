"""The noise of ``box_muller``, to the bit, by a C loop: one pass, in vector registers.

Installing the package compiles ``noise.c`` where there is a C compiler; without one the definition
is used as it is.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import torch
from torch import Tensor


def normal(key: int, index: Tensor, size: int) -> Tensor:
    """``size`` standard normal values of each index: int64 (B,) -> float32 (B, size).

    Raises:
        ImportError: if ``noise.c`` was not compiled.
    """
    index = index.to(torch.int64).contiguous()
    out = torch.empty(len(index), size)
    _compiled()(key, index.data_ptr(), len(index), size, out.data_ptr())
    return out


@cache
def _compiled() -> Callable[[int, int, int, int, int], None]:
    """``rfpp_normal(key, index, rows, size, out)`` of ``noise.c``."""
    files = [Path(__file__).with_name(f"noise{suffix}") for suffix in EXTENSION_SUFFIXES]
    for file in filter(Path.exists, files):
        function = ctypes.CDLL(str(file)).rfpp_normal
        function.argtypes = [ctypes.c_uint64, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64,
                             ctypes.c_void_p]  # fmt: skip
        function.restype = None
        return function
    raise ImportError("noise.c was not compiled")
