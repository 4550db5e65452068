"""Couplings: which noise belongs to which image.

A coupling turns a batch of images into ``(x (B, *), z (B, *), y (B,) or None)``.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from rfpp_core.images.pixels import to_float
from rfpp_core.model.path import like
from rfpp_core.rng import Draws, normal


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


def stored(noise: Tensor) -> Coupling:
    """The pairs of a store that holds its noise: float32 (N, C, H, W)."""

    def pair(batch: Batch, draws: Draws) -> Coupled:
        z = noise[batch.position.to(noise.device)].to(batch.x)
        return Coupled(batch.x, z, batch.y)

    return pair


def mixed(
    real: Coupling, images: Tensor, labels: Tensor | None, p: float, pairs: Coupling
) -> Coupling:
    """Each sample is, with probability p, one of a store's pairs instead of a real one.

    Config G of RF++ (arXiv 2405.20320) trains on (real image, inverted noise); p is the
    share of (synthetic image, real noise).

    Args:
        real: coupling of the batch.
        images: uint8 (N, C, H, W) of the store.
        labels: int64 (N,) or None.
        p: in [0, 1].
        pairs: the store's own coupling.
    """
    if not p:
        return real

    def pair(batch: Batch, draws: Draws) -> Coupled:
        x, z, y = real(batch, draws)
        chosen = draws.uniform("mix") < p
        position = (draws.uniform("mix position") * len(images)).long()
        drawn = to_float(images[position.to(images.device)].to(x.device))
        other, other_z, _ = pairs(Batch(drawn, position, None), draws)
        if y is not None and labels is not None:
            y = torch.where(chosen, labels[position.to(labels.device)].to(y), y)
        return Coupled(
            torch.where(like(chosen, x), other, x), torch.where(like(chosen, x), other_z, z), y
        )

    return pair


def seeded(seed: int) -> Coupling:
    """The pairs of a store: noise i is a function of (seed, i), the same that made image i."""

    def pair(batch: Batch, draws: Draws) -> Coupled:
        z = normal(seed, batch.position, tuple(batch.x.shape[1:]))
        return Coupled(batch.x, z, batch.y)

    return pair
