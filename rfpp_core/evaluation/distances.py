"""Distances between sets of images, by their features.

Features are float arrays (N, D) of any feature net; a Frechet distance is called FID only with
Inception features.  It is computed in float64 from eigenvalues: ``tr sqrt(S1 S2)`` is the sum of
the square roots of those of ``S1 S2``.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

Features = NDArray[np.float64]
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
    """Mean (D,) and covariance (D, D), divided by N - 1."""

    mean: Features
    cov: Features


def gaussian(features: NDArray[Any]) -> Gaussian:
    """Moments of features (N, D), N >= 2."""
    features = features.astype(np.float64)
    return Gaussian(features.mean(0), np.cov(features, rowvar=False))


def frechet(a: Gaussian, b: Gaussian) -> float:
    """``|m1 - m2|^2 + tr(S1 + S2 - 2 sqrt(S1 S2))`` (Heusel et al., arXiv 1706.08500)."""
    values, vectors = np.linalg.eigh(a.cov)
    root = (vectors * np.sqrt(values.clip(0))) @ vectors.T
    cross = np.sqrt(np.linalg.eigvalsh(root @ b.cov @ root).clip(0)).sum()
    gap = float(((a.mean - b.mean) ** 2).sum())
    return gap + float(np.trace(a.cov) + np.trace(b.cov) - 2 * cross)


def kid(a: Features, b: Features) -> float:
    """Unbiased MMD^2 with the kernel ``(x.y / D + 1)^3`` (Binkowski et al., arXiv 1801.01401)."""
    n, m = len(a), len(b)
    within_a = (_kernel_sum(a, a) - _kernel_trace(a)) / (n * (n - 1))
    within_b = (_kernel_sum(b, b) - _kernel_trace(b)) / (m * (m - 1))
    return within_a + within_b - 2 * _kernel_sum(a, b) / (n * m)


def _kernel_sum(a: Features, b: Features) -> float:
    """Sum of the kernel over all pairs, in blocks that stay in the processor's cache."""
    blocks = np.array_split(a, -(-len(a) // 256))
    return math.fsum(float(_kernel(rows @ b.T, a.shape[1]).sum()) for rows in blocks)


def _kernel_trace(a: Features) -> float:
    return float(_kernel((a * a).sum(1), a.shape[1]).sum())


def _kernel(product: Features, d: int) -> Features:
    x = product / d + 1
    return x * x * x  # ** 3 takes NumPy ten times as long


class Standardizer(NamedTuple):
    """Scales features (N, D) by the mean and standard deviation (D,) of the training split's."""

    mean: Features
    std: Features

    def __call__(self, features: Features) -> Features:
        scaled: Features = (features - self.mean) / self.std
        return scaled


def standardizer(features: Features) -> Standardizer:
    """The standardizer of features (N, D); a constant feature is only centred."""
    std = features.std(0)
    return Standardizer(features.mean(0), np.where(std > 0, std, 1.0))


def precision_recall(real: Features, fake: Features, neighbours: int = 3) -> tuple[float, float]:
    """Improved precision and recall (Kynkaanniemi et al., arXiv 1904.06991).

    Precision is the share of generated images inside the real manifold, the union of balls that
    reach from each real image to its k-th neighbour; recall is the same with the roles swapped.
    Mode collapse lowers recall and not precision.
    """
    return _share_inside(real, fake, neighbours), _share_inside(fake, real, neighbours)


def _share_inside(manifold: Features, points: Features, k: int) -> float:
    m, p = torch.from_numpy(manifold), torch.from_numpy(points)
    near = (torch.cdist(rows, m).topk(k + 1, largest=False) for rows in torch.split(m, 1024))
    radius = torch.cat([found.values[:, -1] for found in near])
    inside = [(torch.cdist(rows, m) <= radius).any(1) for rows in torch.split(p, 1024)]
    return float(torch.cat(inside).double().mean())
