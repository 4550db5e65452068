"""What determines a set of noise/image pairs, and what a piece of it holds."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rfpp_core import noise
from rfpp_core.zarr_io import digest_of

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
    noise: str = noise.SCHEME
    space: str = "pixel"
    dtype: str = "uint8"
    scale: str = "x = q / 127.5 - 1"
    format: int = FORMAT

    @property
    def identity(self) -> dict[str, Any]:
        """The spec as a JSON document."""
        return {**asdict(self), "shape": list(self.shape)}

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
        return noise.normal(self.seed, index, self.shape)

    def y(self, index: Tensor) -> Tensor | None:
        """Labels of the pairs ``index``: int64 (B,), or None without classes."""
        return noise.labels(self.seed, index, self.classes) if self.classes else None

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
