"""Distributions of the training time t, as inverse CDFs of a uniform draw u in (0, 1).

The U-shape of RF++ (arXiv 2405.20320, sec. 4.1; density a cosh(a (t - 1/2)) / (2 sinh(a / 2)))
is that of their code and figure: ``t = 1/2 + asinh((2u - 1) sinh(a / 2)) / a``.  The density
printed in the paper, exp(at) + exp(-at), is not U-shaped on [0, 1].

All take and return float tensors (B,).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from rfpp_core.model.path import T_EPS


def u_shape(u: Tensor, a: float = 4.0) -> Tensor:
    """Symmetric about 1/2 with most mass at both ends; ``a > 0``, and a -> 0 gives uniform."""
    return 0.5 + torch.asinh((2 * u - 1) * math.sinh(a / 2)) / a


def uniform(u: Tensor) -> Tensor:
    """The uniform distribution of the first rectified flows (Liu et al., arXiv 2209.03003)."""
    return u


def logit_normal(u: Tensor, mean: float = 0.0, std: float = 1.0) -> Tensor:
    """``t = sigmoid(mean + std N(0, 1))`` (Esser et al., arXiv 2403.03206, sec. 3.1)."""
    return torch.sigmoid(mean + std * torch.special.ndtri(u))


def fixed(u: Tensor, t: float = 1.0) -> Tensor:
    """Always ``t``; at t = 1 a training on pairs is plain regression of the image."""
    return torch.full_like(u, t)


def grid(u: Tensor, k: int) -> Tensor:
    """Uniform on 1/k, 2/k, ..., 1: the times of k Euler steps, for distillation into them."""
    return torch.ceil(u * k) / k


def with_atom(u: Tensor, inverse: Callable[[Tensor], Tensor], p: float) -> Tensor:
    """1 exactly with probability ``p`` in (0, 1], otherwise ``inverse`` of a uniform draw.

    Every path begins at t = 1, where x_t is the noise alone: what is learned there is the image
    of a single step, which the other times then refine.
    """
    rest = inverse(((u - p) / (1 - p)).clamp(min=0)) if p < 1 else u
    return torch.where(u < p, torch.ones_like(u), rest)


def inside(t: Tensor) -> Tensor:
    """Maps [0, 1] affinely onto [1e-5, 1 - 1e-5], the training times of RF++ (app. E)."""
    return T_EPS + (1 - 2 * T_EPS) * t
