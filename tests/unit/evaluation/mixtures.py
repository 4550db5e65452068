"""Flows between two Gaussian mixtures, in closed form: oracles for tests.

Of independent x and z, each of an isotropic mixture with equal weights, x_t given its two
components is Gaussian, with mean m = (1 - t) a + t b and variance s_t^2 = (1 - t)^2 s_x^2 +
t^2 s_z^2.  So the velocity E[z - x | x_t] is a mean over components, weighted by their posterior,
of (b - a) + (t s_z^2 - (1 - t) s_x^2) / s_t^2 (x_t - m).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Mixture:
    """Gaussians of equal weight and one standard deviation, with means (K, D)."""

    means: Tensor
    std: float

    def sample(self, n: int, seed: int) -> Tensor:
        """float64 (n, D)."""
        generator = torch.Generator().manual_seed(seed)
        which = torch.randint(len(self.means), (n,), generator=generator)
        d = self.means.shape[1]
        normal = torch.randn(n, d, dtype=torch.float64, generator=generator)
        return self.means[which] + self.std * normal


@dataclass(frozen=True, eq=False)
class Between:
    """The exact field from x at t = 0 to z at t = 1."""

    x: Mixture
    z: Mixture

    def __call__(self, state: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        time = float(t[0])
        assert bool((t == time).all())
        a = self.x.means.repeat_interleave(len(self.z.means), 0)  # (KL, D)
        b = self.z.means.repeat(len(self.x.means), 1)
        var = (1 - time) ** 2 * self.x.std**2 + time**2 * self.z.std**2
        slope = (time * self.z.std**2 - (1 - time) * self.x.std**2) / var
        apart = state[:, None] - ((1 - time) * a + time * b)  # (B, KL, D)
        weight = torch.softmax(-apart.square().sum(2) / (2 * var), dim=1)[..., None]
        return (weight * (b - a + slope * apart)).sum(1)


def gaussian(d: int = 2) -> Mixture:
    """Standard normal noise."""
    return Mixture(torch.zeros(1, d, dtype=torch.float64), 1.0)


def ring() -> Mixture:
    """Four Gaussians of standard deviation 0.3 on a circle of radius 3, turned by 0.3."""
    angle = torch.arange(4, dtype=torch.float64) * (math.pi / 2) + 0.3
    return Mixture(3 * torch.stack((angle.cos(), angle.sin()), 1), 0.3)


def two(x: float) -> Mixture:
    """Two Gaussians of standard deviation 0.5 at (x, -7.5) and (x, 7.5)."""
    return Mixture(torch.tensor([[x, -7.5], [x, 7.5]], dtype=torch.float64), 0.5)
