"""The straight path between data and noise.

    x_t = (1 - t) x + t z,    v = dx_t/dt = z - x,    t = 0 is data, t = 1 is noise.

``x`` is data in [-1, 1], ``z`` is standard normal noise, both of shape (B, *); ``t`` has shape
(B,) with values in [0, 1].  In the variance-exploding picture of EDM the same state is
``x_t / (1 - t)`` at noise level ``sigma = t / (1 - t)`` (RF++, arXiv 2405.20320, Prop. 1).
"""

from __future__ import annotations

from typing import Protocol

from torch import Tensor


class Field(Protocol):
    """A velocity field: ``(x_t (B, *), t (B,), y (B,) or None) -> v (B, *)``."""

    def __call__(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor: ...


def like(t: Tensor, x: Tensor) -> Tensor:
    """Views ``t`` of shape (B,) as (B, 1, ...) so that it broadcasts over ``x`` (B, *)."""
    return t.reshape(-1, *(1,) * (x.ndim - 1))


def interpolate(x: Tensor, z: Tensor, t: Tensor) -> Tensor:
    """The state ``x_t = (1 - t) x + t z``, shape (B, *)."""
    t = like(t, x)
    return (1 - t) * x + t * z


def velocity(x: Tensor, z: Tensor) -> Tensor:
    """The velocity ``v = z - x`` of the straight path, shape (B, *)."""
    return z - x


def x_hat(x_t: Tensor, v: Tensor, t: Tensor) -> Tensor:
    """The data end that ``v`` points away from, ``x_t - t v``, shape (B, *)."""
    return x_t - like(t, x_t) * v


def z_hat(x_t: Tensor, v: Tensor, t: Tensor) -> Tensor:
    """The noise end that ``v`` points to, ``x_t + (1 - t) v``, shape (B, *)."""
    return x_t + (1 - like(t, x_t)) * v


def sigma_of_t(t: Tensor) -> Tensor:
    """EDM's noise level ``sigma = t / (1 - t)``; infinite at t = 1."""
    return t / (1 - t)


def t_of_sigma(sigma: Tensor) -> Tensor:
    """The time ``t = sigma / (1 + sigma)`` of an EDM noise level in [0, inf)."""
    return sigma / (1 + sigma)
