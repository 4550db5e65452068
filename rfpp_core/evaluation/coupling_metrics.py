"""What a coupling makes of the paths of a training: their length, and the distance between them.

For paths ``x + t (z - x)``, t in [0, 1].  Of all ways to deal the same noises to the same images,
the one of least total squared length is the one of greatest distances: with ``D_ij(t)`` the
distance of two paths at equal times,

    sum over i < j of D_ij(t)^2 = const(t) - t (1 - t) N sum over i of ||x_i - z_i||^2
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Between(NamedTuple):
    """Distances between N paths, at the time at which two paths are nearest.

    Attributes:
        mean: over all pairs of paths.
        nearest: from a path to the one nearest to it, mean over paths.
    """

    mean: float
    nearest: float


def between(x: Tensor, z: Tensor) -> Between:
    """How far N >= 2 paths from x (N, *) to z (N, *) are from each other."""
    distances = least_distances(x, z)
    n = len(distances)
    mean = float(distances.sum()) / (n * (n - 1))  # the diagonal is 0
    others = distances + torch.diag(torch.full((n,), torch.inf, dtype=torch.float64)).to(x.device)
    return Between(mean, float(others.min(1).values.mean()))


def least_distances(x: Tensor, z: Tensor) -> Tensor:
    """Least distance of each two of N paths at equal times, float64 (N, N).

    With ``V = x_i - x_j`` and ``U = z_i - z_j`` it is ``||(1 - t) V + t U||`` at
    ``t = V . (V - U) / ||V - U||^2``, clipped to [0, 1].
    """
    x, z = x.flatten(1).double(), z.flatten(1).double()
    products = x @ z.T
    own = products.diagonal()
    vv, uu = _squares(x), _squares(z)
    uv = own[:, None] + own - products - products.T
    spread = vv + uu - 2 * uv  # ||V - U||^2; 0 for parallel paths, which are nearest anywhere
    t = torch.where(spread > 0, (vv - uv) / spread, 0.0).clamp(0, 1)
    squared = (1 - t) ** 2 * vv + 2 * t * (1 - t) * uv + t**2 * uu
    return squared.clamp(min=0).sqrt().fill_diagonal_(0)


def _squares(a: Tensor) -> Tensor:
    """``||a_i - a_j||^2`` of (N, d), exactly 0 on the diagonal."""
    products = a @ a.T
    own = products.diagonal()
    return (own[:, None] + own - 2 * products).clamp(min=0).fill_diagonal_(0)
