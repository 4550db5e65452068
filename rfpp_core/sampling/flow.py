"""A trained flow, loaded from one model file: images from noise, and noise from images.

Image i of a seed is a function of (flow, sampler, seed, i) and, in its last bits, of the images
that share its micro-batch.  Micro-batches are aligned with the index, so the number of threads or
workers changes nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from rfpp_core import rng
from rfpp_core.errors import UserError, quoted
from rfpp_core.model.flow_map import takes_end_time
from rfpp_core.runtime import map_exact
from rfpp_core.sampling.grids import GRIDS
from rfpp_core.sampling.sampler import SamplerConfig, draw, threads_for
from rfpp_core.sampling.solver_table import ADAPTIVE, FLOW_MAP, properties_of
from rfpp_core.sampling.solvers import NO_END_TIME

MICRO_BATCH = 250
MOST, MOST_NFE = 1 << 24, 100_000  # images of a call, evaluations an image
FEW = 8  # NFE up to which Euler's images are better than Heun's


@dataclass(frozen=True)
class Flow:
    """A trained velocity field with what is needed to sample from it.

    Attributes:
        field: the network with its preconditioning.
        shape: of an image, (C, H, W).
        classes: number of labels, 0 for an unconditional flow.
        digest: sha256 of weights and architecture.
        metadata: of its model file.
    """

    field: nn.Module
    shape: tuple[int, int, int]
    classes: int = 0
    digest: str = ""
    metadata: dict[str, Any] = field(default_factory=dict)

    @property
    def device(self) -> torch.device:
        return next(self.field.parameters()).device

    @property
    def start(self) -> float:
        """The first time: 1, or 80/81 for an imported EDM."""
        return float(self.metadata.get("start", 1.0))

    def sample(
        self,
        n: int,
        nfe: int = 1,
        seed: int = 0,
        labels: Sequence[int] | None = None,
        sampler: SamplerConfig | None = None,
    ) -> Tensor:
        """Draws n images, float32 (n, C, H, W) on the CPU, approximately in [-1, 1].

        Args:
            n: how many.
            nfe: network evaluations an image, by Euler up to 8 and Heun beyond; not used with
                ``sampler``.
            seed: of the noise, which is the same for every flow, sampler and NFE.
            labels: one for all or one each; by default a conditional flow draws them uniformly.
            sampler: solver, NFE, grid and guidance instead.

        Raises:
            UserError: if n or nfe is below 1 or a label is out of range.
        """
        if not 1 <= n <= MOST or nfe < 1:
            raise UserError(
                f"n and nfe must be at least 1, and n at most {MOST}; got n = {n}, nfe = {nfe}"
            )
        sampler = sampler or SamplerConfig(default_solver(nfe), nfe)
        key = rng.subkey(seed, "sample")
        return self.from_noise_key(key, n, sampler, self._labels(key, n, labels))

    def labels(self, n: int, seed: int, given: Sequence[int] | None = None) -> list[int] | None:
        """The labels that :meth:`sample` takes or draws for n images; None without classes.

        Raises:
            UserError: as :meth:`sample` does.
        """
        if not 1 <= n <= MOST:
            raise UserError(f"n and nfe must be at least 1, and n at most {MOST}; got n = {n}")
        found = self._labels(rng.subkey(seed, "sample"), n, given)
        return None if found is None else [int(y) for y in found]

    def states(self, key: int, index: Tensor) -> Tensor:
        """What the samples ``index`` (B,) of a key start from: noise, float32 (B, C, H, W) on the
        device of ``index``."""
        return rng.normal(key, index, self.shape)

    def from_noise_key(
        self,
        key: int,
        n: int,
        sampler: SamplerConfig,
        labels: Tensor | None = None,
        first: int = 0,
        finish: Callable[[Tensor], Tensor] = torch.Tensor.float,
    ) -> Tensor:
        """Images of the samples ``first``..n-1 of a key, as :meth:`sample`.

        Args:
            key: of the noise.
            n: end of the samples.
            sampler: solver, NFE, grid and guidance.
            labels: of the samples, int64 (n - first,); None for a flow without classes.
            first: a multiple of ``MICRO_BATCH``, so that no image depends on it.
            finish: is applied to each micro-batch where it was drawn.
        """
        index = torch.arange(first, n)

        def states(part: slice) -> Tensor:
            return self.states(key, index[part].to(self.device))

        return self._map(len(index), states, sampler, labels, finish=finish)

    def decode(
        self, z: Tensor, sampler: SamplerConfig, labels: Sequence[int] | None = None
    ) -> Tensor:
        """Images of given noise, both float32 (B, C, H, W); they are returned on the CPU.

        Raises:
            UserError: if a label is wrong or missing.
        """
        return self._transport(z, sampler, labels, backwards=False)

    def invert(
        self, x: Tensor, sampler: SamplerConfig, labels: Sequence[int] | None = None
    ) -> Tensor:
        """The noise of given images in [-1, 1]: the same ODE from t = 0 to 1.

        Both are float32 (B, C, H, W); the noise is returned on the CPU.

        Raises:
            UserError: if a label is wrong or missing, or the solver has no inverse.
        """
        if sampler.solver != ADAPTIVE and not properties_of(sampler.solver).invertible:
            raise UserError(
                "the anchored update starts from the noise and has no inverse; use "
                "euler, midpoint or heun"
            )
        return self._transport(x, sampler, labels, backwards=True)

    def _transport(
        self, state: Tensor, sampler: SamplerConfig, labels: Sequence[int] | None, backwards: bool
    ) -> Tensor:
        if self.classes and labels is None:
            raise UserError(f"this flow is conditional; give a label in 0..{self.classes - 1}")
        y = self._labels(0, len(state), labels)
        return self._map(
            len(state), lambda part: state[part].to(self.device), sampler, y, backwards
        )

    def _map(
        self,
        n: int,
        states: Callable[[slice], Tensor],
        sampler: SamplerConfig,
        y: Tensor | None,
        backwards: bool = False,
        finish: Callable[[Tensor], Tensor] = torch.Tensor.float,
    ) -> Tensor:
        """Solves from the initial states of n samples, in index-aligned micro-batches."""

        def one(first: int) -> Tensor:
            part = slice(first, min(first + MICRO_BATCH, n))
            label = None if y is None else y[part].to(self.device)
            state = states(part)
            found = draw(self.field, state, label, sampler, backwards, self.start)
            return finish(found.x.float()).cpu()

        return torch.cat(map_exact(one, range(0, n, MICRO_BATCH), threads_for(self.device)))

    def _labels(self, key: int, n: int, labels: Sequence[int] | None) -> Tensor | None:
        if labels is None:
            return rng.labels(key, torch.arange(n), self.classes) if self.classes else None
        if not self.classes:
            raise UserError(
                "this flow was trained without labels (conditional: false in its network)"
            )
        if len(labels) not in (1, n):
            raise UserError(f"give 1 label or {n}, not {len(labels)}")
        if wrong := [y for y in labels if not 0 <= y < self.classes]:
            raise UserError(f"label {wrong[0]} is out of range 0..{self.classes - 1}")
        return torch.tensor(list(labels) * (n if len(labels) == 1 else 1))


def sampler_for(
    flow: Flow, nfe: int, solver: str | None, grid: str = "", guidance: float = 1.0
) -> SamplerConfig:
    """The sampler of a command line's options, checked for a flow.

    Args:
        flow: the flow to sample from.
        nfe: network evaluations an image.
        solver: its name; None for Euler up to 8 evaluations and Heun beyond, and for a flow map's
            own steps.
        grid: a name of ``grids.GRIDS`` ("" for uniform), or times such as "1,0.8".
        guidance: guidance scale, 1 for none.

    Raises:
        UserError: saying what is wrong and what is allowed.
    """
    if not 1 <= nfe <= MOST_NFE:
        raise UserError(f"nfe must be at least 1 and at most {MOST_NFE}; got {nfe}")
    if not 0 <= guidance < math.inf:
        raise UserError(
            f"guidance must be a finite number of at least 0, 1 for none; got {guidance}"
        )
    if guidance != 1 and not flow.classes:
        raise UserError("guidance needs a flow with labels (conditional: true in its network)")
    named = grid == "" or grid in GRIDS
    try:
        times = () if named else tuple(float(time) for time in grid.split(","))
    except ValueError:
        raise UserError(
            f"the grid is '{quoted(grid)}'; it must be one of {', '.join(GRIDS)}, or times "
            "such as 1,0.8"
        ) from None
    is_map = takes_end_time(flow.field)
    solver = solver or (FLOW_MAP if is_map else default_solver(nfe))
    if solver == FLOW_MAP and not is_map:
        raise UserError(NO_END_TIME)
    if solver == ADAPTIVE:
        return SamplerConfig(solver, guidance=guidance)
    name = (grid or "uniform") if named else "uniform"
    sampler = SamplerConfig(solver, nfe, name, times, guidance)
    _check_own_grid(flow, sampler)
    sampler.plan(flow.start)
    return sampler


def own_grid(flow: Flow) -> str:
    """The name of the grid of a flow's path, or uniform."""
    path: str = flow.metadata.get("architecture", {}).get("path", "")
    return path if path in GRIDS else "uniform"


def _check_own_grid(flow: Flow, sampler: SamplerConfig) -> None:
    """Names the grid of a flow that starts too early for the one that was asked for."""
    own = own_grid(flow)
    if own == "uniform" or sampler.times:
        return
    grid, _ = sampler.plan()
    if len(grid) > 2 and grid[1] >= flow.start:
        raise UserError(
            f"the {sampler.grid} grid begins above t = {flow.start:.4g}, where this flow starts; "
            f"take the grid {own}, or fewer steps"
        )


def default_solver(nfe: int) -> str:
    """Euler up to 8 evaluations, Heun beyond."""
    return "euler" if nfe <= FEW else "heun"


def slerp(a: Tensor, b: Tensor, u: Tensor) -> Tensor:
    """Spherical interpolation from noise ``a`` to ``b``, each (C, H, W), at fractions u (N,).

    The weights ``sin((1 - u) w) / sin(w)`` and ``sin(u w) / sin(w)``, with w the angle between
    the two, preserve the norm of Gaussian noise.  (Nearly) parallel ends are interpolated
    linearly.

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
