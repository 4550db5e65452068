"""What determines a set of noise/image pairs, and what a part of it holds."""

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
from rfpp_core.runtime import Precision
from rfpp_core.storage.zarr_arrays import Codec, Layout, digest_of

FORMAT = 1
# fields with a default that may differ from it
FREE = ("start", "source", "noise_kind", "precision", "compile", "codec", "domain")


@dataclass(frozen=True)
class PairSpec:
    """What determines the pairs of a store, and nothing else.

    The number of pairs is not part of it: a larger set begins with the same pairs.

    Attributes:
        teacher: digest of the teacher's weights and architecture.
        solver, nfe, grid, guidance: how it samples; NFE is of a pair.
        classes: 0 for none; else labels are uniform draws from pair i's counter.
        seed: of noise and labels.
        shape: of an image, (C, H, W).
        micro_batch: pairs of a network call, on which the last bits depend.
        shard: pairs of a shard.
        start: first time of the flow; the state there is ``start z``.
        source: digest of the real images, where those were inverted or translated; else empty.
        noise_kind: "seeded" where noise is a function of (seed, i), "stored" where it has no
            seed, as that of inverted images, or where images are in its place.
        precision, compile: of the network.
        codec: of the stored images.
        domain: labels of the real images that are the noise, such as "0,1"; else empty.
    """

    teacher: str
    solver: str
    nfe: int
    grid: str
    guidance: float
    classes: int
    seed: int
    shape: tuple[int, int, int]
    micro_batch: int
    shard: int
    start: float = 1.0
    source: str = ""
    noise_kind: Literal["seeded", "stored"] = "seeded"
    noise: str = rng.SCHEME
    space: str = "pixel"
    dtype: str = "uint8"
    scale: str = "x = q / 127.5 - 1"
    format: int = FORMAT
    precision: Precision = "fp32"
    compile: bool = False
    codec: Codec = "blosc"
    domain: str = ""

    @property
    def document(self) -> dict[str, Any]:
        """The complete spec as a JSON document."""
        return {**asdict(self), "shape": list(self.shape)}

    @property
    def identity(self) -> dict[str, Any]:
        """The document without fields at their default, so that a new field changes no identity;
        hence a default must never change."""
        defaults = {field.name: field.default for field in fields(self)}
        return {k: v for k, v in self.document.items() if v != defaults[k]}

    @property
    def content(self) -> dict[str, Any]:
        """The identity without the codec, which changes files and no pair."""
        return {key: value for key, value in self.identity.items() if key != "codec"}

    @property
    def arrays(self) -> dict[str, Layout]:
        """Layout of each array of the store."""

        def divisor(most: int) -> int:
            """The longest chunk up to ``most`` that divides a shard."""
            return next(c for c in range(min(most, self.shard), 0, -1) if self.shard % c == 0)

        arrays = {
            "images": Layout(self.shape, "uint8", divisor(1000), self.shard, self.codec),
            "labels": Layout((), "int16", self.shard, None),
        }
        if self.stored:
            arrays["noise"] = Layout(self.shape, "float32", divisor(100), self.shard)
        return arrays

    def index(self, start: int, stop: int) -> Tensor:
        """Pair indices [start, stop), int64."""
        return torch.arange(start, stop, dtype=torch.int64)

    def z(self, index: Tensor) -> Tensor:
        """Seeded noise of the pairs ``index`` (B,): float32 (B, C, H, W)."""
        return rng.normal(self.seed, index, self.shape)

    def noise_parts(self, start: int, stop: int) -> Iterator[NDArray[np.float32]]:
        """Seeded noise of the pairs [start, stop), a few at a time."""
        few = max(1, 2**22 // math.prod(self.shape))
        for first in range(start, stop, few):
            yield self.z(self.index(first, min(first + few, stop))).numpy()

    def y(self, index: Tensor) -> Tensor | None:
        """Labels of the pairs ``index`` (B,): int64 (B,), or None without classes."""
        return rng.labels(self.seed, index, self.classes) if self.classes else None

    def differences(self, other: PairSpec) -> str:
        """Where this spec differs from another, in words."""
        a, b = self.document, other.document
        return ", ".join(f"{key} {a[key]} instead of {b[key]}" for key in a if a[key] != b[key])

    @property
    def source_labels(self) -> tuple[int, ...]:
        """Labels of the source domain; empty where the noise is none of images."""
        return tuple(int(label) for label in self.domain.split(",") if label)

    @property
    def stored(self) -> bool:
        """Whether the store holds the noise."""
        return self.noise_kind == "stored"

    @property
    def inverts(self) -> bool:
        """Whether noise is what was made, of images; else images were, of noise or a domain's."""
        return self.stored and not self.domain

    def noise_digest(self, shard: int) -> str:
        """sha256 of the noise of a shard's first pair, float32 bytes; empty for stored noise,
        which the digest of the pairs covers."""
        if self.stored:
            return ""
        z = self.z(torch.tensor([shard * self.shard], dtype=torch.int64))
        return noise_digest(z[0].numpy())


def noise_digest(z: NDArray[np.float32]) -> str:
    """sha256 of the bytes of one noise sample, float32 (C, H, W)."""
    return hashlib.sha256(np.ascontiguousarray(z).tobytes()).hexdigest()


class Pairs(NamedTuple):
    """Some pairs; images are ``x = q / 127.5 - 1``."""

    images: NDArray[np.uint8]  # (B, C, H, W)
    labels: NDArray[np.int16]  # (B,), -1 where there is no label
    noise: NDArray[np.float32] | None  # (B, C, H, W), or None where a seed gives it

    @property
    def digest(self) -> str:
        """sha256 of the decoded content."""
        return digest_of(*(part for part in self if part is not None))
