"""Noise/image pairs of a store, whose noise is drawn from its seed or read from the store."""

from __future__ import annotations

from torch import Tensor

from rfpp_core.images.loader import Batch
from rfpp_core.rng import StepRNG, normal
from rfpp_core.training.couplings import Coupled, Coupling


def seeded(seed: int) -> Coupling:
    """Noise i is a function of (seed, i): the noise that image i was generated from."""

    def pair(batch: Batch, draws: StepRNG) -> Coupled:
        z = normal(seed, batch.position, tuple(batch.x.shape[1:]))
        return Coupled(batch.x, z, batch.y)

    return pair


def stored(noise: Tensor) -> Coupling:
    """Noise i is ``noise[i]``, float32 (N, C, H, W)."""

    def pair(batch: Batch, draws: StepRNG) -> Coupled:
        z = noise[batch.position.to(noise.device)].to(batch.x)
        return Coupled(batch.x, z, batch.y)

    return pair
