"""What determines a set of noise/image pairs, and what a piece of it holds."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rfpp_core import rng
from rfpp_core.storage.zarr_arrays import digest_of

FORMAT = 1
FREE = ("start", "source", "noise_kind")  # of the spec's fields with a default


@dataclass(frozen=True)
class PairSpec:
    """What determines the pairs of a store, and nothing else.

    ``n`` is not part of it.  ``teacher`` is the digest of its weights and architecture; ``source``
    that of the images, where they are not the teacher's own.
    """

    teacher: str
    solver: str
    nfe: int
    grid: str
    guidance: float
    classes: int  # 0: unconditional; else labels are uniform draws from pair i's counter
    seed: int
    shape: tuple[int, int, int]
    micro_batch: int
    shard: int
    start: float = 1.0  # first time; the state there is start z
    source: str = ""
    noise_kind: Literal["seeded", "stored"] = "seeded"
    noise: str = rng.SCHEME
    space: str = "pixel"
    dtype: str = "uint8"
    scale: str = "x = q / 127.5 - 1"
    format: int = FORMAT

    @property
    def document(self) -> dict[str, Any]:
        """The spec as a JSON document, whole."""
        return {**asdict(self), "shape": list(self.shape)}

    @property
    def identity(self) -> dict[str, Any]:
        """The document without what stands at its default, so that a new field changes no
        identity; hence a default must never change."""
        defaults = {field.name: field.default for field in fields(self)}
        return {k: v for k, v in self.document.items() if v != defaults[k]}

    @property
    def arrays(self) -> dict[str, tuple[tuple[int, ...], str, int, int | None]]:
        """Shape of a pair's part, type, chunk and shard of each array of the store."""

        def divisor(most: int) -> int:
            return next(c for c in range(min(most, self.shard), 0, -1) if self.shard % c == 0)

        arrays: dict[str, tuple[tuple[int, ...], str, int, int | None]] = {
            "images": (self.shape, "uint8", divisor(1000), self.shard),
            "labels": ((), "int16", self.shard, None),
        }
        if self.stored:
            arrays["noise"] = (self.shape, "float32", divisor(100), self.shard)
        return arrays

    def index(self, start: int, stop: int) -> Tensor:
        """Pair indices [start, stop), int64."""
        return torch.arange(start, stop, dtype=torch.int64)

    def z(self, index: Tensor) -> Tensor:
        """Noise of the pairs ``index``: float32 (B, C, H, W)."""
        return rng.normal(self.seed, index, self.shape)

    def noises(self, start: int, stop: int) -> Iterator[NDArray[np.float32]]:
        """The noises of the pairs [start, stop), a few at a time."""
        few = max(1, 2**22 // math.prod(self.shape))
        for first in range(start, stop, few):
            yield self.z(self.index(first, min(first + few, stop))).numpy()

    def y(self, index: Tensor) -> Tensor | None:
        """Labels of the pairs ``index``: int64 (B,), or None without classes."""
        return rng.labels(self.seed, index, self.classes) if self.classes else None

    def differences(self, other: PairSpec) -> str:
        """What of this spec is otherwise in another."""
        a, b = self.document, other.document
        return ", ".join(f"{key} {a[key]} instead of {b[key]}" for key in a if a[key] != b[key])

    @property
    def stored(self) -> bool:
        """Whether the store holds the noise."""
        return self.noise_kind == "stored"

    def witness(self, shard: int) -> str:
        """sha256 of the noise of a shard's first pair, float32 bytes; empty for stored noise,
        which the digest of the pairs covers."""
        if self.stored:
            return ""
        z = self.z(torch.tensor([shard * self.shard], dtype=torch.int64))
        return noise_digest(z[0].numpy())


def noise_digest(z: NDArray[np.float32]) -> str:
    """sha256 of the bytes of one pair's noise (C, H, W)."""
    return hashlib.sha256(np.ascontiguousarray(z).tobytes()).hexdigest()


class Pairs(NamedTuple):
    """uint8 images (B, C, H, W), int16 labels (B,), and float32 noise like the images, or None
    where a seed gives it."""

    images: NDArray[np.uint8]
    labels: NDArray[np.int16]
    noise: NDArray[np.float32] | None

    @property
    def digest(self) -> str:
        """sha256 of the content."""
        return digest_of(*(part for part in self if part is not None))
