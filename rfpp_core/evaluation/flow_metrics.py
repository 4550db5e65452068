"""Properties of a flow itself: how straight its paths are, and what its inverse does."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from rfpp_core.model.path import Field
from rfpp_core.sampling.solvers import trajectory

STRAIGHTNESS_STEPS, STRAIGHTNESS_BATCH = 100, 100


@torch.inference_mode()
def straightness(field: Field, z: Tensor, y: Tensor | None = None, start: float = 1.0) -> float:
    """Mean over elements and 100 uniform Euler steps of ``(velocity - chord)^2``.

    The chord is ``z - x`` of the path's own ends (Liu et al., arXiv 2209.03003); 0 for a straight
    flow.  The grid is fine whatever NFE is sold: at one step the measure is identically zero.
    Paths begin at t = ``start`` from ``start z``.
    """
    grid = torch.linspace(start, 0, STRAIGHTNESS_STEPS + 1, dtype=torch.float64)
    total = 0.0
    for part in range(0, len(z), STRAIGHTNESS_BATCH):
        here = slice(part, part + STRAIGHTNESS_BATCH)
        label = None if y is None else y[here]
        states = list(trajectory(field, start * z[here], grid, "euler", "full", label))
        chord = (states[0] - states[-1]) / start
        velocities = ((a - b) * STRAIGHTNESS_STEPS / start for a, b in pairwise(states))
        total += math.fsum(float((v - chord).square().sum()) for v in velocities)
    return total / STRAIGHTNESS_STEPS / z.numel()


class Inversion(NamedTuple):
    """Real images sent to noise and back, and how far their noise is from the prior's.

    ``norm2`` is the mean over images of ``||z||^2 / d`` (1 for the prior) and ``norm2_std`` its
    deviation (``sqrt(2 / d)``), ``correlation`` that of horizontal and vertical neighbours (0).
    """

    round_trip: float  # mean square error of image -> noise -> image
    norm2: float
    norm2_std: float
    correlation: float


def inversion(x: Tensor, z: Tensor, back: Tensor) -> Inversion:
    """Of images (B, C, H, W), their noises and the images those decode to (RF++, fig. 5)."""
    z = z.double()
    norm2 = z.flatten(1).square().mean(1)
    across, down = z[..., :-1] * z[..., 1:], z[..., :-1, :] * z[..., 1:, :]
    correlation = torch.cat((across.flatten(), down.flatten())).mean() / norm2.mean()
    return Inversion(
        float((back - x).square().mean()),
        float(norm2.mean()),
        float(norm2.std()),
        float(correlation),
    )
