"""Horizontal flips: each image is mirrored with probability 1/2, together with its noise.

A teacher that was trained on mirrored images, too, is about flip-equivariant: it carries the
mirrored noise to the mirrored image.  So each of its pairs holds a second one (SlimFlow, arXiv
2407.12718).  Of real images with independent noise it is plain augmentation.
"""

from __future__ import annotations

import torch

from rfpp_core.images.loader import Batch
from rfpp_core.model.path import like
from rfpp_core.rng import StepRNG
from rfpp_core.training.couplings import Coupled, Coupling


def flipped(coupling: Coupling) -> Coupling:
    """Both x and z of a sample mirrored along the width, or neither; a coin for each sample."""

    def pair(batch: Batch, draws: StepRNG) -> Coupled:
        x, z, y = coupling(batch, draws)
        heads = like(draws.uniform("flip") < 0.5, x)
        return Coupled(torch.where(heads, x.flip(-1), x), torch.where(heads, z.flip(-1), z), y)

    return pair
