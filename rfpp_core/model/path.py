"""The straight path between data and noise.

    x_t = (1 - t) x + t z,    v = dx_t/dt = z - x,    t = 0 is data, t = 1 is noise.

``x`` is data in [-1, 1], ``z`` is standard normal noise, both of shape (B, *); ``t`` has shape
(B,) and values in [0, 1].  EDM, where the variance explodes, has the same state as
``x_t / (1 - t)`` at noise level ``sigma = t / (1 - t)`` (RF++, arXiv 2405.20320, Prop. 1).
"""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

T_EPS = 1e-5  # RF++, app. E: training times, and those in ln(sigma), stay in [1e-5, 1 - 1e-5]


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
    """The estimate ``x_t - t v`` of the data, at t = 0 of the line along v; shape (B, *)."""
    return x_t - like(t, x_t) * v


def z_hat(x_t: Tensor, v: Tensor, t: Tensor) -> Tensor:
    """The estimate ``x_t + (1 - t) v`` of the noise, at t = 1 of that line; shape (B, *)."""
    return x_t + (1 - like(t, x_t)) * v


def t_of_sigma(sigma: Tensor) -> Tensor:
    """The time ``t = sigma / (1 + sigma)`` of EDM's noise level ``sigma = t / (1 - t)`` >= 0."""
    return sigma / (1 + sigma)
