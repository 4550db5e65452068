"""Exponential moving average (EMA) of parameters: two functions on lists of tensors."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def decay_at(step: int, decay: float, ramp: bool) -> float:
    """Decay of update ``step`` (from 0): ``min(decay, (1 + step) / (10 + step))`` with a ramp."""
    return min(decay, (1 + step) / (10 + step)) if ramp else decay


@torch.no_grad()
def update(average: Sequence[Tensor], params: Sequence[Tensor], decay: float) -> None:
    """In place: ``average <- decay average + (1 - decay) params``."""
    torch._foreach_lerp_(list(average), [p.detach() for p in params], 1 - decay)
