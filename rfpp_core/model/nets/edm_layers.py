"""Layers of EDM's networks, named and ordered as in their published weights.

Sources: EDM, arXiv 2206.00364, app. F; NCSN++, arXiv 2011.13456; ADM, arXiv 2105.05233.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Resample = Literal["up", "down", "fused_down"]


@dataclass(frozen=True)
class Init:
    """Law of initial weights: mean 0, variance 2 / (fan_in + fan_out) (xavier) or 1 / fan_in.

    ``weight`` and ``bias`` scale draws of that one law; a zero ``bias`` means biases of zero.
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
        init: law of the weights.
        resample: filter and double ("up") or halve ("down") before the convolution, or halve
            after it ("fused_down", whose filter sees past the border not zeros, but the
            convolution of the zero-padded image).
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
    """Puts a zero after every pixel and filters both sides by 2 taps (n,): (B, C, H, W) ->
    (B, C, 2 H, 2 W), each half of the pixels by every other tap.

    A transposed convolution does the same, but on CUDA it is not deterministic, and compiled for
    channels last it may fail or return its gradient in another layout.
    """
    margin = (len(taps) - 1) // 2
    x = x.permute(0, 2, 3, 1)  # so that pixels are interleaved without leaving channels last
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
    """For ``map_augment``: its input is always zero here, so its weight is stored, not used.

    Without a gradient to expect, DistributedDataParallel does not wait for one.
    """
    layer.requires_grad_(False)
    return layer


@dataclass(frozen=True)
class BlockStyle:
    """What sets the residual blocks of one network apart from those of another.

    Attributes:
        emb: width of the embedding.
        dropout: probability, before the last convolution.
        init: law of all weights but those below.
        last: law of the last convolution of a branch; (nearly) zero makes it the identity.
        qkv: law of the projection to queries, keys and values.
        eps: epsilon of the group normalisations.
        skip_scale: factor on each sum of a branch and its skip.
        adaptive: the embedding scales and shifts after the second norm, or adds before it.
        resample_proj: the skip of a resampling block has a 1x1 convolution at equal widths too.
        head: channels of an attention head; None for one head.
        taps: resampling filter.
    """

    emb: int
    dropout: float
    init: Init
    last: Init
    qkv: Init
    eps: float
    skip_scale: float
    adaptive: bool
    resample_proj: bool
    head: int | None
    taps: tuple[float, ...]


class UNetBlock(nn.Module):
    """Residual block, then attention if any: (B, C_in, H, W), (B, E) -> (B, C_out, H', W')."""

    def __init__(
        self,
        c_in: int,
        c_out: int,
        style: BlockStyle,
        resample: Resample | None = None,
        attention: bool = False,
    ) -> None:
        super().__init__()
        self.c_in, self.adaptive, self.scale = c_in, style.adaptive, style.skip_scale
        self.norm0 = group_norm(c_in, style.eps)
        self.conv0 = Conv2d(c_in, c_out, 3, style.init, resample, style.taps)
        self.affine = Linear(style.emb, c_out * (2 if style.adaptive else 1), style.init)
        self.norm1 = group_norm(c_out, style.eps)
        self.dropout = nn.Dropout(style.dropout)
        self.conv1 = Conv2d(c_out, c_out, 3, style.last)
        kernel = int(c_in != c_out or (resample is not None and style.resample_proj))
        self.skip: nn.Module = nn.Identity()
        if kernel or resample:
            self.skip = Conv2d(c_in, c_out, kernel, style.init, resample, style.taps)
        self.heads = 0
        if attention:
            self.heads = max(1, c_out // style.head) if style.head else 1
            if c_out % self.heads:
                raise ValueError(f"{c_out} channels do not split into {self.heads} heads")
            self.norm2 = group_norm(c_out, style.eps)
            self.qkv = Conv2d(c_out, 3 * c_out, 1, style.qkv)
            self.proj = Conv2d(c_out, c_out, 1, style.last)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        h = self.conv0(F.silu(self.norm0(x)))
        e = self.affine(emb)[:, :, None, None]
        if self.adaptive:
            scale, shift = e.chunk(2, dim=1)
            h = F.silu(torch.addcmul(shift, self.norm1(h), scale + 1))
        else:
            h = F.silu(self.norm1(h + e))
        x = (self.skip(x) + self.conv1(self.dropout(h))) * self.scale
        return (x + self.proj(self._attend(x))) * self.scale if self.heads else x

    def _attend(self, x: Tensor) -> Tensor:
        """Softmax attention over pixels: (B, C, H, W) -> same; channel 3 (head C/heads + c) + i
        of ``qkv`` is channel c of a head's query, key or value for i = 0, 1, 2.
        """
        b, c, h, w = x.shape
        qkv = self.qkv(self.norm2(x)).reshape(b, self.heads, c // self.heads, 3, h * w)
        # contiguous: fused attention kernels want the channels of a head side by side
        q, k, v = qkv.permute(3, 0, 1, 4, 2).contiguous()
        out = F.scaled_dot_product_attention(q, k, v)
        return out.transpose(-1, -2).reshape(b, c, h, w)


def levels(image_size: int, channels: int, multipliers: Sequence[int]) -> list[tuple[int, int]]:
    """Side in pixels and width of each level, finest first.

    Raises:
        ValueError: if the image does not halve often enough.
    """
    if image_size % 2 ** (len(multipliers) - 1):
        raise ValueError(f"{image_size} pixels do not halve {len(multipliers) - 1} times")
    return [(image_size >> i, channels * m) for i, m in enumerate(multipliers)]


def encoder(
    channels: tuple[int, int],
    sizes: Sequence[tuple[int, int]],
    blocks: int,
    style: BlockStyle,
    attention: Sequence[int],
    residual: bool,
) -> tuple[nn.ModuleDict, list[int]]:
    """Layers down to the coarsest level and the width of the state after each.

    Args:
        channels: of the image and of the first state.
        sizes: see :func:`levels`.
        blocks: residual blocks a level.
        style: of the blocks.
        attention: sides of the levels whose blocks attend.
        residual: whether a pyramid of the image joins each coarser level.
    """
    (aux, width), enc = channels, nn.ModuleDict()
    skips = [width]
    for i, (size, c_out) in enumerate(sizes):
        name = f"{size}x{size}_"
        if i == 0:
            enc[name + "conv"] = Conv2d(aux, width, 3, style.init)
        else:
            enc[name + "down"] = UNetBlock(width, width, style, "down")
            skips.append(width)
            if residual:
                pyramid = Conv2d(aux, width, 3, style.init, "fused_down", style.taps)
                enc[name + "aux_residual"], aux = pyramid, width
        for k in range(blocks):
            enc[f"{name}block{k}"] = UNetBlock(width, c_out, style, attention=size in attention)
            width = c_out
            skips.append(width)
    return enc, skips


def decoder(
    sizes: Sequence[tuple[int, int]],
    skips: Sequence[int],
    blocks: int,
    style: BlockStyle,
    attends: Callable[[int, int], bool],
) -> nn.ModuleDict:
    """Layers up to the finest level; ``attends(size, k)`` tells whether block k there does."""
    dec, left, width = nn.ModuleDict(), list(skips), skips[-1]
    for i, (size, c_out) in enumerate(reversed(sizes)):
        name = f"{size}x{size}_"
        if i == 0:
            dec[name + "in0"] = UNetBlock(width, width, style, attention=True)
            dec[name + "in1"] = UNetBlock(width, width, style)
        else:
            dec[name + "up"] = UNetBlock(width, width, style, "up")
        for k in range(blocks + 1):
            c_in, attention = width + left.pop(), attends(size, k)
            dec[f"{name}block{k}"] = UNetBlock(c_in, c_out, style, attention=attention)
            width = c_out
    return dec


def encode(enc: nn.ModuleDict, x: Tensor, emb: Tensor) -> list[Tensor]:
    """States after the layers of :func:`encoder`; the decoder starts from the last."""
    states: list[Tensor] = []
    image = x
    for name, layer in enc.items():
        if name.endswith("aux_residual"):  # joins the state before it, and replaces it
            x = image = states[-1] = (x + layer(image)) * math.sqrt(0.5)
        else:
            x = layer(x, emb) if isinstance(layer, UNetBlock) else layer(x)
            states.append(x)
    return states


def decode(dec: nn.ModuleDict, states: list[Tensor], emb: Tensor) -> Tensor:
    """State after the blocks of :func:`decoder`, which use up ``states``."""
    x = states[-1]
    for layer in dec.values():
        if isinstance(layer, UNetBlock):
            if layer.c_in > x.shape[1]:
                x = torch.cat((x, states.pop()), dim=1)
            x = layer(x, emb)
    return x


def _wide(c: Tensor) -> Tensor:
    """At least float32: lower precision would blur large angles."""
    return c.to(torch.promote_types(c.dtype, torch.float32))
