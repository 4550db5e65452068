"""The U-Net that EDM's networks share: its shape, its residual blocks, its encoder and decoder.

Weights are named and ordered as in the published checkpoints.  Sources: EDM, arXiv 2206.00364,
app. F; NCSN++, arXiv 2011.13456; ADM, arXiv 2105.05233.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rfpp_core.model.nets.edm_layers import Conv2d, Init, Linear, Resample, group_norm


@dataclass(frozen=True)
class UNetShape:
    """The size of a network, whichever of EDM's it is.

    Attributes:
        image_size: side of the square images in pixels; it is part of the names of the weights.
        image_channels: channels C of the images.
        channels: base width; each level has a multiple of it, the embedding 4 times as many.
        multipliers: width of each level as a multiple of ``channels``, finest level first.  The
            image is halved between levels.
        blocks: residual blocks of a level in the encoder; the decoder has one more.
        attention_resolutions: sides in pixels of the levels with attention.
        classes: number of labels, 0 for none; label -1 (or None) means "no label".
        augment: length of EDM's augmentation vector, 0 for none.  Images are never augmented
            here, so it is zero: the weights exist, as in the published checkpoints, unused.
        dropout: dropout probability in [0, 1).
    """

    image_size: int
    image_channels: int
    channels: int
    multipliers: tuple[int, ...]
    blocks: int
    attention_resolutions: tuple[int, ...]
    classes: int = 0
    augment: int = 0
    dropout: float = 0.0

    @property
    def levels(self) -> list[tuple[int, int]]:
        """Side in pixels and width of each level, finest first.

        Raises:
            ValueError: if the image does not halve often enough.
        """
        halvings = len(self.multipliers) - 1
        if self.image_size % 2**halvings:
            raise ValueError(f"{self.image_size} pixels do not halve {halvings} times")
        return [(self.image_size >> i, self.channels * m) for i, m in enumerate(self.multipliers)]


@dataclass(frozen=True)
class BlockStyle:
    """How the residual blocks of one network differ from those of another.

    Attributes:
        emb: width of the embedding.
        dropout: probability, before the last convolution.
        init: distribution of all initial weights but the next two.
        last: that of the last convolution of a branch; (nearly) zero makes it the identity.
        qkv: that of the projection to queries, keys and values.
        eps: epsilon of the group normalisations.
        skip_scale: factor on each sum of a branch and its skip.
        adaptive: True: the embedding scales and shifts after the second normalisation; False: it
            is added before.
        resample_proj: whether the skip of a resampling block has a 1x1 convolution even where
            the width stays.
        head: channels of an attention head; None for a single head.
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
    """Residual block, then attention if any: (B, C_in, H, W), (B, E) -> (B, C_out, H', W').

    Raises:
        ValueError: if the width does not split into attention heads.
    """

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
        """Softmax attention over pixels, (B, C, H, W) -> same.

        Channel ``3 (head C/heads + c) + i`` of ``qkv`` is channel c of a head's query, key or
        value for i = 0, 1, 2.
        """
        b, c, h, w = x.shape
        qkv = self.qkv(self.norm2(x)).reshape(b, self.heads, c // self.heads, 3, h * w)
        # contiguous: fused attention kernels want the channels of a head side by side
        q, k, v = qkv.permute(3, 0, 1, 4, 2).contiguous()
        out = F.scaled_dot_product_attention(q, k, v)
        return out.transpose(-1, -2).reshape(b, c, h, w)


def encoder(
    shape: UNetShape, width: int, style: BlockStyle, residual: bool
) -> tuple[nn.ModuleDict, list[int]]:
    """The layers of the encoder, and the width of the state after each of them.

    Args:
        shape: of the network.
        width: channels of the first state.
        style: of the blocks.
        residual: whether an image pyramid is added to the state at each coarser level.
    """
    aux, enc, skips = shape.image_channels, nn.ModuleDict(), [width]
    for i, (size, c_out) in enumerate(shape.levels):
        name = f"{size}x{size}_"
        if i == 0:
            enc[name + "conv"] = Conv2d(aux, width, 3, style.init)
        else:
            enc[name + "down"] = UNetBlock(width, width, style, "down")
            skips.append(width)
            if residual:
                pyramid = Conv2d(aux, width, 3, style.init, "fused_down", style.taps)
                enc[name + "aux_residual"], aux = pyramid, width
        for k in range(shape.blocks):
            attention = size in shape.attention_resolutions
            enc[f"{name}block{k}"] = UNetBlock(width, c_out, style, attention=attention)
            width = c_out
            skips.append(width)
    return enc, skips


def decoder(
    shape: UNetShape, skips: Sequence[int], style: BlockStyle, attends: Callable[[int, int], bool]
) -> nn.ModuleDict:
    """The layers of the decoder.

    Args:
        shape: of the network.
        skips: widths of the encoder's states.
        style: of the blocks.
        attends: ``attends(side, k)`` tells whether block k of a level has attention.
    """
    dec, left, width = nn.ModuleDict(), list(skips), skips[-1]
    for i, (size, c_out) in enumerate(reversed(shape.levels)):
        name = f"{size}x{size}_"
        if i == 0:
            dec[name + "in0"] = UNetBlock(width, width, style, attention=True)
            dec[name + "in1"] = UNetBlock(width, width, style)
        else:
            dec[name + "up"] = UNetBlock(width, width, style, "up")
        for k in range(shape.blocks + 1):
            c_in, attention = width + left.pop(), attends(size, k)
            dec[f"{name}block{k}"] = UNetBlock(c_in, c_out, style, attention=attention)
            width = c_out
    return dec


def encode(enc: nn.ModuleDict, x: Tensor, emb: Tensor) -> list[Tensor]:
    """The state after each layer of :func:`encoder`; the decoder starts from the last."""
    states: list[Tensor] = []
    image = x
    for name, layer in enc.items():
        if name.endswith("aux_residual"):  # the sum replaces the state before
            x = image = states[-1] = (x + layer(image)) * math.sqrt(0.5)
        else:
            x = layer(x, emb) if isinstance(layer, UNetBlock) else layer(x)
            states.append(x)
    return states


def decode(dec: nn.ModuleDict, states: list[Tensor], emb: Tensor) -> Tensor:
    """The state after the blocks of :func:`decoder`, which pop ``states``."""
    x = states[-1]
    for layer in dec.values():
        if isinstance(layer, UNetBlock):
            if layer.c_in > x.shape[1]:
                x = torch.cat((x, states.pop()), dim=1)
            x = layer(x, emb)
    return x
