"""Couplings: which noise belongs to which image.

A coupling turns a batch of images into ``(x (B, *), z (B, *), y (B,) or None)``.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

from torch import Tensor

from rfpp_core.noise import Draws, normal


class Batch(NamedTuple):
    """Images (B, C, H, W) in [-1, 1], their positions in the set (B,), labels (B,) or None."""

    x: Tensor
    position: Tensor
    y: Tensor | None


class Coupled(NamedTuple):
    """Images in [-1, 1], their noise, and labels if there are any."""

    x: Tensor
    z: Tensor
    y: Tensor | None


class Coupling(Protocol):
    """Pairs noise with the images of a batch."""

    def __call__(self, batch: Batch, draws: Draws) -> Coupled: ...


def independent(batch: Batch, draws: Draws) -> Coupled:
    """Fresh noise at every step: the coupling of a first flow."""
    return Coupled(batch.x, draws.normal("coupling", tuple(batch.x.shape[1:])), batch.y)


def seeded(seed: int) -> Coupling:
    """The pairs of a store: noise i is a function of (seed, i), the same that made image i."""

    def pair(batch: Batch, draws: Draws) -> Coupled:
        z = normal(seed, batch.position, tuple(batch.x.shape[1:]))
        return Coupled(batch.x, z, batch.y)

    return pair
