"""The image store: uint8 NCHW arrays with labels, split into train and held out.

The image store is a Zarr group with ``train`` and ``held_out``, each with ``images`` uint8
(N, C, H, W) and ``labels`` int16 (N,).  Pixels map to [-1, 1] by ``x = q / 127.5 - 1`` and back by
``q = floor(127.5 x + 128)``, clipped.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rfpp_core.errors import UserError
from rfpp_core.zarr_io import open_group

Split = Literal["train", "held_out"]


class Images(NamedTuple):
    """uint8 images (N, C, H, W) and integer labels (N,)."""

    images: NDArray[np.uint8]
    labels: NDArray[np.integer[Any]]


def to_uint8(x: Tensor) -> Tensor:
    """[-1, 1] float -> uint8 by rounding to the nearest grey level; clips."""
    return (x * 127.5 + 128).clamp(0, 255).to(torch.uint8)


def to_float(q: Tensor) -> Tensor:
    """uint8 -> float32 in [-1, 1]."""
    return q.to(torch.float32) / 127.5 - 1


def about(path: Path) -> dict[str, Any]:
    """The attributes of an image store: name, shape, classes, digest.

    Raises:
        UserError: if there is no image store at ``path``.
    """
    attrs = open_group(path, "dvc repro prepare").attrs.asdict().get("rfpp")
    if not isinstance(attrs, dict):
        raise UserError(f"{path} is not an image store; `dvc repro prepare` makes it")
    return attrs


def read(path: Path, part: Split) -> Images:
    """One split of an image store, whole, in memory."""
    group: Any = open_group(path, "dvc repro prepare")[part]
    return Images(group["images"][:], group["labels"][:])
