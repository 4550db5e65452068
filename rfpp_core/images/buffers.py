"""The arrays of a training's set: in memory or, if they are too large, in memory-mapped files that
the processes of a training share."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rfpp_core.errors import UserError

Layout = Mapping[str, tuple[tuple[int, ...], str]]  # shape and type of each array, by name


@dataclass(frozen=True)
class Buffers:
    """Makes the arrays of a set.

    Arrays of more than ``limit`` bytes are files in ``folder``, which one process fills
    (``fills``) and the others read.
    """

    folder: Path
    limit: float
    fills: bool = True

    def arrays(self, layout: Layout) -> tuple[dict[str, NDArray[Any]], bool]:
        """The arrays, and whether they are still to be filled.

        Raises:
            OSError: if the disk has not enough space for the files.
        """
        if sum(_bytes(shape, dtype) for shape, dtype in layout.values()) <= self.limit:
            return in_memory(layout), True
        if self.fills:
            self.folder.mkdir(parents=True, exist_ok=True)
            for name, (shape, dtype) in layout.items():
                _allocate(self.folder / f"{name}.raw", _bytes(shape, dtype))
        arrays: dict[str, NDArray[Any]] = {
            name: np.memmap(self.folder / f"{name}.raw", dtype, "r+", shape=shape)
            for name, (shape, dtype) in layout.items()
        }
        return arrays, self.fills


MEMORY = Buffers(Path(), math.inf)


def in_memory(layout: Layout) -> dict[str, NDArray[Any]]:
    """Empty arrays in memory.

    Raises:
        UserError: if they do not fit.
    """
    try:
        return {name: np.empty(shape, dtype) for name, (shape, dtype) in layout.items()}
    except (MemoryError, ValueError):
        size = sum(_bytes(shape, dtype) for shape, dtype in layout.values())
        raise UserError(f"a set of {size / 1e9:.1f} GB does not fit into memory") from None


def flush(arrays: Mapping[str, NDArray[Any]]) -> None:
    """Makes what was written visible to every process that maps the files."""
    for array in arrays.values():
        if isinstance(array, np.memmap):
            array.flush()


def _allocate(path: Path, size: int) -> None:
    """Allocates the space at once: a mapping on a full disk would kill the process instead."""
    with path.open("wb") as file:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, size)
        else:
            file.truncate(size)


def _bytes(shape: tuple[int, ...], dtype: str) -> int:
    return math.prod(shape) * np.dtype(dtype).itemsize
