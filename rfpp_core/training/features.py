"""Errors of the velocity as a feature net sees them (Liu et al., arXiv 2209.03003, on domain
transfer).

    E || grad h(x_t)^T ((z - x) - v(x_t, t)) ||^2

with features h, is the squared norm of the derivative of h at x_t along the residual: what h does
not see costs nothing, so pixels may move that do not tell the two domains apart.  Where the
Jacobian of h has full rank, the minimum is that of flow matching, E[z - x | x_t]; in directions
that h does not see, any velocity is a minimum.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from rfpp_core.images.loader import Batch
from rfpp_core.model.path import interpolate, velocity
from rfpp_core.rng import StepRNG
from rfpp_core.training.couplings import Coupling
from rfpp_core.training.losses import LossFunction, hidden

NAME = "features"  # of the column in the loss curve


def seen(features: Callable[[Tensor], Sequence[Tensor]], x_t: Tensor, residual: Tensor) -> Tensor:
    """``||J_h(x_t) residual||^2``, a mean over the values of a layer, summed over layers: (B,).

    By one forward pass with tangents, in float32; its gradient reaches ``residual`` alone, through
    a frozen net.

    Args:
        features: h, (B, *) -> layers (B, ...), each sample's of its own input alone.
        x_t: where, (B, *).
        residual: along what, (B, *).
    """
    with torch.autocast(x_t.device.type, enabled=False), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch's, of what it imports for this
        along: Any = torch.func.jvp(
            lambda x: tuple(features(x)), (x_t.detach().float(),), (residual.float(),)
        )
    return torch.stack([layer.square().flatten(1).mean(1) for layer in along[1]]).sum(0)


def feature_weighted(
    coupling: Coupling,
    times: Callable[[StepRNG], Tensor],
    features: Callable[[Tensor], Sequence[Tensor]],
    label_dropout: float = 0.0,
) -> LossFunction:
    """:func:`seen` of the residual of flow matching at a random time for each pair.

    Args:
        coupling: gives images, noise and labels (x, z, y) of a batch.
        times: draws the training times (B,) of a step.
        features: of a frozen net, see :func:`seen`.
        label_dropout: share of labels replaced by -1, "no label", in [0, 1].
    """

    def loss(net: nn.Module, batch: Batch, step: int, draws: StepRNG) -> dict[str, Tensor]:
        x, z, y = coupling(batch, draws)
        t = times(draws).to(x.dtype)
        x_t = interpolate(x, z, t)
        v = net(x_t, t, hidden(y, label_dropout, draws)).float()
        return {NAME: seen(features, x_t, velocity(x, z) - v)}

    return loss
