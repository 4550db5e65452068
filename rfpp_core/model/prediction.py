"""Velocity fields of networks that predict the noise, the image, or a velocity.

On the line through a state x_t of the straight path, image, noise and velocity give each other:

    eps = z_hat = x_t + (1 - t) v,   x = x_hat = x_t - t v,   v = eps - x,

so errors of one prediction are multiples of each other: ``|d eps| = (1 - t) |dv|`` and
``|dx| = t |dv|``.  A network that predicts another quantity is trained with another weight of the
times, and divides by ``1 - t`` or ``t`` when it is used (Rectified Diffusion, arXiv 2410.07303).

On the straight path ("rf") the network sees x_t and t.  On a VP path (``model.vp``) it sees the
state ``u = x_t / sqrt(q)``, ``q = (1 - t)^2 + t^2``, and tau; its v is the velocity of that path,
``v_vp = alpha eps - sigma x`` (Salimans and Ho, arXiv 2202.00512, sec. 4).
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from rfpp_core.choices import Choices
from rfpp_core.model.path import T_EPS, like
from rfpp_core.model.precond import Conditioned
from rfpp_core.model.vp import SCHEDULES, Schedule, tau_of_t

# (x_t (B, *), the network's output (B, *), t (B,)) -> the velocity v (B, *) of the straight path
ToVelocity = Callable[[Tensor, Tensor, Tensor], Tensor]


def of_v(x_t: Tensor, v: Tensor, t: Tensor) -> Tensor:
    """The velocity of the straight path, as it is."""
    return v


def of_eps(x_t: Tensor, eps: Tensor, t: Tensor) -> Tensor:
    """``v = (eps - x_t) / (1 - t)`` for t < 1."""
    return (eps - x_t) / (1 - like(t, x_t))


def of_x(x_t: Tensor, x: Tensor, t: Tensor) -> Tensor:
    """``v = (x_t - x) / t``; times below 1e-5 count as 1e-5."""
    return (x_t - x) / like(t, x_t).clamp(min=T_EPS)


def of_vp_v(x_t: Tensor, v_vp: Tensor, t: Tensor) -> Tensor:
    """``v = (2t - 1) x_t / q + v_vp / sqrt(q)`` with ``q = (1 - t)^2 + t^2``."""
    q, t = like(variance(t), x_t), like(t, x_t)
    return (2 * t - 1) * x_t / q + v_vp / q.sqrt()


def variance(t: Tensor) -> Tensor:
    """``q = (1 - t)^2 + t^2 = 1 / (alpha + sigma)^2``: that of x_t for data of unit variance."""
    return (1 - t).square() + t.square()


class Predicted(Conditioned):
    """A network on the straight path; it sees ``(x_t, t - 1/2)``.

    Args:
        model: the raw network.
        to_velocity: what its output means.
    """

    def __init__(self, model: nn.Module, to_velocity: ToVelocity) -> None:
        super().__init__(model)
        self.to_velocity = to_velocity

    def forward(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        return self.to_velocity(x, self.model(x, t - 0.5, y), t)


class PredictedVP(Conditioned):
    """A network on a VP path; it sees ``(u, tau - 1/2)``.

    Args:
        model: the raw network.
        to_velocity: what its output means.
        schedule: of the path.
    """

    def __init__(self, model: nn.Module, to_velocity: ToVelocity, schedule: Schedule) -> None:
        super().__init__(model)
        self.to_velocity, self.schedule = to_velocity, schedule

    def forward(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        u = x / like(variance(t), x).sqrt()
        return self.to_velocity(x, self.model(u, tau_of_t(t, self.schedule) - 0.5, y), t)


ON_RF: Choices[ToVelocity] = {"v": of_v, "x": of_x}  # eps has no velocity at t = 1
ON_VP: Choices[ToVelocity] = {"v": of_vp_v, "eps": of_eps, "x": of_x}

# By path, of a raw network and the name of what it predicts.
FIELDS: Choices[Callable[[nn.Module, str], Conditioned]] = {
    "rf": lambda model, name: Predicted(model, ON_RF[name]),
    "vp": lambda model, name: PredictedVP(model, ON_VP[name], SCHEDULES["vp"]),
    "vp_sd": lambda model, name: PredictedVP(model, ON_VP[name], SCHEDULES["vp_sd"]),
}
