"""Networks that also take an end time: flow maps.

A flow map leads from the state at time t straight to that at an end time r <= t of the same path:

    x_r = x_t - (t - r) u(x_t, t, r),     u(x_t, t, r) = 1 / (t - r) integral_r^t v(x_s, s) ds,

the average velocity of MeanFlow (arXiv 2505.13447), with u(x_t, t, t) = v(x_t, t).  A field has
its end time in its time: ``field(x_t, interval(t, r), y)``, (B, 2), is u, and ``field(x_t, t, y)``
is v, as of any flow.  So whatever wraps a field wraps a flow map.

The network sees t - r by features that are added to those of the time before they are embedded,

    f(c) + W g(t - r),     g = [cos, sin](pi 2^k (t - r)),

with W = 0 at first: with the weights of a flow, u = v whatever the end time.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rfpp_core.model.precond import Conditioned, c_noise, edm_variance, edm_velocity

PLACES = ("fourier", "map_noise")  # names of the time features of the small U-Net and EDM's
OCTAVES = (-2.0, 2.0)  # of g; faster waves would make its derivative large


def interval(t: Tensor, r: Tensor) -> Tensor:
    """Time and end time, each (B,), as the time (B, 2) of a flow map."""
    return torch.stack((t, r), dim=1)


def time_and_gap(t: Tensor) -> tuple[Tensor, Tensor]:
    """``(t, t - r)``, each (B,), of times (B, 2); without an end time, (B,), r = t."""
    return (t[:, 0], t[:, 0] - t[:, 1]) if t.ndim == 2 else (t, torch.zeros_like(t))


class TimeFeatures(nn.Module):
    """``f(c) + W g(t - r)``: (B,) or, with t - r in the second column, (B, 2) -> (B, n).

    Args:
        features: f, (B,) -> (B, n).
    """

    def __init__(self, features: nn.Module) -> None:
        super().__init__()
        self.features = features
        n = features(torch.zeros(1)).shape[1]
        self.end = nn.Parameter(torch.zeros(n, n))  # W

    def forward(self, c: Tensor) -> Tensor:
        c, gap = (c[:, 0], c[:, 1]) if c.ndim == 2 else (c, torch.zeros_like(c))
        found: Tensor = self.features(c) + F.linear(
            waves(gap.to(self.end), len(self.end)), self.end
        )
        return found


def waves(gap: Tensor, n: int) -> Tensor:
    """``[cos, sin](pi 2^k gap)``, k spread over ``OCTAVES``: (B,) -> (B, n)."""
    k = torch.linspace(*OCTAVES, n // 2, device=gap.device, dtype=gap.dtype)
    angle = math.pi * gap[:, None] * 2**k
    return torch.cat((angle.cos(), angle.sin()), dim=1)


class FlowMap(Conditioned):
    """``u(x_t (B, C, H, W), interval(t, r) (B, 2), y)``, or ``v(x_t, t (B,), y)``.

    Args:
        model: one of the raw networks; its time features are extended in place.

    Raises:
        ValueError: if it has none under a name that is known here.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self.place = next((name for name in PLACES if hasattr(model, name)), "")
        if not self.place:
            raise ValueError(f"no time features among {', '.join(PLACES)}")
        setattr(model, self.place, TimeFeatures(getattr(model, self.place)))

    def from_flow(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Weights of a flow without end time, under this module's names and with W = 0.

        Those of a flow map are returned as they are.
        """
        at, new = f"model.{self.place}.", f"model.{self.place}.end"
        if new in tensors:
            return dict(tensors)
        moved = {name.replace(at, f"{at}features.", 1) if name.startswith(at) else name: tensor
                 for name, tensor in tensors.items()}  # fmt: skip
        return {**moved, new: torch.zeros_like(self.state_dict()[new])}


class PlainFlowMap(FlowMap):
    """The network's output is u; see :class:`~rfpp_core.model.precond.PlainVelocity`."""

    def forward(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        t, gap = time_and_gap(t)
        out: Tensor = self.model(x, interval(t - 0.5, gap), y)
        return out


class EDMFlowMap(FlowMap):
    """EDM's preconditioning at t, for every end time; see
    :class:`~rfpp_core.model.precond.EDMVelocity`.

    Args:
        model: the raw network F.
        sigma_data: standard deviation of the data, s > 0.
    """

    def __init__(self, model: nn.Module, sigma_data: float = 0.5) -> None:
        super().__init__(model)
        self.sigma_data = sigma_data

    def forward(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        t, gap = time_and_gap(t)
        q = edm_variance(t, x, self.sigma_data)
        raw: Tensor = self.model(x / q.sqrt(), interval(c_noise(t), gap), y)
        return edm_velocity(x, raw, q, t, self.sigma_data)


def takes_end_time(field: object) -> bool:
    """Whether a field is a flow map, by what its wrappers hold as ``field``."""
    return isinstance(_innermost(field), FlowMap)


def lacks_end_time(field: object) -> bool:
    """Whether a field is a network without end time; analytic fields are neither."""
    found = _innermost(field)
    return isinstance(found, Conditioned) and not isinstance(found, FlowMap)


def _innermost(field: object) -> object:
    while (inner := getattr(field, "field", None)) is not None:
        field = inner
    return field
