"""Velocity fields made of a raw network ``F(x, c_noise, y)``.

Plain:  v = F(x_t, c(t)).

EDM:  with s = sigma_data and q = t^2 + s^2 (1 - t)^2,

    v = x_t (t - s^2 (1 - t)) / q - (s / sqrt(q)) F(x_t / sqrt(q), ln(t / (1 - t)) / 4),
    D = x_t s^2 (1 - t) / q + (t s / sqrt(q)) F,

which equals ``v = (x_t - D(x_t / (1 - t); t / (1 - t))) / t`` of EDM's denoiser (Karras et al.,
arXiv 2206.00364, eq. 7; RF++, arXiv 2405.20320, eq. 1) without dividing by t or 1 - t.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from rfpp_core.model.path import T_EPS, like


class Conditioned(nn.Module):
    """A velocity field around ``model(x (B, C, H, W), c_noise (B,), y (B,) or None)``.

    The attribute has the name it has in EDM's checkpoints, so that names of weights agree.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        raise NotImplementedError


class PlainVelocity(Conditioned):
    """The network's output is the velocity; it sees ``c_noise = t - 1/2`` in [-1/2, 1/2]."""

    def forward(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        out: Tensor = self.model(x, t - 0.5, y)
        return out


class EDMVelocity(Conditioned):
    """EDM's preconditioning in a closed form that is finite at t = 0 and t = 1, too.

    Args:
        model: the raw network F.
        sigma_data: standard deviation of the data, s > 0.
    """

    def __init__(self, model: nn.Module, sigma_data: float = 0.5) -> None:
        super().__init__(model)
        self.sigma_data = sigma_data

    def raw(self, x: Tensor, t: Tensor, y: Tensor | None) -> tuple[Tensor, Tensor]:
        """Network output F and ``q = t^2 + s^2 (1 - t)^2``, the variance of x_t."""
        q = edm_variance(t, x, self.sigma_data)
        out: Tensor = self.model(x / q.sqrt(), c_noise(t), y)
        return out, q

    def forward(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        raw, q = self.raw(x, t, y)
        return edm_velocity(x, raw, q, t, self.sigma_data)


def edm_variance(t: Tensor, x: Tensor, s: float) -> Tensor:
    """``q = t^2 + s^2 (1 - t)^2`` of times (B,), which broadcasts over states x (B, *)."""
    return like(t.square() + s**2 * (1 - t).square(), x)


def edm_velocity(x: Tensor, raw: Tensor, q: Tensor, t: Tensor, s: float) -> Tensor:
    """v (B, *) of a state x, network output F and variance q, (B, *) each, at times t (B,)."""
    t = like(t, x)
    return x * (t - s**2 * (1 - t)) / q - s / q.sqrt() * raw


class EDMDenoiser(nn.Module):
    """EDM's denoiser ``D = E[x | x_t]``, computed from the same network.

    It takes the state ``x_t`` of the flow, not EDM's ``x_t / (1 - t)``, and t (B,); it returns
    (B, C, H, W).
    """

    def __init__(self, field: EDMVelocity) -> None:
        super().__init__()
        self.field = field

    def forward(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        s, (raw, q) = self.field.sigma_data, self.field.raw(x, t, y)
        t = like(t, x)
        return x * s**2 * (1 - t) / q + t * s / q.sqrt() * raw


def c_noise(t: Tensor) -> Tensor:
    """What EDM's networks see of the time, ``ln(sigma) / 4 = ln(t / (1 - t)) / 4``, shape (B,).

    It is the only term that needs t inside (0, 1).
    """
    return torch.logit(t.clamp(T_EPS, 1 - T_EPS)) / 4
