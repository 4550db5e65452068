"""Properties of a flow: how straight its paths are, how well it inverts images, and which noise it
carries where."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from rfpp_core.model.path import Field, z_hat
from rfpp_core.sampling.solvers import trajectory

STRAIGHTNESS_STEPS, STRAIGHTNESS_BATCH = 100, 100


class Paths(NamedTuple):
    """How far the paths of a flow are from straight lines; all are 0 if it is straight.

    Attributes:
        straightness: mean over elements and times of ``(velocity - chord)^2``.  The chord is
            ``z - x`` of a path's own ends (Liu et al., arXiv 2209.03003).
        eps_constancy: mean over elements of the variance over times of the predicted noise z_hat.
            If it is constant, a DDIM step of any length is exact (Rectified Diffusion, arXiv
            2410.07303, theorem 1).
        step_gap: mean over elements of ``(G_1(z) - G_100(z))^2``, images in 1 and in 100 steps.
    """

    straightness: float
    eps_constancy: float
    step_gap: float


@torch.inference_mode()
def paths(field: Field, z: Tensor, y: Tensor | None = None, start: float = 1.0) -> Paths:
    """Measures paths of 100 uniform Euler steps.

    The grid is fine whatever NFE the flow is used with: in one step all of it is zero by
    definition.

    Args:
        field: the velocity field.
        z: noise (B, *).
        y: labels (B,) or None.
        start: first time of the flow, where a path starts from ``start z``.
    """
    grid = torch.linspace(start, 0, STRAIGHTNESS_STEPS + 1, dtype=torch.float64)
    total = varied = gap = 0.0
    for part in range(0, len(z), STRAIGHTNESS_BATCH):
        here = slice(part, part + STRAIGHTNESS_BATCH)
        label = None if y is None else y[here]
        states = list(trajectory(field, start * z[here], grid, "euler", "full", label))
        chord = (states[0] - states[-1]) / start
        total += math.fsum(float((v - chord).square().sum()) for v in _velocities(states, start))
        mean = sum(_noises(states, grid, start), torch.zeros_like(chord)) / STRAIGHTNESS_STEPS
        varied += math.fsum(
            float((eps - mean).square().sum()) for eps in _noises(states, grid, start)
        )
        one_step = states[0] - start * next(_velocities(states, start))
        gap += float((one_step - states[-1]).square().sum())
    return Paths(
        total / STRAIGHTNESS_STEPS / z.numel(),
        varied / STRAIGHTNESS_STEPS / z.numel(),
        gap / z.numel(),
    )


def straightness(field: Field, z: Tensor, y: Tensor | None = None, start: float = 1.0) -> float:
    """The straightness of :func:`paths`, which has the same arguments."""
    return paths(field, z, y, start).straightness


def _velocities(states: Sequence[Tensor], start: float) -> Iterator[Tensor]:
    """The velocity of each step, which Euler's rule took."""
    return ((a - b) * STRAIGHTNESS_STEPS / start for a, b in pairwise(states))


def _noises(states: Sequence[Tensor], grid: Tensor, start: float) -> Iterator[Tensor]:
    """The noise that is predicted at the beginning of each step."""
    for x_t, t, v in zip(states, grid, _velocities(states, start), strict=False):
        yield z_hat(x_t, v, t.to(x_t).expand(len(x_t)))


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
    """``E||x - z||^2 / d`` of images and their noise, both (B, *).

    Reflow never raises it, nor any other convex cost (Liu et al., arXiv 2209.03003).
    """
    return float((x.double() - z.double()).square().mean())


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
