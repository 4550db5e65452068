"""The loss: a distance of velocities, a perceptual term, and the weights of the two.

Distances take two tensors (B, *) and return (B,).  They are divided by d, the number of values of
a sample, as in the published runs of RF++ (arXiv 2405.20320; in the code, not in the paper).

    loss = distance(v, z - x)                                       without a perceptual term
    loss = (1 - t) distance(v, z - x) + w(t) perceptual(x_hat, x)   with one, w(t) = 1 or 1 / t
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from rfpp_core.images.loader import Batch
from rfpp_core.model.path import interpolate, velocity, x_hat
from rfpp_core.rng import StepRNG
from rfpp_core.training.couplings import Coupling

Distance = Callable[[Tensor, Tensor], Tensor]
# (net, batch, step, draws) -> named terms (B,); the mean over samples of their sum is minimised
LossFunction = Callable[[nn.Module, Batch, int, StepRNG], dict[str, Tensor]]

EPS = 1e-20  # inside the root: the gradient of a root at 0 is infinite
HUBER_C = 0.00054  # times d, not sqrt(d): what the published RF++ runs used


class Term(NamedTuple):
    """A distance and the name of its column in the loss curve."""

    name: str
    distance: Distance


class PerceptualTerm(NamedTuple):
    """A distance of images (B, C, H, W) in [-1, 1], and its weight as a function of t (B,)."""

    name: str
    distance: Distance
    weight: Callable[[Tensor], Tensor]


def l2(v: Tensor, target: Tensor) -> Tensor:
    """Mean square ``||v - target||^2 / d``."""
    return (v - target).square().flatten(1).mean(1)


def l2_root(v: Tensor, target: Tensor) -> Tensor:
    """``||v - target|| / sqrt(d)``, the root of :func:`l2`."""
    return (l2(v, target) + EPS).sqrt()


def pseudo_huber(v: Tensor, target: Tensor, c: float = HUBER_C) -> Tensor:
    """``(sqrt(||v - target||^2 + (c d)^2) - c d) / d``, c > 0."""
    error = (v - target).flatten(1)
    d = error.shape[1]
    return ((error.square().sum(1) + (c * d) ** 2).sqrt() - c * d) / d


def constant(t: Tensor) -> Tensor:
    """Weight 1: LPIPS-Huber of RF++."""
    return torch.ones_like(t)


def over_t(t: Tensor) -> Tensor:
    """Weight 1 / t: LPIPS-Huber-1/t of RF++."""
    return 1 / t


def hidden(y: Tensor | None, p: float, draws: StepRNG) -> Tensor | None:
    """Labels (B,) of which a share p is replaced by -1, "no label"."""
    if y is None or not p:
        return y
    return torch.where(draws.uniform("label dropout") < p, torch.full_like(y, -1), y)


def flow_matching(
    coupling: Coupling,
    times: Callable[[StepRNG], Tensor],
    velocity_term: Term,
    label_dropout: float = 0.0,
    perceptual: PerceptualTerm | None = None,
) -> LossFunction:
    """``distance(net(x_t, t, y), z - x)`` at a random time for each pair (arXiv 2209.03003).

    With a perceptual term it is ``(1 - t) distance + w(t) perceptual(x_hat, x)``, where x_hat is
    not clamped: LPIPS-Huber and LPIPS-Huber-1/t of RF++ (arXiv 2405.20320, sec. 4.2).

    Args:
        coupling: gives images, noise and labels (x, z, y) of a batch.
        times: draws the training times (B,) of a step.
        velocity_term: a distance of velocities.
        label_dropout: share of labels replaced by -1, "no label", in [0, 1].
        perceptual: a distance of images, and its weight.
    """
    name, distance = velocity_term

    def loss(net: nn.Module, batch: Batch, step: int, draws: StepRNG) -> dict[str, Tensor]:
        x, z, y = coupling(batch, draws)
        t = times(draws).to(x.dtype)
        y = hidden(y, label_dropout, draws)
        x_t = interpolate(x, z, t)
        v = net(x_t, t, y).float()
        term = distance(v, velocity(x, z))
        if perceptual is None:
            return {name: term}
        seen = perceptual.distance(x_hat(x_t, v, t), x)
        return {name: (1 - t) * term, perceptual.name: perceptual.weight(t) * seen}

    return loss
