"""Layers of EDM's networks, named and ordered as in their published weights.

Sources: EDM, arXiv 2206.00364, app. F; NCSN++, arXiv 2011.13456; ADM, arXiv 2105.05233.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Resample = Literal["up", "down", "fused_down"]


@dataclass(frozen=True)
class Init:
    """Distribution of initial weights, uniform or ``normal``, with mean 0.

    Its variance is 2 / (fan_in + fan_out) ("xavier") or 1 / fan_in ("kaiming").  Weights and
    biases are such draws times ``weight`` and ``bias``; with ``bias`` 0 biases start at zero.
    """

    mode: Literal["xavier", "kaiming"]
    weight: float = 1.0
    bias: float = 0.0
    normal: bool = False

    def fill(self, weight: Tensor, bias: Tensor | None) -> None:
        """Draws a weight (out, in, ...) and its bias (out,) in place."""
        fan_out, fan_in = (n * math.prod(weight.shape[2:]) for n in weight.shape[:2])
        std = math.sqrt(2 / (fan_in + fan_out) if self.mode == "xavier" else 1 / fan_in)
        for tensor, gain in ((weight, self.weight), (bias, self.bias)):
            bound = math.sqrt(3) * gain * std
            if tensor is not None and self.normal:
                nn.init.normal_(tensor, std=gain * std)
            elif tensor is not None:
                nn.init.uniform_(tensor, -bound, bound)


class Linear(nn.Module):
    """``x W^T + b``: (..., in) -> (..., out)."""

    def __init__(self, c_in: int, c_out: int, init: Init, bias: bool = True) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(c_out, c_in))
        self.bias = nn.Parameter(torch.empty(c_out)) if bias else None
        init.fill(self.weight, self.bias)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias)


class Conv2d(nn.Module):
    """Convolution with an optional resampling by 2: (B, C_in, H, W) -> (B, C_out, H', W').

    Args:
        c_in, c_out: channels in and out.
        kernel: side of the kernel, odd; 0 resamples only, without weight and bias.
        init: distribution of the initial weights.
        resample: filter and double ("up") or halve ("down") before the convolution, or halve
            after it ("fused_down": the image is padded with zeros once, before the convolution,
            and the filter adds no zeros of its own).
        taps: the filter is their outer product, normalised to sum 1.
    """

    resample_filter: Tensor | None

    def __init__(
        self,
        c_in: int,
        c_out: int,
        kernel: int,
        init: Init,
        resample: Resample | None = None,
        taps: Sequence[float] = (1.0, 1.0),
    ) -> None:
        super().__init__()
        self.kernel, self.resample, self.margin = kernel, resample, (len(taps) - 1) // 2
        self.weight = nn.Parameter(torch.empty(c_out, c_in, kernel, kernel)) if kernel else None
        self.bias = nn.Parameter(torch.empty(c_out)) if kernel else None
        if self.weight is not None:
            init.fill(self.weight, self.bias)
        f = torch.tensor(taps, dtype=torch.float32)
        window = (f[:, None] * f / f.sum() ** 2)[None, None] if resample else None
        self.register_buffer("resample_filter", window)

    def forward(self, x: Tensor) -> Tensor:
        if self.resample == "up":
            x = double(x, self._taps(x))
        elif self.resample == "down":
            x = self._halve(x, self.margin)
        if self.weight is None or self.bias is None:
            return x
        if self.resample != "fused_down":
            return F.conv2d(x, self.weight, self.bias, padding=self.kernel // 2)
        x = self._halve(F.conv2d(x, self.weight, padding=self.kernel // 2 + self.margin), 0)
        return x + self.bias.to(x.dtype)[:, None, None]

    def _halve(self, x: Tensor, padding: int) -> Tensor:
        assert self.resample_filter is not None
        window = self.resample_filter.to(x.dtype).repeat(x.shape[1], 1, 1, 1)
        return F.conv2d(x, window, stride=2, padding=padding, groups=x.shape[1])

    def _taps(self, x: Tensor) -> Tensor:
        """The filter (n,) whose outer product with itself is ``resample_filter``."""
        assert self.resample_filter is not None
        return self.resample_filter[0, 0].sum(0).to(x.dtype)


def double(x: Tensor, taps: Tensor) -> Tensor:
    """Upsamples by 2: a zero after every pixel, then a filter of 2 taps (n,) along each side.

    (B, C, H, W) -> (B, C, 2 H, 2 W).  The zeros are never made: each half of the pixels takes
    every other tap.  A transposed convolution gives the same, but on CUDA it is not
    deterministic, and compiled for channels last it may fail or return its gradient in another
    memory layout.
    """
    margin = (len(taps) - 1) // 2
    x = x.permute(0, 2, 3, 1)  # interleaving pixels then keeps channels last
    for dim in (1, 2):
        size, padded = x.shape[dim], _padded(x, dim, margin)
        halves: list[Tensor] = []
        for odd in (0, 1):  # pixel 2 j + odd sees tap k of pixel j + (odd + margin - k) / 2
            seen = range((odd + margin) % 2, len(taps), 2)
            slices = [padded.narrow(dim, margin + (odd + margin - k) // 2, size) for k in seen]
            halves.append(_weighted(2 * taps[seen.start :: 2], slices))
        x = torch.stack(halves, dim + 1).flatten(dim, dim + 1)
    return x.permute(0, 3, 1, 2)


def _padded(x: Tensor, dim: int, n: int) -> Tensor:
    """Zeros before and after one dimension of a tensor of four."""
    return F.pad(x, (0, 0) * (3 - dim) + (n, n)) if n else x


def _weighted(weights: Tensor, slices: Sequence[Tensor]) -> Tensor:
    total = weights[0] * slices[0]
    for weight, part in zip(weights[1:].unbind(), slices[1:], strict=True):
        total = total + weight * part
    return total


def group_norm(channels: int, eps: float) -> nn.GroupNorm:
    """Group normalisation in at most 32 groups of at least 4 channels."""
    return nn.GroupNorm(max(1, min(32, channels // 4)), channels, eps=eps)


class PositionalEmbedding(nn.Module):
    """``[cos, sin](c f_k)``, ``f_k = 10000^(-k / (n/2 - endpoint))``: (B,) -> (B, n).

    With ``endpoint`` the last frequency is 1/10000 itself.
    """

    def __init__(self, n: int, endpoint: bool = False) -> None:
        super().__init__()
        self.n, self.endpoint = n, endpoint

    def forward(self, c: Tensor) -> Tensor:
        c = _wide(c)
        k = torch.arange(self.n // 2, device=c.device, dtype=c.dtype)
        angle = c[:, None] * 10000 ** (-k / (self.n // 2 - self.endpoint))
        return torch.cat((angle.cos(), angle.sin()), dim=1)


class FourierEmbedding(nn.Module):
    """``[cos, sin](2 pi f c)`` with fixed frequencies ``f ~ scale N(0, 1)``: (B,) -> (B, n)."""

    freqs: Tensor

    def __init__(self, n: int, scale: float = 16.0) -> None:
        super().__init__()
        self.register_buffer("freqs", scale * torch.randn(n // 2))

    def forward(self, c: Tensor) -> Tensor:
        c = _wide(c)
        angle = c[:, None] * (2 * math.pi * self.freqs.to(c.dtype))
        return torch.cat((angle.cos(), angle.sin()), dim=1)


def one_hot(y: Tensor | None, classes: int, like: Tensor) -> Tensor:
    """Labels (B,) -> (B, classes) in the dtype of ``like`` (B, ...); zeros for -1 and None."""
    if y is None:
        return like.new_zeros(like.shape[0], classes)
    return F.one_hot(torch.where(y < 0, classes, y), classes + 1)[:, :-1].to(like.dtype)


def unused(layer: Linear) -> Linear:
    """For ``map_augment``, whose input is always zero here: its weight is stored, not used.

    It takes no gradient, or DistributedDataParallel would wait for one.
    """
    layer.requires_grad_(False)
    return layer


def _wide(c: Tensor) -> Tensor:
    """At least float32: lower precision would blur large angles."""
    return c.to(torch.promote_types(c.dtype, torch.float32))
