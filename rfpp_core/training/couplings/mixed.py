"""Two sets in one training: each sample is drawn from the second with a given probability.

Configuration G of RF++ (arXiv 2405.20320) trains on (real image, inverted noise), with a share of
(synthetic image, its noise).
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
    """Each sample is, with probability p, one of a second set instead of the batch's own.

    Args:
        first: coupling of the batch.
        images: uint8 (N, C, H, W) of the second set.
        labels: int64 (N,) or None.
        p: in [0, 1].
        second: the second set's own coupling.
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
