"""Diffusion losses: the distance of flow matching between other predictions than velocities.

For a state x_t of the straight path, a velocity v says as much as the noise ``x_t + (1 - t) v`` or
the image ``x_t - t v``.  So the distance of predicted and true noise is that of ``(1 - t) v``, and
of images that of ``t v``: another weight of the times, whatever the network itself predicts
(Rectified Diffusion, arXiv 2410.07303; the loss of DDPM, arXiv 2006.11239, is l2 of the noise).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from rfpp_core.choices import Choices
from rfpp_core.images.loader import Batch
from rfpp_core.model.path import like
from rfpp_core.rng import StepRNG
from rfpp_core.training.couplings import Coupling
from rfpp_core.training.losses import LossFunction, Term, flow_matching


def of_noise(t: Tensor) -> Tensor:
    """``|d eps| / |dv| = 1 - t``."""
    return 1 - t


def of_images(t: Tensor) -> Tensor:
    """``|dx| / |dv| = t``."""
    return t


SCALES: Choices[Callable[[Tensor], Tensor]] = {  # by loss.space
    "v": torch.ones_like,
    "eps": of_noise,
    "x": of_images,
}


def diffusion(
    coupling: Coupling,
    times: Callable[[StepRNG], Tensor],
    term: Term,
    scale: Callable[[Tensor], Tensor],
    label_dropout: float = 0.0,
) -> LossFunction:
    """``distance(s(t) net(x_t, t, y), s(t) (z - x))`` at a random time for each pair.

    Args:
        coupling: gives images, noise and labels (x, z, y) of a batch.
        times: draws the training times (B,) of a step.
        term: a distance, of a difference alone.
        scale: s of times (B,), an entry of ``SCALES``.
        label_dropout: share of labels replaced by -1, "no label", in [0, 1].
    """

    def loss(net: nn.Module, batch: Batch, step: int, draws: StepRNG) -> dict[str, Tensor]:
        t = times(draws)

        def scaled(v: Tensor, target: Tensor) -> Tensor:
            s = like(scale(t).to(v), v)
            return term.distance(s * v, s * target)

        matching = flow_matching(coupling, lambda _: t, Term(term.name, scaled), label_dropout)
        return matching(net, batch, step, draws)

    return loss
