"""Fresh noise at every step, independent of the image: the coupling of a first rectified flow."""

from __future__ import annotations

from rfpp_core.images.loader import Batch
from rfpp_core.rng import StepRNG
from rfpp_core.training.couplings import Coupled


def independent(batch: Batch, draws: StepRNG) -> Coupled:
    """``z ~ N(0, I)`` for every image of the batch (Liu et al., arXiv 2209.03003)."""
    return Coupled(batch.x, draws.normal("coupling", tuple(batch.x.shape[1:])), batch.y)
