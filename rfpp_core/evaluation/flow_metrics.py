"""Properties of a flow: how straight its paths are, how well it inverts images, and which noise it
carries where."""

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
    """Mean over elements and 100 uniform Euler steps of ``(velocity - chord)^2``, 0 if straight.

    The chord is ``z - x`` of a path's own ends (Liu et al., arXiv 2209.03003).  The grid is fine
    whatever NFE the flow is used with: in one step the measure is zero by definition.

    Args:
        field: the velocity field.
        z: noise (B, *).
        y: labels (B,) or None.
        start: first time of the flow, where a path starts from ``start z``.
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
    """How well real images are inverted, and how far their noise is from standard normal.

    Attributes:
        round_trip: mean square error of image -> noise -> image.
        norm2: mean over images of ``||z||^2 / d``; 1 for standard normal noise.
        norm2_std: its standard deviation over images; ``sqrt(2 / d)`` for such noise.
        correlation: of horizontal and vertical neighbours in z; 0 for such noise.
    """

    round_trip: float
    norm2: float
    norm2_std: float
    correlation: float


def inversion(x: Tensor, z: Tensor, back: Tensor) -> Inversion:
    """Compares images, their noise, and the images decoded from it (RF++, fig. 5).

    Args:
        x: images (B, C, H, W) in [-1, 1].
        z: their noise, of the same shape.
        back: the images that the noise decodes to.
    """
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


def transport_cost(x: Tensor, z: Tensor) -> float:
    """``E||x - z||^2 / d`` of noise and the images it is carried to, both (B, C, H, W).

    Reflow never raises it, nor any other convex cost (Liu et al., arXiv 2209.03003).
    """
    return float((x - z).double().square().mean())


def flip_error(x: Tensor, of_flipped: Tensor) -> float:
    """``E||flip(G(z)) - G(flip(z))||^2`` over the variance of G(z), both summed over values.

    It is 0 for a flow G that mirrors the image when the noise is mirrored, so that mirrored pairs
    are pairs of it, and about 2 where the two are as far apart as two images of unrelated noise.

    Args:
        x: G(z), (B, C, H, W) with B above 1.
        of_flipped: G(flip(z)), of the same shape.
    """
    apart = (x.flip(-1) - of_flipped).double().square().mean()
    return float(apart / x.double().var(0).mean())
