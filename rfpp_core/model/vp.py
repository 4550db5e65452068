"""Variance-preserving (VP) paths, which are the straight path rescaled.

A VP path has the states ``u = alpha x + sigma z`` with ``alpha^2 + sigma^2 = 1`` at the times tau
in [0, 1] of a schedule (Song et al., arXiv 2011.13456, eq. 33):

    ln alpha(tau) = -(beta_max - beta_min) tau^2 / 4 - beta_min tau / 2

Divided by ``alpha + sigma`` they are those of the straight path (``model.path``):

    x_t = u / (alpha + sigma)   at   t = sigma / (alpha + sigma)

So images, noise and their pairs are the same, and so are the solutions of the ODE: a DDIM step is
Euler's step in t.  What is left of the schedule is which times a grid or a training takes, and
its end: alpha(1) > 0, so the path starts at t < 1 (Rectified Diffusion, arXiv 2410.07303).

Imports no torch: params are checked against ``SCHEDULES`` before anything is loaded.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

from rfpp_core.choices import Choices

if TYPE_CHECKING:
    from torch import Tensor


class Schedule(NamedTuple):
    """``beta(tau) = beta_min + tau (beta_max - beta_min)``, with 0 < beta_min < beta_max."""

    beta_min: float
    beta_max: float

    @property
    def start(self) -> float:
        """The time t < 1 of tau = 1, where the path starts."""
        ratio = math.sqrt(math.expm1((self.beta_min + self.beta_max) / 2))  # sigma / alpha
        return ratio / (1 + ratio)


SCHEDULES: Choices[Schedule] = {
    "vp": Schedule(0.1, 20.0),  # DDPM's, in continuous time: alpha(1) = 0.0066
    "vp_sd": Schedule(0.85, 12.0),  # of Rectified Diffusion's code: alpha(1) = 0.040
}


def t_of_tau(tau: Tensor, schedule: Schedule) -> Tensor:
    """The time t of the straight path at tau in [0, 1]; any shape, in [0, ``schedule.start``]."""
    low, high = schedule
    minus_ln_alpha = tau * (tau * (high - low) / 4 + low / 2)
    ratio = (2 * minus_ln_alpha).expm1().sqrt()  # sigma / alpha, as alpha^2 + sigma^2 = 1
    return ratio / (1 + ratio)


def tau_of_t(t: Tensor, schedule: Schedule) -> Tensor:
    """The inverse of :func:`t_of_tau`; 1 for every t from ``schedule.start`` on."""
    low, high = schedule
    ratio = (t / (1 - t)).clamp(max=schedule.start / (1 - schedule.start))
    minus_ln_alpha = ratio.square().log1p() / 2
    root = (low**2 + 4 * (high - low) * minus_ln_alpha).sqrt()
    return 4 * minus_ln_alpha / (low + root)
