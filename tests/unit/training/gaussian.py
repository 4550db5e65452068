"""The flow of Gaussian data N(m, s^2), whose flow map is affine.

q(t) = (1 - t)^2 s^2 + t^2,     x_r = (1 - r) m + sqrt(q(r) / q(t)) (x_t - (1 - t) m)
"""

from __future__ import annotations

import torch
from torch import Tensor

M, S = 0.7, 0.4


def q(t: Tensor) -> Tensor:
    return (1 - t) ** 2 * S**2 + t**2


def v(x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
    """E[z - x | x_t] of states (B, d), from their joint normal distribution."""
    t = t[:, None]
    return -M + (t - (1 - t) * S**2) / q(t) * (x - (1 - t) * M)


def moved(x: Tensor, t: Tensor, r: Tensor) -> Tensor:
    """The state (B, d) at r of the path that is at x (B, d) at t."""
    t, r = t[:, None], r[:, None]
    return (1 - r) * M + (q(r) / q(t)).sqrt() * (x - (1 - t) * M)


def u(x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
    """The average velocity; v without an end time, or where it is the time."""
    if t.ndim == 1:
        return v(x, t)
    t, r = t.unbind(1)
    gap = (t - r)[:, None]
    apart = gap > 0
    average = (x - moved(x, t, r)) / torch.where(apart, gap, 1)
    return torch.where(apart, average, v(x, t))
