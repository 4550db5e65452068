"""Couplings: which noise belongs to which image.

A coupling turns a batch from the loader into ``(x (B, *), z (B, *), y (B,) or None)``.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

from torch import Tensor

from rfpp_core.noise import Draws, normal


class Coupled(NamedTuple):
    """Images in [-1, 1], their noise, and labels if there are any."""

    x: Tensor
    z: Tensor
    y: Tensor | None


class Coupling(Protocol):
    """Pairs noise with images; ``position`` (B,) int64 is where the images stand in their set."""

    def __call__(self, x: Tensor, position: Tensor, y: Tensor | None, draws: Draws) -> Coupled: ...


def independent(x: Tensor, position: Tensor, y: Tensor | None, draws: Draws) -> Coupled:
    """Fresh noise at every step: the coupling of a first flow."""
    return Coupled(x, draws.normal("coupling", tuple(x.shape[1:])), y)


def seeded(seed: int) -> Coupling:
    """The pairs of a store: noise i is a function of (seed, i), the same that made image i."""

    def pair(x: Tensor, position: Tensor, y: Tensor | None, draws: Draws) -> Coupled:
        return Coupled(x, normal(seed, position, tuple(x.shape[1:])), y)

    return pair
