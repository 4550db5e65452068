"""What is minimised: distances of a velocity to its target, and flow matching on a coupling.

Distances take tensors (B, *) and return (B,), divided by d, the number of values in a sample, as
in the published runs of RF++ (arXiv 2405.20320; the division is in the code, not in the paper).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from rfpp_core.model.path import interpolate, velocity, x_hat
from rfpp_core.rng import Draws
from rfpp_core.training.couplings import Batch, Coupling

Distance = Callable[[Tensor, Tensor], Tensor]
Loss = Callable[[nn.Module, Batch, int, Draws], dict[str, Tensor]]


class Perceptual(NamedTuple):
    """A distance of images (B, C, H, W) in [-1, 1], and whether the loss divides it by t."""

    name: str
    distance: Distance
    over_t: bool


EPS = 1e-20  # inside the root: the gradient of a root at 0 is infinite
HUBER_C = 0.00054  # times d, not sqrt(d): what the published RF++ runs used


def l2(v: Tensor, target: Tensor) -> Tensor:
    """Mean square ``||v - target||^2 / d``."""
    return (v - target).square().flatten(1).mean(1)


def l2_root(v: Tensor, target: Tensor) -> Tensor:
    """``||v - target|| / sqrt(d)``, the root of :func:`l2`."""
    return (l2(v, target) + EPS).sqrt()


def pseudo_huber(v: Tensor, target: Tensor, c: float = HUBER_C) -> Tensor:
    """``(sqrt(||v - target||^2 + (c d)^2) - c d) / d`` with c = 0.00054."""
    error = (v - target).flatten(1)
    d = error.shape[1]
    return ((error.square().sum(1) + (c * d) ** 2).sqrt() - c * d) / d


def flow_matching(
    coupling: Coupling,
    law: Callable[[Tensor], Tensor],
    distance: Distance,
    name: str,
    label_dropout: float = 0.0,
    perceptual: Perceptual | None = None,
    antithetic: bool = False,
) -> Loss:
    """``distance(net(x_t, t, y), z - x)`` at a random time of each couple (arXiv 2209.03003).

    With a perceptual term ``(1 - t) distance + perceptual(x_hat, x)``, or ``/ t``: LPIPS-Huber and
    LPIPS-Huber-1/t of RF++ (arXiv 2405.20320, sec. 4.2); x_hat is not clamped.

    Args:
        coupling: gives (x, z, y).
        law: maps uniform draws (B,) in (0, 1) to times.
        distance: one of the above.
        name: what to call the term.
        label_dropout: share of labels replaced by -1, "no label".
        perceptual: a distance of images, and whether it is divided by t.
        antithetic: whether times come with their mirror images (:meth:`Draws.antithetic`).
    """

    def loss(net: nn.Module, batch: Batch, step: int, draws: Draws) -> dict[str, Tensor]:
        x, z, y = coupling(batch, draws)
        t = law(draws.antithetic("t") if antithetic else draws.uniform("t")).to(x.dtype)
        if y is not None and label_dropout:
            dropped = draws.uniform("label dropout") < label_dropout
            y = torch.where(dropped, torch.full_like(y, -1), y)
        x_t = interpolate(x, z, t)
        v = net(x_t, t, y).float()
        term = distance(v, velocity(x, z))
        if perceptual is None:
            return {name: term}
        seen = perceptual.distance(x_hat(x_t, v, t), x)
        return {name: (1 - t) * term, perceptual.name: seen / t if perceptual.over_t else seen}

    return loss
