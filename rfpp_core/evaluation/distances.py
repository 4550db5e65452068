"""Distances between sets of images, by their features.

Features are tensors (N, D) of any feature net, on any device; what is computed of them is float64,
in blocks, so that little more memory is used than theirs.  A Frechet distance is called FID only
with Inception features.  It is computed from eigenvalues: ``tr sqrt(S1 S2)`` is the sum of the
square roots of those of ``S1 S2``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

BLOCK = 256  # rows: of products that stay in a processor's cache
Scale = Callable[[Tensor], Tensor]
DISTANCES = {  # name of the Frechet distance by feature net
    "classifier": "fd_classifier",
    "inception": "fid",
    "inception_clean": "fid_clean",
    "pixels": "fd_pixels",
}


def columns(net: str) -> tuple[str, str, str, str, str]:
    """The metrics of a feature net: the Frechet distances to the training split and to the
    held-out split, KID, precision, recall."""
    distance = DISTANCES[net]
    return (distance, f"{distance}_held_out", f"kid_{net}", f"precision_{net}", f"recall_{net}")


class Gaussian(NamedTuple):
    """Mean (D,) and covariance (D, D), divided by N - 1, in float64."""

    mean: Tensor
    cov: Tensor


def gaussian(features: Tensor) -> Gaussian:
    """Moments of features (N, D), N >= 2."""
    n, d = features.shape
    mean, cov = (torch.zeros(size, dtype=torch.float64, device=features.device)
                 for size in ((d,), (d, d)))  # fmt: skip
    for rows in torch.split(features, BLOCK):
        mean += rows.double().sum(0) / n
    for rows in torch.split(features, BLOCK):
        centred = rows.double() - mean
        cov.addmm_(centred.T, centred, alpha=1 / (n - 1))
    return Gaussian(mean, cov)


def frechet(a: Gaussian, b: Gaussian) -> float:
    """``|m1 - m2|^2 + tr(S1 + S2 - 2 sqrt(S1 S2))`` (Heusel et al., arXiv 1706.08500)."""
    values, vectors = torch.linalg.eigh(a.cov)
    root = (vectors * values.clamp(min=0).sqrt()) @ vectors.T
    cross = torch.linalg.eigvalsh(root @ b.cov @ root).clamp(min=0).sqrt().sum()
    gap = (a.mean - b.mean).square().sum()
    return float(gap + a.cov.trace() + b.cov.trace() - 2 * cross)


@dataclass(frozen=True)
class Standardizer:
    """Scales features (N, D) by the mean and standard deviation (D,) of the training split's."""

    mean: Tensor
    std: Tensor

    def __call__(self, features: Tensor) -> Tensor:
        return (features.double() - self.mean) / self.std


def standardizer(features: Tensor) -> Standardizer:
    """The standardizer of features (N, D); a constant feature is only centred."""
    moments = gaussian(features)
    n = len(features)
    std = (moments.cov.diagonal() * ((n - 1) / n)).sqrt()
    return Standardizer(moments.mean, torch.where(std > 0, std, 1.0))


def kid(a: Tensor, b: Tensor, scale: Scale = torch.Tensor.double) -> float:
    """Unbiased MMD^2 with the kernel ``(x.y / D + 1)^3`` (Binkowski et al., arXiv 1801.01401).

    Args:
        a: features (N, D).
        b: features (M, D).
        scale: is applied to both, block by block.
    """
    n, m = len(a), len(b)
    within_a = _kernel_sum(a, a, scale, distinct=True) / (n * (n - 1))
    within_b = _kernel_sum(b, b, scale, distinct=True) / (m * (m - 1))
    return within_a + within_b - 2 * _kernel_sum(a, b, scale) / (n * m)


def _kernel_sum(a: Tensor, b: Tensor, scale: Scale, distinct: bool = False) -> float:
    """Sum of the kernel over all pairs; if ``distinct``, but those of a row with itself."""
    columns, found = scale(b), list[Tensor]()
    for part in torch.split(a, BLOCK):
        rows = scale(part)
        found.append(_kernel_total(rows @ columns.T, a.shape[1]))
        if distinct:
            found.append(-_kernel_total(rows.square().sum(1), a.shape[1]))
    return float(torch.stack(found).sum())


def _kernel_total(product: Tensor, d: int) -> Tensor:
    """Sum of the kernel of scalar products, which are overwritten."""
    x = product.div_(d).add_(1).flatten()
    return torch.dot(x.square(), x)


def precision_recall(real: Tensor, fake: Tensor, neighbours: int = 3) -> tuple[float, float]:
    """Improved precision and recall (Kynkaanniemi et al., arXiv 1904.06991).

    Precision is the share of generated images inside the real manifold, the union of balls that
    reach from each real image to its k-th neighbour; recall is the same with the roles swapped.
    Mode collapse lowers recall and not precision.
    """
    return _share_inside(real, fake, neighbours), _share_inside(fake, real, neighbours)


def _share_inside(manifold: Tensor, points: Tensor, k: int) -> float:
    m = manifold.double()
    near = (torch.cdist(rows, m).topk(k + 1, largest=False) for rows in torch.split(m, BLOCK))
    radius = torch.cat([found.values[:, -1] for found in near])
    inside = [
        (torch.cdist(rows.double(), m) <= radius).any(1) for rows in torch.split(points, BLOCK)
    ]
    return float(torch.cat(inside).double().mean())
