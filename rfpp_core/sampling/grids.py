"""Time grids: decreasing float64 tensors (N + 1,) from t = 1 (noise) to t = 0 (data), N steps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from rfpp_core.choices import Choices
from rfpp_core.model.path import t_of_sigma
from rfpp_core.model.vp import SCHEDULES, Schedule, t_of_tau


def uniform(steps: int) -> Tensor:
    """``1, 1 - 1/N, ..., 0`` for N steps.

    Raises:
        ValueError: if ``steps`` is below 1.
    """
    _at_least_one(steps)
    return torch.linspace(1, 0, steps + 1, dtype=torch.float64)


def karras(
    steps: int, sigma_min: float = 0.002, sigma_max: float = 80.0, rho: float = 7.0
) -> Tensor:
    """EDM's noise levels (arXiv 2206.00364, eq. 5) as flow times ``sigma / (1 + sigma)``.

    The first time is set to 1, from which flows trained here start; an imported EDM starts at
    80/81 (see ``SamplerConfig.plan``).

    Raises:
        ValueError: if ``steps`` is below 1.
    """
    _at_least_one(steps)
    ramp = torch.linspace(0, 1, steps, dtype=torch.float64)
    low, high = sigma_min ** (1 / rho), sigma_max ** (1 / rho)
    grid = t_of_sigma((high + ramp * (low - high)) ** rho)
    grid[0] = 1.0
    return torch.cat((grid, grid.new_zeros(1)))


def vp(steps: int, schedule: Schedule) -> Tensor:
    """Times that are uniform in tau of a VP path (``model.vp``): DDIM's steps are Euler's on them.

    The first time is set to 1; a flow of that path starts at its own, which is tau = 1.

    Raises:
        ValueError: if ``steps`` is below 1.
    """
    grid = t_of_tau(uniform(steps), schedule)
    grid[0] = 1.0
    return grid


def custom(times: Sequence[float]) -> Tensor:
    """The given times, strictly decreasing in (0, 1], with 0 appended if it is missing.

    RF++ samples in two steps at ``[1, 0.8]``.

    Raises:
        ValueError: if the times are not strictly decreasing inside [0, 1].
    """
    grid = torch.tensor(times, dtype=torch.float64)
    if not len(grid) or grid[-1] != 0:
        grid = torch.cat((grid, grid.new_zeros(1)))
    if len(grid) < 2 or not grid[0] <= 1 or not bool((grid.diff() < 0).all()):
        raise ValueError(f"a grid must fall strictly within [0, 1]; got {list(times)}")
    return grid


def _at_least_one(steps: int) -> None:
    if steps < 1:
        raise ValueError(f"a grid needs at least 1 step; got {steps}")


GRIDS: Choices[Callable[[int], Tensor]] = {"uniform": uniform, "karras": karras,  # by steps
                                            "vp": partial(vp, schedule=SCHEDULES["vp"]),
                                            "vp_sd": partial(vp, schedule=SCHEDULES["vp_sd"]),
                                            }  # fmt: skip
