"""Samplers: a solver on a time grid, with guidance, for a number of network evaluations (NFE)."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass

import torch
from torch import Tensor

from rfpp_core.errors import UserError
from rfpp_core.model.path import Field
from rfpp_core.runtime import cores
from rfpp_core.sampling import grids
from rfpp_core.sampling.solver_table import ADAPTIVE, Last, properties_of, steps_for
from rfpp_core.sampling.solvers import Solution, adaptive, solve


class Guided:
    """Classifier-free guidance: ``v = v(no label) + scale (v(label) - v(no label))``.

    A call is two network evaluations unless the scale is 1, which is no guidance (Ho and
    Salimans, arXiv 2207.12598, with their w = scale - 1).
    """

    def __init__(self, field: Field, scale: float) -> None:
        self.field, self.scale = field, scale

    def __call__(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        v = self.field(x, t, y)
        if self.scale == 1 or y is None:
            return v
        free = self.field(x, t, None)
        return free + self.scale * (v - free)


@dataclass(frozen=True)
class SamplerConfig:
    """How a flow turns noise into images.

    Attributes:
        solver: a name of ``solver_table``.  ``rk45`` chooses its evaluations itself and uses
            neither ``nfe`` nor a grid.
        nfe: network evaluations an image; with guidance each is two forwards.
        grid: a name of ``grids.GRIDS``.
        times: a grid of one's own instead, decreasing in (0, 1]; 0 is appended.
        guidance: scale of classifier-free guidance, 1 for none.
    """

    solver: str
    nfe: int = 0
    grid: str = "uniform"
    times: tuple[float, ...] = ()
    guidance: float = 1.0

    @property
    def forwards(self) -> int:
        """Network forwards an image: with guidance two for each evaluation."""
        return self.nfe * (1 if self.guidance == 1 else 2)

    def plan(self, start: float = 1.0) -> tuple[Tensor, Last]:
        """The times (N + 1,) and the rule of the last step.

        Args:
            start: the first time of the flow: 1, or 80/81 for an imported EDM.

        Raises:
            UserError: if solver, NFE or times are wrong, or the times do not take ``nfe``.
        """
        try:
            steps, last = steps_for(self.solver, self.nfe)
            grid = grids.custom(self.times) if self.times else None
        except ValueError as error:
            raise UserError(str(error)) from None
        if grid is not None:
            if len(grid) - 1 != steps:
                raise UserError(
                    f"a grid of {len(grid) - 1} steps does not spend {self.nfe} "
                    f"evaluations with {self.solver}"
                )
        else:
            grid = grids.GRIDS[self.grid](steps)
        if start == 1 and not properties_of(self.solver).starts_at_1:
            raise UserError(
                f"{self.solver} integrates over sigma, which has no end at t = 1: it "
                f"is for imported EDM teachers, which start at 80/81"
            )
        if steps > 1 and grid[1] >= start:
            raise UserError(
                f"the grid's second time is {float(grid[1]):.4g}, but this flow "
                f"starts at {start:.4g}; take fewer steps or the karras grid"
            )
        grid[0] = min(float(grid[0]), start)
        return grid, last


@torch.inference_mode()
def draw(
    field: Field,
    state: Tensor,
    y: Tensor | None,
    sampler: SamplerConfig,
    backwards: bool = False,
    start: float = 1.0,
) -> Solution:
    """Images, approximately in [-1, 1], from noise; or backwards, noise from images.

    EDM's solver has its state in float64, as EDM does, around a network in float32.

    Args:
        field: the velocity field.
        state: noise, or images if ``backwards``; float (B, C, H, W).
        y: labels (B,) or None.
        sampler: solver, grid and guidance.
        backwards: solve the same ODE from t = 0 up.
        start: the first time of the flow, where the state is ``start z``.

    Returns:
        The solution, of the shape of ``state``.

    Raises:
        UserError: see :meth:`SamplerConfig.plan`.
    """
    state = state.to(memory_format=torch.channels_last)
    guided: Field = Guided(field, sampler.guidance)
    adapts = sampler.solver == ADAPTIVE
    if not adapts and properties_of(sampler.solver).float64:
        state, guided = state.double(), _Single(guided)
    state = state if backwards else start * state
    if adapts:
        ends = (0.0, start) if backwards else (start, 0.0)
        found = adaptive(guided, state, *ends, y)
    else:
        grid, last = sampler.plan(start)
        grid = grid.flip(0) if backwards else grid
        found = solve(guided, state, grid, sampler.solver, last, y)
    return Solution(found.x / start, found.nfe) if backwards else found


class _Single:
    """A float32 field for a state in float64."""

    def __init__(self, field: Field) -> None:
        self.field = field

    def __call__(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        return self.field(x.float(), t.float(), y)


def threads_for(device: torch.device) -> int:
    """Micro-batches at a time: one for each core of a CPU (``RFPP_THREADS`` overrides), else one.

    Raises:
        UserError: if that variable is not a number.
    """
    if device.type != "cpu":
        return 1
    given = os.environ.get("RFPP_THREADS") or str(cores())
    if not re.fullmatch("[1-9][0-9]{0,3}", given):
        raise UserError(
            f"RFPP_THREADS is {given[:80]!r}; it must be a whole number from 1 to 9999"
        )
    return int(given)
