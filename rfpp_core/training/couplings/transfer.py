"""Domain transfer: the noise side of a pair is an image of another set (Liu et al., arXiv
2209.03003, image-to-image transfer).

Reflow never asks its noise to be normal: any second distribution will do.  Here z is an image of a
source domain, x one of a target domain, and the two are drawn independently of each other.
"""

from __future__ import annotations

from torch import Tensor

from rfpp_core.images.loader import Batch
from rfpp_core.images.pixels import to_float
from rfpp_core.rng import StepRNG
from rfpp_core.training.couplings import Coupled, Coupling


def transfer(source: Tensor) -> Coupling:
    """z is drawn uniformly, with replacement, from the images of a source domain.

    Args:
        source: uint8 (N, C, H, W) on any device, N at least 1.
    """

    def pair(batch: Batch, draws: StepRNG) -> Coupled:
        position = (draws.uniform("source") * len(source)).long()
        z = to_float(source[position.to(source.device)].to(batch.x.device))
        return Coupled(batch.x, z, batch.y)

    return pair
