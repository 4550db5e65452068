"""The one rounding between floats in [-1, 1] and 8-bit pixels.

``x = q / 127.5 - 1`` and back by ``q = floor(127.5 x + 128)``, clipped: the nearest grey level.
"""

from __future__ import annotations

import torch
from torch import Tensor


def to_uint8(x: Tensor) -> Tensor:
    """[-1, 1] float -> uint8 by rounding to the nearest grey level; clips."""
    return (x * 127.5 + 128).clamp(0, 255).to(torch.uint8)


def to_float(q: Tensor) -> Tensor:
    """uint8 -> float32 in [-1, 1]."""
    return q.to(torch.float32) / 127.5 - 1
