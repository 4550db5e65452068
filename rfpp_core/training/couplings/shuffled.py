"""The control arm of reflow: pairs that are no pairs, each image with another one's noise.

Reflow works because an ODE matched noise and image (Rectified Diffusion, arXiv 2410.07303).  With
the same images and the same noise in another order it is the training of a first flow on generated
images, and no path gets straighter.
"""

from __future__ import annotations

import torch

from rfpp_core.images.loader import Batch
from rfpp_core.rng import StepRNG, permutation, subkey
from rfpp_core.training.couplings import Coupled, Coupling


def shuffled(pairs: Coupling, n: int, seed: int) -> Coupling:
    """Gives image i the noise of the next pair on one random cycle through all: never its own.

    Args:
        pairs: gives the noise of a pair by its position.
        n: number of pairs, at least 2.
        seed: of the cycle.
    """
    order = permutation(subkey(seed, "shuffled"), 0, n)
    other = torch.empty_like(order)
    other[order] = order.roll(1)

    def pair(batch: Batch, draws: StepRNG) -> Coupled:
        position = other[batch.position.to(other.device)].to(batch.position.device)
        return Coupled(batch.x, pairs(batch._replace(position=position), draws).z, batch.y)

    return pair
