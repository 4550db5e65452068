"""DANSM, distance-aware noise-sample matching: each image takes the nearest noise left.

    z_i = argmin over the noises of the pool that are not used yet of ||x_i - z||^2

in the order of training, from a pool of M noises that is drawn afresh when it is used up
(Xu, Liu, Kong: "Easing training process of rectified flow models via lengthening inter-path
distance", ICLR 2025 (OpenReview RaR3ETzyKp)).  The greedy choice is late for the last images of a
pool, whose noises are farther than random ones; ``ot`` solves the same problem exactly.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from rfpp_core.images.loader import Batch
from rfpp_core.training.couplings.matched import squared_distances


def dansm(batches: Iterable[Batch], z: Tensor, classes: Tensor | None) -> Iterator[Tensor]:
    """For each batch, the noise of each of its images: the nearest that no image before it has.

    Args:
        batches: M images in all.
        z: M noises (M, *).
        classes: class of each noise, int64 (M,); an image takes noise of its own class alone.

    Yields:
        Positions in ``z``, int64 (B,).
    """
    used = torch.zeros(len(z), dtype=torch.bool, device=z.device)
    for batch in batches:
        distances = squared_distances(batch.x, z)
        if classes is not None and batch.y is not None:
            distances.masked_fill_(batch.y[:, None] != classes, math.inf)
        yield torch.cat([_nearest(row, used) for row in distances])


def _nearest(distances: Tensor, used: Tensor) -> Tensor:
    """Position (1,) of the least distance that is not used, which it marks as used.

    Nothing here makes the host wait for a GPU.
    """
    found = distances.masked_fill(used, math.inf).argmin(0, keepdim=True)
    used.index_fill_(0, found, True)
    return found
