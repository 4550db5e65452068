"""Training a flow map: MeanFlow, consistency models and flow-map distillation in one loss.

The average velocity u between t and an end time r <= t (``model.flow_map``) satisfies, with r
fixed and the derivative taken along the path, the MeanFlow identity (arXiv 2505.13447)

    u = v - (t - r) du/dt,     du/dt = v . grad_x u + d_t u,

which follows from d/dt of (t - r) u = integral_r^t v ds.  So u is trained towards its right side,
computed with the weights of the moment and held fixed (sg), per value of an image:

    loss = w e,     e = mean (u(x_t, t, r) - sg(v - (t - r) du/dt))^2,     w = sg(1 / (e + c)^p).

    v = z - x           of independent noise: MeanFlow; of pairs: distillation of their chords
    v = teacher(x_t, t) flow-map distillation, the Eulerian loss of Align Your Flow (2506.14603)
    r = 0               a consistency model (2303.01469) in continuous time: x_t - t u is the image
    r = t               flow matching

du/dt is a forward-mode derivative, or a difference.  It is computed in float32 whatever the
precision of the training, without gradient, and only where r < t.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from rfpp_core.choices import Choices
from rfpp_core.images.loader import Batch
from rfpp_core.model.flow_map import interval
from rfpp_core.model.path import Field, interpolate, like, velocity
from rfpp_core.rng import StepRNG
from rfpp_core.training.couplings import Coupling
from rfpp_core.training.losses import LossFunction, hidden, l2

Times = Callable[[StepRNG], Tensor]  # draws (B,) times of a step
# (u, x_t, t, r, v) -> du/dt (B, *), where u takes a state (B, *) and times (B, 2)
Derivative = Callable[[Callable[[Tensor, Tensor], Tensor], Tensor, Tensor, Tensor, Tensor], Tensor]


def drawn(t: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    """Two draws, the later as time and the earlier as end time, (B,) each: any step."""
    return torch.maximum(t, other), torch.minimum(t, other)


def zero(t: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    """The end time 0: from everywhere to the data, a consistency model."""
    return t, torch.zeros_like(t)


ENDS: Choices[Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]] = {"drawn": drawn, "zero": zero}


def intervals(
    times: Times,
    others: Times,
    rule: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]],
    same: float,
) -> Callable[[StepRNG], tuple[Tensor, Tensor]]:
    """Draws times and end times (B,) of a step, r <= t.

    Args:
        times: of the training; a share ``same`` of the samples has r = t, which they are.
        others: second draws.
        rule: an entry of ``ENDS``, for the other samples.
        same: in [0, 1].
    """

    def draw(draws: StepRNG) -> tuple[Tensor, Tensor]:
        t = times(draws)
        late, early = rule(t, others(draws))
        held = draws.uniform("same time") < same
        return torch.where(held, t, late), torch.where(held, t, early)

    return draw


def jvp(
    u: Callable[[Tensor, Tensor], Tensor], x: Tensor, t: Tensor, r: Tensor, v: Tensor
) -> Tensor:
    """du/dt by forward-mode differentiation along (v, 1), exact up to rounding."""
    with sdpa_kernel(SDPBackend.MATH), warnings.catch_warnings():  # others have no forward mode
        warnings.simplefilter("ignore", FutureWarning)  # torch's, of what it imports for this
        along: Any = torch.func.jvp(
            lambda x, t: u(x, interval(t, r)), (x, t), (v, torch.ones_like(t))
        )
    found: Tensor = along[1]
    return found


def difference(
    u: Callable[[Tensor, Tensor], Tensor],
    x: Tensor,
    t: Tensor,
    r: Tensor,
    v: Tensor,
    step: float,
) -> Tensor:
    """du/dt by the difference between ``t + step`` and ``t - step``, cut to [r, 1].

    The states there are those of the line along v.  The error is of order 2 in the step, and of
    order 1 where the interval is cut.
    """
    b, a = (t + step).clamp(max=1), torch.maximum(t - step, r)
    rise = u(x + like(b - t, x) * v, interval(b, r)) - u(x + like(a - t, x) * v, interval(a, r))
    return rise / like(b - a, x)


DERIVATIVES: Choices[Callable[[float], Derivative]] = {  # by the step of a difference
    "jvp": lambda step: jvp,
    "difference": lambda step: partial(difference, step=step),
}


class Weight(NamedTuple):
    """The adaptive weight ``1 / (e + c)^p`` of a sample's error e; p = 0 weighs all alike."""

    p: float
    c: float

    def __call__(self, error: Tensor) -> Tensor:
        return (error.detach() + self.c) ** -self.p


def flow_map(
    coupling: Coupling,
    intervals: Callable[[StepRNG], tuple[Tensor, Tensor]],
    derivative: Derivative,
    weight: Weight,
    label_dropout: float = 0.0,
    teacher: Field | None = None,
) -> LossFunction:
    """The loss above.  Its terms are the shares of samples with r = t and with r < t.

    Args:
        coupling: gives images, noise and labels (x, z, y) of a batch.
        intervals: draws times and end times of a step.
        derivative: du/dt.
        weight: of a sample, by its error.
        label_dropout: share of labels replaced by -1, "no label", in [0, 1].
        teacher: its velocity at x_t instead of z - x.
    """

    def loss(net: nn.Module, batch: Batch, step: int, draws: StepRNG) -> dict[str, Tensor]:
        x, z, y = coupling(batch, draws)
        y = hidden(y, label_dropout, draws)
        t, r = (time.to(x.dtype) for time in intervals(draws))
        x_t = interpolate(x, z, t)
        with torch.no_grad():
            v = velocity(x, z) if teacher is None else teacher(x_t, t, y).to(x.dtype)
            aim = target(bare(net), derivative, x_t, t, r, v, y)
        error = l2(net(x_t, interval(t, r), y).to(x.dtype), aim)
        term, nothing = weight(error) * error, torch.zeros_like(error)
        return {
            "velocity": torch.where(r == t, term, nothing),
            "map": torch.where(r == t, nothing, term),
        }

    return loss


def target(
    net: Callable[..., Tensor],
    derivative: Derivative,
    x: Tensor,
    t: Tensor,
    r: Tensor,
    v: Tensor,
    y: Tensor | None,
) -> Tensor:
    """``v - (t - r) du/dt`` (B, *); where r = t it is v, and costs nothing."""
    apart = (r < t).nonzero().flatten()
    if not len(apart):
        return v
    x, t, r = x[apart], t[apart], r[apart]
    label = None if y is None else y[apart]
    # not in half precision; and autocast would keep the weights it converts here for the
    # regression, where they would take no gradient
    with torch.autocast(x.device.type, enabled=False):
        change = derivative(lambda x, times: net(x, times, label), x, t, r, v[apart])
    return v.index_add(0, apart, -like(t - r, x) * change)


def bare(net: Any) -> Callable[..., Tensor]:
    """The module itself, without DistributedDataParallel and torch.compile, through whose hooks
    forward-mode derivatives do not go."""
    for inner in ("module", "_orig_mod"):
        net = getattr(net, inner, net)
    found: Callable[..., Tensor] = net
    return found
