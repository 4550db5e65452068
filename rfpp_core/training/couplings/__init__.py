"""Couplings: which noise belongs to which image, a module each.

A coupling turns a batch of images into ``(x (B, *), z (B, *), y (B,) or None)``.  It may import
``images``, ``model`` and ``rng``.  A new one is a module here and a row in
``config.objective.COUPLINGS`` (CONTRIBUTING.md has an example).
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

from torch import Tensor

from rfpp_core.images.loader import Batch
from rfpp_core.rng import StepRNG


class Coupled(NamedTuple):
    """Images (B, C, H, W) in [-1, 1], their noise, and labels (B,) if there are any."""

    x: Tensor
    z: Tensor
    y: Tensor | None


class Coupling(Protocol):
    """Pairs noise with the images of a batch.

    All random numbers come from ``draws``, so that a batch is a function of (seed, step).
    """

    def __call__(self, batch: Batch, draws: StepRNG) -> Coupled: ...
