"""Distances between a velocity and its target, per sample.

All take tensors (B, *) and return (B,), divided by d, the number of values in a sample, as in
the published runs of RF++ (arXiv 2405.20320; the division is in the code, not in the paper).
"""

from __future__ import annotations

from torch import Tensor

HUBER_C = 0.00054  # times d, not sqrt(d): what the published RF++ runs used


def l2(v: Tensor, target: Tensor) -> Tensor:
    """Mean square ``||v - target||^2 / d``."""
    return (v - target).square().flatten(1).mean(1)


def pseudo_huber(v: Tensor, target: Tensor, c: float = HUBER_C) -> Tensor:
    """``(sqrt(||v - target||^2 + (c d)^2) - c d) / d`` with c = 0.00054."""
    error = (v - target).flatten(1)
    d = error.shape[1]
    return ((error.square().sum(1) + (c * d) ** 2).sqrt() - c * d) / d
