"""Features of uint8 images by any feature net, in parts of bounded memory."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from rfpp_core.images.pixels import to_float

Extract = Callable[[Tensor], Tensor]  # uint8 images (B, C, H, W) -> features (B, D)
PIXELS_SIDE = 8


def pooled_pixels(images: Tensor) -> Tensor:
    """The images themselves, averaged down to at most 8x8: (B, C, H, W) uint8 -> (B, D)."""
    x = to_float(images)
    side = min(PIXELS_SIDE, x.shape[-1])
    return F.adaptive_avg_pool2d(x, side).flatten(1)


@torch.inference_mode()
def extract(features: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    """Features float32 (N, D), on the CPU, of uint8 images (N, C, H, W) in parts of bounded
    memory."""
    parts = [
        features(part).float().cpu() for part in torch.split(images, part_of(images.shape[2:]))
    ]
    return torch.cat(parts)


def part_of(sides: tuple[int, ...]) -> int:
    """How many images of these sides are a part: 1,000 of 8x8, and fewer of larger ones."""
    return max(20, 64_000 // math.prod(sides))
