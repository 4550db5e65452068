"""Straightening on a grid of few steps (BOSS, arXiv 2312.16414, its second phase).

A frozen flow carries noise along a fine Euler path, which passes the times ``1 = t_0 > ... > t_K =
0`` of a coarse grid.  At the start of each segment the net learns the segment's chord:

    loss = 1/K sum_k distance(net(x_k, t_k, y), (x_{k+1} - x_k) / (t_{k+1} - t_k)).

A net without loss ends K Euler steps where the frozen flow ends its fine ones.  It is trained at
the K times alone: at other numbers of steps it is whatever it was.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from rfpp_core.images.loader import Batch
from rfpp_core.model.path import Field
from rfpp_core.rng import StepRNG
from rfpp_core.training.couplings import Coupling
from rfpp_core.training.losses import LossFunction, Term


def straightening(
    coupling: Coupling, frozen: Field, times: Sequence[float], parts: Sequence[int], term: Term
) -> LossFunction:
    """The loss of the module's docstring; of a batch it uses noise and labels, and no image.

    Args:
        coupling: gives the noise and the labels of a batch.
        frozen: the flow whose paths are followed.
        times: the coarse grid from 1 to 0, (K + 1,).
        parts: fine steps of each segment, (K,), each at least 1.
        term: a distance of velocities.
    """

    def loss(net: nn.Module, batch: Batch, step: int, draws: StepRNG) -> dict[str, Tensor]:
        _, z, y = coupling(batch, draws)
        states = list(knots(frozen, z, times, parts, y))
        total = torch.zeros(len(z), device=z.device)
        for (t, s), (x_t, x_s) in zip(pairwise(times), pairwise(states), strict=True):
            v = net(x_t, torch.full_like(total, t), y).float()
            total = total + term.distance(v, (x_s - x_t) / (s - t))
        return {term.name: total / len(parts)}

    return loss


@torch.no_grad()
def knots(
    frozen: Field, z: Tensor, times: Sequence[float], parts: Sequence[int], y: Tensor | None
) -> Iterator[Tensor]:
    """Yields the states (B, *) of fine Euler paths from noise z at the times of the grid."""
    x = z
    yield x
    for (t, s), steps in zip(pairwise(times), parts, strict=True):
        h = (s - t) / steps
        for i in range(steps):
            at = torch.full((len(x),), t + i * h, dtype=x.dtype, device=x.device)
            x = x + h * frozen(x, at, y).float()
        yield x
