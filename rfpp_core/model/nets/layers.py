"""Layers of the small U-Net."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rfpp_core.model.nets.group_norm import GroupNorm


class Fourier(nn.Module):
    """Features ``[cos, sin](2 pi 2^k c)``, k spread over ``octaves``: (B,) -> (B, n)."""

    def __init__(self, n: int, octaves: tuple[float, float] = (-3.0, 4.0)) -> None:
        super().__init__()
        self.n, self.octaves = n, octaves

    def forward(self, c: Tensor) -> Tensor:
        low, high = self.octaves
        k = torch.linspace(low, high, self.n // 2, device=c.device, dtype=torch.float32)
        angle = 2 * math.pi * c.float()[:, None] * 2**k  # float32, or large angles would blur
        return torch.cat((angle.cos(), angle.sin()), dim=1).to(c.dtype)


class Attention(nn.Module):
    """Self-attention over pixels with a zero-initialised output: (B, C, H, W) -> same."""

    def __init__(self, channels: int, head: int = 64) -> None:
        super().__init__()
        self.heads = max(h for h in range(1, max(2, channels // head + 1)) if channels % h == 0)
        self.norm = norm(channels)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.proj = zeroed(nn.Conv2d(channels, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        qkv = self.qkv(self.norm(x)).reshape(b, 3, self.heads, c // self.heads, h * w)
        q, k, v = qkv.transpose(-1, -2).unbind(1)  # (B, heads, HW, C / heads)
        out = F.scaled_dot_product_attention(q, k, v)
        mixed: Tensor = self.proj(out.transpose(-1, -2).reshape(b, c, h, w))
        return x + mixed


def norm(channels: int) -> GroupNorm:
    """Group normalisation in at most 32 groups of at least 4 channels."""
    return GroupNorm(math.gcd(32, channels // 4), channels)


def zeroed(layer: nn.Conv2d) -> nn.Conv2d:
    """Sets a layer's parameters to zero, so that a residual block starts as the identity."""
    nn.init.zeros_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer
