"""What is minimised: distances of a velocity to its target, and flow matching on a coupling.

Distances take tensors (B, *) and return (B,), divided by d, the number of values in a sample, as
in the published runs of RF++ (arXiv 2405.20320; the division is in the code, not in the paper).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from rfpp_core.couplings import Batch, Coupling
from rfpp_core.flow import interpolate, velocity
from rfpp_core.noise import Draws

Distance = Callable[[Tensor, Tensor], Tensor]
Loss = Callable[[nn.Module, Batch, int, Draws], dict[str, Tensor]]

HUBER_C = 0.00054  # times d, not sqrt(d): what the published RF++ runs used


def l2(v: Tensor, target: Tensor) -> Tensor:
    """Mean square ``||v - target||^2 / d``."""
    return (v - target).square().flatten(1).mean(1)


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
) -> Loss:
    """``distance(net(x_t, t, y), z - x)`` at a random time of each couple (arXiv 2209.03003).

    Args:
        coupling: gives (x, z, y).
        law: maps uniform draws (B,) in (0, 1) to times.
        distance: one of the above.
        name: what to call the term.
        label_dropout: share of labels replaced by -1, "no label".
    """

    def loss(net: nn.Module, batch: Batch, step: int, draws: Draws) -> dict[str, Tensor]:
        x, z, y = coupling(batch, draws)
        t = law(draws.uniform("t")).to(x.dtype)
        if y is not None and label_dropout:
            dropped = draws.uniform("label dropout") < label_dropout
            y = torch.where(dropped, torch.full_like(y, -1), y)
        return {name: distance(net(interpolate(x, z, t), t, y).float(), velocity(x, z))}

    return loss
