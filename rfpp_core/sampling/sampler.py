"""Drawing images: fields with guidance, counted noise, index-aligned micro-batches.

Image i of a seed is a function of (flow, solver, grid, seed, i) and of which others share its
micro-batch; micro-batches are aligned with the index, so threads and workers change nothing.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from rfpp_core import rng
from rfpp_core.errors import UserError, quoted
from rfpp_core.model.path import Field
from rfpp_core.runtime import cores, map_exact
from rfpp_core.sampling import grids
from rfpp_core.sampling.solvers import (
    ADAPTIVE,
    SOLVERS,
    Last,
    Solution,
    adaptive,
    solve,
    steps_for,
)

MICRO_BATCH = 250
MOST, MOST_NFE = 1 << 24, 100_000  # images at a time, evaluations an image
RK2 = r"rk2:(0\.\d*[1-9]\d*|1(\.0+)?)"


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
class Recipe:
    """A solver on a grid, cut to an NFE budget: all that turns noise into images but the flow.

    ``rk45`` chooses its evaluations itself; its ``nfe`` and grid have no meaning.
    """

    solver: str
    nfe: int = 0
    grid: str = "uniform"
    times: tuple[float, ...] = ()
    guidance: float = 1.0

    @classmethod
    def of(
        cls, flow: Flow, nfe: int, solver: str | None, grid: str = "", guidance: float = 1.0
    ) -> Recipe:
        """As asked for in words, for a flow; Euler up to 8 evaluations, Heun beyond, unless
        ``solver`` says.  ``grid`` is uniform (""), karras, or times such as 1,0.8.

        Raises:
            UserError: if the words are wrong.
        """
        if not 1 <= nfe <= MOST_NFE:
            raise UserError(f"nfe must be at least 1 and at most {MOST_NFE}; got {nfe}")
        if not 0 <= guidance < math.inf:
            raise UserError(f"guidance must be a finite number of at least 0, 1 for none; got "
                            f"{guidance}")  # fmt: skip
        if guidance != 1 and not flow.classes:
            raise UserError("guidance needs a flow with labels (network.conditional: true)")
        named = grid in ("", "uniform", "karras")
        try:
            times = () if named else tuple(float(time) for time in grid.split(","))
        except ValueError:
            raise UserError(f"the grid is '{quoted(grid)}'; it must be uniform, karras or times "
                            f"such as 1,0.8") from None  # fmt: skip
        solver = solver or ("euler" if nfe <= 8 else "heun")
        if solver == ADAPTIVE:
            return cls(solver, guidance=guidance)
        recipe = cls(solver, nfe, (grid or "uniform") if named else "uniform", times, guidance)
        if solver not in (*SOLVERS, ADAPTIVE) and not re.fullmatch(RK2, solver):
            raise UserError(f"unknown solver '{quoted(solver)}'; there are {', '.join(SOLVERS)}, "
                            f"{ADAPTIVE} and rk2:<delta>, 0 < delta <= 1")  # fmt: skip
        recipe.plan(flow.start)
        return recipe

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
            grid = (grids.karras if self.grid == "karras" else grids.uniform)(steps)
        if self.solver == "edm-heun" and start == 1:
            raise UserError("edm-heun integrates over sigma, which has no end at t = 1: it is for "
                            "imported EDM teachers, which start at 80/81")  # fmt: skip
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
    recipe: Recipe,
    backwards: bool = False,
    start: float = 1.0,
) -> Solution:
    """Images float (B, C, H, W), about in [-1, 1], from noise of the same shape; or
    ``backwards``, the same ODE from t = 0 up, noise from images.

    A flow that starts below t = 1 starts from ``start z``.  EDM's solver keeps its state in
    float64, as EDM does, around a network in float32.
    """
    state = state.to(memory_format=torch.channels_last)
    guided: Field = Guided(field, recipe.guidance)
    if recipe.solver == "edm-heun":
        state, guided = state.double(), _Single(guided)
    state = state if backwards else start * state
    if recipe.solver == ADAPTIVE:
        ends = (0.0, start) if backwards else (start, 0.0)
        found = adaptive(guided, state, *ends, y)
    else:
        grid, last = recipe.plan(start)
        grid = grid.flip(0) if backwards else grid
        found = solve(guided, state, grid, recipe.solver, last, y)
    return Solution(found.x / start, found.nfe) if backwards else found


class _Single:
    """A field of float32 seen from a state of float64."""

    def __init__(self, field: Field) -> None:
        self.field = field

    def __call__(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        return self.field(x.float(), t.float(), y)


@dataclass(frozen=True)
class Flow:
    """A trained field with what is needed to sample from it.

    ``shape`` is (C, H, W); ``classes`` is 0 for an unconditional flow; ``about`` is the metadata
    of its file; ``digest`` the sha256 of weights and architecture.
    """

    field: nn.Module
    shape: tuple[int, int, int]
    classes: int = 0
    digest: str = ""
    about: dict[str, Any] = field(default_factory=dict)

    @property
    def device(self) -> torch.device:
        return next(self.field.parameters()).device

    @property
    def start(self) -> float:
        """The first time: 1, but an imported EDM knows none above 80/81."""
        return float(self.about.get("start", 1.0))

    def sample(
        self,
        n: int,
        nfe: int = 1,
        seed: int = 0,
        labels: Sequence[int] | None = None,
        recipe: Recipe | None = None,
    ) -> Tensor:
        """Draws n images, float32 (n, C, H, W) on the CPU, about in [-1, 1].

        Args:
            n: how many.
            nfe: network evaluations an image; Euler up to 8, Heun beyond, unless ``recipe`` says.
            seed: images of one seed share their noise across flows and NFE.
            labels: one label for all or one each; drawn uniformly if the flow is conditional.
            recipe: solver, grid and guidance.

        Raises:
            UserError: if n or nfe is below 1 or a label is out of range.
        """
        if not 1 <= n <= MOST or nfe < 1:
            raise UserError(f"n and nfe must be at least 1, and n at most {MOST}; got n = {n}, "
                            f"nfe = {nfe}")  # fmt: skip
        recipe = recipe or Recipe("euler" if nfe <= 8 else "heun", nfe)
        key = rng.subkey(seed, "sample")
        return self.from_noise_key(key, n, recipe, self._labels(key, n, labels))

    def labels(self, n: int, seed: int, given: Sequence[int] | None = None) -> list[int] | None:
        """The labels of n images as :meth:`sample` takes or draws them; None without classes."""
        if not 1 <= n <= MOST:
            raise UserError(f"n and nfe must be at least 1, and n at most {MOST}; got n = {n}")
        found = self._labels(rng.subkey(seed, "sample"), n, given)
        return None if found is None else [int(y) for y in found]

    def from_noise_key(
        self, key: int, n: int, recipe: Recipe, labels: Tensor | None = None
    ) -> Tensor:
        """Images of noise 0..n-1 under a key, as :meth:`sample`."""

        index = torch.arange(n)
        return self._map(
            n,
            lambda part: rng.normal(key, index[part].to(self.device), self.shape),
            recipe,
            labels,
        )

    def decode(self, z: Tensor, recipe: Recipe, labels: Sequence[int] | None = None) -> Tensor:
        """Images float32 (B, C, H, W) on the CPU of given noises (B, C, H, W).

        Raises:
            UserError: if a label is wrong or missing.
        """
        return self._transport(z, recipe, labels, backwards=False)

    def invert(self, x: Tensor, recipe: Recipe, labels: Sequence[int] | None = None) -> Tensor:
        """Noises float32 (B, C, H, W) of given images in [-1, 1]: the same ODE from t = 0 to 1.

        Raises:
            UserError: if a label is wrong or missing, or the solver has no inverse.
        """
        if recipe.solver.startswith("anchored"):
            raise UserError("the anchored update starts from the noise and has no inverse; use "
                            "euler, midpoint or heun")  # fmt: skip
        return self._transport(x, recipe, labels, backwards=True)

    def _transport(
        self, state: Tensor, recipe: Recipe, labels: Sequence[int] | None, backwards: bool
    ) -> Tensor:
        if self.classes and labels is None:
            raise UserError(f"this flow is conditional; give a label in 0..{self.classes - 1}")
        y = self._labels(0, len(state), labels)
        return self._map(
            len(state), lambda part: state[part].to(self.device), recipe, y, backwards
        )

    def _map(
        self,
        n: int,
        states: Callable[[slice], Tensor],
        recipe: Recipe,
        y: Tensor | None,
        backwards: bool = False,
    ) -> Tensor:
        """Draws from the initial states of n samples in index-aligned micro-batches."""

        def one(first: int) -> Tensor:
            part = slice(first, min(first + MICRO_BATCH, n))
            label = None if y is None else y[part].to(self.device)
            state = states(part)
            found = draw(self.field, state, label, recipe, backwards, self.start)
            return found.x.float().cpu()

        return torch.cat(map_exact(one, range(0, n, MICRO_BATCH), threads_for(self.device)))

    def _labels(self, key: int, n: int, labels: Sequence[int] | None) -> Tensor | None:
        if labels is None:
            return rng.labels(key, torch.arange(n), self.classes) if self.classes else None
        if not self.classes:
            raise UserError("this flow was trained without labels (network.conditional: false)")
        if len(labels) not in (1, n):
            raise UserError(f"give 1 label or {n}, not {len(labels)}")
        if wrong := [y for y in labels if not 0 <= y < self.classes]:
            raise UserError(f"label {wrong[0]} is out of range 0..{self.classes - 1}")
        return torch.tensor(list(labels) * (n if len(labels) == 1 else 1))


def threads_for(device: torch.device) -> int:
    """Micro-batches in flight: one a core on a CPU (``RFPP_THREADS`` overrides), else one."""
    if device.type != "cpu":
        return 1
    given = os.environ.get("RFPP_THREADS") or str(cores())
    if not re.fullmatch("[1-9][0-9]{0,3}", given):
        raise UserError(f"RFPP_THREADS is {given[:80]!r}; it must be a whole number "
                        f"from 1 to 9999")  # fmt: skip
    return int(given)


def slerp(a: Tensor, b: Tensor, u: Tensor) -> Tensor:
    """Spherical interpolation from noise ``a`` to ``b``, each (C, H, W), at fractions u (N,).

    Weights ``sin((1 - u) w) / sin(w)`` and ``sin(u w) / sin(w)``, w the angle between them, keep
    the norm of Gaussian noise; (nearly) parallel ends fall back to the straight line.

    Returns:
        (N, C, H, W).
    """
    flat_a, flat_b, u = a.double().flatten(), b.double().flatten(), u.double()[:, None]
    scale = flat_a.norm() * flat_b.norm()
    cosine = (flat_a @ flat_b / scale).clamp(-1, 1) if scale > 0 else flat_a.new_ones(())
    angle = torch.acos(cosine)
    if torch.sin(angle) < 1e-6:
        mixed = (1 - u) * flat_a + u * flat_b
    else:
        mixed = torch.sin((1 - u) * angle) * flat_a + torch.sin(u * angle) * flat_b
        mixed = mixed / torch.sin(angle)
    return mixed.reshape(-1, *a.shape).to(a.dtype)
