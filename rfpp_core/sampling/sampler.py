"""Samplers: a solver on a grid with guidance, cut to a number of network evaluations."""

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

    Two network evaluations a call unless scale is 1 (Ho & Salimans, arXiv 2207.12598, with their
    w = scale - 1).
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
    """A solver on a grid, cut to an NFE budget: all that turns noise into images but the flow.

    ``rk45`` chooses its evaluations itself; its ``nfe`` and grid have no meaning.
    """

    solver: str
    nfe: int = 0
    grid: str = "uniform"
    times: tuple[float, ...] = ()
    guidance: float = 1.0

    @property
    def forwards(self) -> int:
        """Network forwards an image: two an evaluation with guidance."""
        return self.nfe * (1 if self.guidance == 1 else 2)

    def plan(self, start: float = 1.0) -> tuple[Tensor, Last]:
        """The times (N + 1,) and whether the last step drops its second stage.

        Args:
            start: the first time, if the grid begins later; an imported EDM knows none above
                80/81.

        Raises:
            UserError: if solver, NFE or times are wrong, or the times do not spend ``nfe``.
        """
        try:
            steps, last = steps_for(self.solver, self.nfe)
            grid = grids.custom(self.times) if self.times else None
        except ValueError as error:
            raise UserError(str(error)) from None
        if grid is not None:
            if len(grid) - 1 != steps:
                raise UserError(f"a grid of {len(grid) - 1} steps does not spend {self.nfe} "
                                f"evaluations with {self.solver}")  # fmt: skip
        else:
            grid = grids.GRIDS[self.grid](steps)
        if start == 1 and not properties_of(self.solver).starts_at_1:
            raise UserError(f"{self.solver} integrates over sigma, which has no end at t = 1: it "
                            f"is for imported EDM teachers, which start at 80/81")  # fmt: skip
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
    """Images float (B, C, H, W), about in [-1, 1], from noise of the same shape; or
    ``backwards``, the same ODE from t = 0 up, noise from images.

    A flow that starts below t = 1 starts from ``start z``.  EDM's solver keeps its state in
    float64, as EDM does, around a network in float32.
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
    """A field of float32 seen from a state of float64."""

    def __init__(self, field: Field) -> None:
        self.field = field

    def __call__(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        return self.field(x.float(), t.float(), y)


def threads_for(device: torch.device) -> int:
    """Micro-batches in flight: one a core on a CPU (``RFPP_THREADS`` overrides), else one."""
    if device.type != "cpu":
        return 1
    given = os.environ.get("RFPP_THREADS") or str(cores())
    if not re.fullmatch("[1-9][0-9]{0,3}", given):
        raise UserError(f"RFPP_THREADS is {given[:80]!r}; it must be a whole number "
                        f"from 1 to 9999")  # fmt: skip
    return int(given)
