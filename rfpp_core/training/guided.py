"""Flow-guided distillation of a flow into one step (SlimFlow, arXiv 2407.12718).

A one-step student v' starts from the weights of a flow v, learns its pairs, and is held to two
steps of v itself on noise that is fresh at every update, which no set of pairs exhausts:

    loss = D(z - v'(z, 1), x) + D(z' - v'(z', 1), two_steps(z'))
    two_steps(z') = x_t - t v(x_t, t),   x_t = z' - (1 - t) v(z', 1)

v is frozen, and the target carries no gradient.  As in the published runs, the first of the two
steps is the student's own, which saves an evaluation of v, and t is uniform between 0.2 and 0.8.
The second term is 0 for a student that equals a straight flow: its two steps are its one.

The student sees t = 1 exactly, where x_t is the noise alone; RF's and SlimFlow's runs train at
1 - 1e-3, where the input holds some of the target.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from rfpp_core.images.loader import Batch
from rfpp_core.model.path import Field, x_hat
from rfpp_core.rng import StepRNG
from rfpp_core.training.couplings import Coupling
from rfpp_core.training.losses import Distance, LossFunction, hidden


def flow_guided(
    coupling: Coupling,
    distance: Distance,
    teacher: Field,
    between: tuple[float, float] = (0.2, 0.8),
    own: bool = True,
    label_dropout: float = 0.0,
) -> LossFunction:
    """The two terms of the loss, by name: ``distil`` and ``two_step``.

    Args:
        coupling: gives the teacher's pairs and their labels (x, z, y) of a batch.
        distance: D of images (B, C, H, W).
        teacher: v, frozen.
        between: least and greatest t of the two steps, in [0, 1].
        own: whether the first of the two steps is the student's own.
        label_dropout: share of labels replaced by -1, "no label", in [0, 1].
    """
    low, high = between

    def loss(net: nn.Module, batch: Batch, step: int, draws: StepRNG) -> dict[str, Tensor]:
        x, z, y = coupling(batch, draws)
        y = hidden(y, label_dropout, draws)
        fresh = draws.normal("two-step noise", tuple(x.shape[1:]))
        t = (low + (high - low) * draws.uniform("two-step t")).to(x.dtype)
        noise, one = torch.cat((z, fresh)), t.new_ones(2 * len(t))
        # in one call: DistributedDataParallel expects one before a backward pass
        v = net(noise, one, None if y is None else torch.cat((y, y))).float()
        of_pairs, of_fresh = x_hat(noise, v, one).chunk(2)
        first = v.detach().chunk(2)[1] if own else None
        target = two_steps(teacher, fresh, t, y, first)
        return {"distil": distance(of_pairs, x), "two_step": distance(of_fresh, target)}

    return loss


@torch.no_grad()
def two_steps(
    field: Field, z: Tensor, t: Tensor, y: Tensor | None = None, first: Tensor | None = None
) -> Tensor:
    """The image (B, *) of noise z (B, *) by Euler's rule on the times 1, t (B,) and 0.

    Args:
        field: the velocity field.
        z: noise.
        t: time between the two steps, in [0, 1].
        y: labels (B,) or None.
        first: velocity (B, *) of the first step, in the place of the field's.
    """
    v = field(z, torch.ones_like(t), y).float() if first is None else first
    x_t = x_hat(z, v, 1 - t)
    return x_hat(x_t, field(x_t, t, y).float(), t)
