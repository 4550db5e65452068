"""Two sets in one training: each sample comes from the second with a given probability.

Configuration G of RF++ (arXiv 2405.20320) trains on real images with their inverted noise, mixed
with generated images and their noise.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rfpp_core.images.loader import Batch
from rfpp_core.images.pixels import to_float
from rfpp_core.model.path import like
from rfpp_core.rng import StepRNG
from rfpp_core.training.couplings import Coupled, Coupling


def mixed(
    first: Coupling, images: Tensor, labels: Tensor | None, p: float, second: Coupling
) -> Coupling:
    """With probability p, a sample of the batch is replaced by one of a second set.

    Args:
        first: coupling of the batch.
        images: of the second set, uint8 (N, C, H, W).
        labels: of the second set, int64 (N,) or None.
        p: probability in [0, 1].
        second: coupling of the second set.
    """
    if not p:
        return first

    def pair(batch: Batch, draws: StepRNG) -> Coupled:
        x, z, y = first(batch, draws)
        chosen = draws.uniform("mix") < p
        position = (draws.uniform("mix position") * len(images)).long()
        drawn = to_float(images[position.to(images.device)].to(x.device))
        other, other_z, _ = second(Batch(drawn, position, None), draws)
        if y is not None and labels is not None:
            y = torch.where(chosen, labels[position.to(labels.device)].to(y), y)
        return Coupled(
            torch.where(like(chosen, x), other, x), torch.where(like(chosen, x), other_z, z), y
        )

    return pair
