"""The image store: uint8 NCHW arrays with labels, split into train and held out.

The image store is a Zarr group with ``train`` and ``held_out``, each with ``images`` uint8
(N, C, H, W) and ``labels`` int16 (N,).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from rfpp_core.errors import UserError
from rfpp_core.zarr_io import open_group

Split = Literal["train", "held_out"]


class Images(NamedTuple):
    """uint8 images (N, C, H, W) and integer labels (N,)."""

    images: NDArray[np.uint8]
    labels: NDArray[np.integer[Any]]


def about(path: Path) -> dict[str, Any]:
    """The attributes of an image store: name, shape, classes, digest.

    Raises:
        UserError: if there is no image store at ``path``.
    """
    attrs = open_group(path, "dvc repro prepare").attrs.asdict().get("rfpp")
    if not isinstance(attrs, dict):
        raise UserError(f"{path} is not an image store; `dvc repro prepare` makes it")
    return attrs


def count(path: Path, part: Split) -> int:
    """How many images a split has."""
    group: Any = open_group(path, "dvc repro prepare")[part]
    return int(group["images"].shape[0])


def read(path: Path, part: Split) -> Images:
    """One split of an image store, whole, in memory."""
    group: Any = open_group(path, "dvc repro prepare")[part]
    return Images(group["images"][:], group["labels"][:])
