"""Phased Rectified Diffusion: a flow that is straight within each of M phases of its times.

Phase m has the times from t_m down to t_(m-1).  A real image x and fresh noise z give the state at
its start, and a teacher, the flow that the training starts from, solves its ODE to the end:

    x_(t_m) = (1 - t_m) x + t_m z,    x_(t_(m-1)) = teacher's solution, a few Euler steps on,
    v = (x_(t_m) - x_(t_(m-1))) / (t_m - t_(m-1)),    x_t = x_(t_(m-1)) + (t - t_(m-1)) v,

and the loss is ``distance(net(x_t, t), v)`` (Rectified Diffusion, arXiv 2410.07303; in this form
PeRFlow, arXiv 2405.07510).  The paper gives the chord by its noise, over sigma / alpha.  It is the
same line, and its velocity is finite at t = 1, too.  What is learned is sampled by M Euler steps,
on the times of the phases.

No pairs are stored: the teacher runs at every update.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn

from rfpp_core.images.loader import Batch
from rfpp_core.model.path import Field, interpolate, like
from rfpp_core.rng import StepRNG
from rfpp_core.training.couplings import Coupling
from rfpp_core.training.losses import LossFunction, Term, hidden


class Chord(NamedTuple):
    """The line between two states of a phase: its ends' times (B,), its end, its velocity."""

    start: Tensor
    end: Tensor
    x_end: Tensor  # (B, *)
    v: Tensor  # (B, *)

    def at(self, t: Tensor) -> Tensor:
        """The state (B, *) at times (B,)."""
        return self.x_end + like(t - self.end, self.v) * self.v


def chord(x_start: Tensor, x_end: Tensor, start: Tensor, end: Tensor) -> Chord:
    """The line from x_start (B, *) at times ``start`` (B,) to x_end at earlier times ``end``."""
    return Chord(start, end, x_end, (x_start - x_end) / like(start - end, x_end))


def phased(
    coupling: Coupling,
    times: Callable[[Tensor], Tensor],
    term: Term,
    teacher: Field,
    phases: int = 4,
    substeps: int = 10,
    label_dropout: float = 0.0,
) -> LossFunction:
    """The distance of the velocity to the chord of the teacher's solution of a random phase.

    Args:
        coupling: gives images, noise and labels (x, z, y) of a batch.
        times: maps [0, 1] to times, increasing; the phases end at those of ``m / phases``.
        term: a distance of velocities.
        teacher: the field that is solved, without gradient.
        phases: M, at least 1.
        substeps: Euler steps of the teacher in a phase, at least 1.
        label_dropout: share of labels replaced by -1, "no label", in [0, 1], for the teacher, too.
    """

    def loss(net: nn.Module, batch: Batch, step: int, draws: StepRNG) -> dict[str, Tensor]:
        x, z, y = coupling(batch, draws)
        y = hidden(y, label_dropout, draws)
        u = draws.uniform("t")
        phase = (u * phases).ceil()  # 1, ..., M
        grid = [times((phase - j / substeps) / phases).to(x.dtype) for j in range(substeps + 1)]
        x_start = interpolate(x, z, grid[0])
        line = chord(x_start, solved(teacher, x_start, grid, y), grid[0], grid[-1])
        t = times(u).to(x.dtype)
        return {term.name: term.distance(net(line.at(t), t, y).to(line.v), line.v)}

    return loss


@torch.no_grad()
def solved(field: Field, x: Tensor, grid: list[Tensor], y: Tensor | None = None) -> Tensor:
    """The state (B, *) by Euler's rule on times (B,) of each sample's own.

    Args:
        field: the velocity field.
        x: state at ``grid[0]``, (B, *).
        grid: at least one time of each sample.
        y: labels (B,) or None.
    """
    for t, s in pairwise(grid):
        x = x + like(s - t, x) * field(x, t, y).to(x)
    return x
