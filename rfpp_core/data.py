"""Real images: any source becomes uint8 NCHW arrays with labels, split into train and held out.

The image store is a Zarr group with ``train`` and ``held_out``, each with ``images`` uint8
(N, C, H, W) and ``labels`` int16 (N,).  Pixels map to [-1, 1] by ``x = q / 127.5 - 1`` and back by
``q = floor(127.5 x + 128)``, clipped.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
import zarr
from numpy.typing import NDArray
from torch import Tensor

from rfpp_core.errors import UserError
from rfpp_core.noise import subkey
from rfpp_core.zarr_io import create_array, digest_of, open_group

Split = Literal["train", "held_out"]


class Images(NamedTuple):
    """uint8 images (N, C, H, W) and int16 labels (N,)."""

    images: NDArray[np.uint8]
    labels: NDArray[np.int16]


def to_uint8(x: Tensor) -> Tensor:
    """[-1, 1] float -> uint8 by rounding to the nearest grey level; clips."""
    return (x * 127.5 + 128).clamp(0, 255).to(torch.uint8)


def to_float(q: Tensor) -> Tensor:
    """uint8 -> float32 in [-1, 1]."""
    return q.to(torch.float32) / 127.5 - 1


def digits() -> Images:
    """The 1,797 handwritten digits of scikit-learn, 8x8 grey, 17 levels stretched to 0..255."""
    from sklearn.datasets import load_digits

    raw = load_digits()
    grey = np.round(raw.images * (255 / 16)).astype(np.uint8)
    return Images(grey[:, None], raw.target.astype(np.int16))


def split(data: Images, held_out: float, seed: int) -> dict[Split, Images]:
    """A seeded split that takes the same fraction of every class for the held-out part."""
    rng = np.random.Generator(np.random.Philox(subkey(seed, "split")))
    keys = rng.bit_generator.random_raw(len(data.labels))
    held = np.zeros(len(data.labels), dtype=bool)
    for label in np.unique(data.labels):
        members = np.flatnonzero(data.labels == label)
        order = members[np.argsort(keys[members], kind="stable")]
        held[order[: round(held_out * len(members))]] = True
    return {
        "train": Images(data.images[~held], data.labels[~held]),
        "held_out": Images(data.images[held], data.labels[held]),
    }


def write(path: Path, parts: dict[Split, Images], **about: Any) -> None:
    """Writes an image store with the shape, class count and content digest in its attributes."""
    group = zarr.open_group(path, mode="w-", zarr_format=3)
    for name, part in parts.items():
        sub = group.create_group(name)
        n = len(part.images)
        chunk = min(1000, n)
        create_array(sub, "images", part.images.shape, "uint8", chunk, chunk)[:] = part.images
        create_array(sub, "labels", (n,), "int16", n, None)[:] = part.labels
    train = parts["train"]
    group.attrs["rfpp"] = {
        **about,
        "shape": list(train.images.shape[1:]),
        "classes": int(max(part.labels.max() for part in parts.values())) + 1,
        "digest": digest_of(*(array for part in parts.values() for array in part)),
    }


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
