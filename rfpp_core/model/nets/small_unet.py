"""A small U-Net for images of 8 to 32 pixels, fast enough to train on a laptop's CPU.

The time embedding scales and shifts after the second normalisation of each residual block.  Down
it is average pooling; up it is a 1x1 convolution to the width of the finer level, then nearest
neighbour, which is cheaper than the other way round.  The coarse levels have attention.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rfpp_core.model.nets.layers import Attention, Fourier, norm, zeroed


class Block(nn.Module):
    """Residual block: (B, C_in, H, W), embedding (B, E) -> (B, C_out, H, W)."""

    def __init__(self, c_in: int, c_out: int, emb: int, dropout: float, attention: bool) -> None:
        super().__init__()
        self.norm0, self.conv0 = norm(c_in), nn.Conv2d(c_in, c_out, 3, padding=1)
        self.affine = nn.Linear(emb, 2 * c_out)
        self.norm1, self.conv1 = norm(c_out), zeroed(nn.Conv2d(c_out, c_out, 3, padding=1))
        self.dropout = nn.Dropout(dropout)
        self.skip = nn.Conv2d(c_in, c_out, 1) if c_in != c_out else nn.Identity()
        self.attention = Attention(c_out) if attention else nn.Identity()

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        h = self.conv0(F.silu(self.norm0(x)))
        scale, shift = self.affine(emb)[:, :, None, None].chunk(2, dim=1)
        h = F.silu(torch.addcmul(shift, self.norm1(h), scale + 1))
        out: Tensor = self.attention(self.skip(x) + self.conv1(self.dropout(h)))
        return out


class SmallUNet(nn.Module):
    """The raw network ``F(x (B, C, H, W), c_noise (B,), y (B,) or None) -> (B, C, H, W)``.

    Args:
        image_channels: channels C of the images.
        channels: base width; each level has a multiple of it.
        multipliers: those of the levels, finest first.  The image is halved between levels.
        blocks: residual blocks of a level, down and again up.
        attention: how many of the coarsest levels have attention.
        classes: number of labels, 0 for none; label -1 (or None) means "no label".
        dropout: dropout probability in [0, 1).
    """

    def __init__(
        self,
        image_channels: int,
        channels: int = 64,
        multipliers: Sequence[int] = (1, 2),
        blocks: int = 1,
        attention: int = 1,
        classes: int = 0,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        emb, widths = 4 * channels, [channels * m for m in multipliers]
        has_attention = [i >= len(widths) - attention for i in range(len(widths))]
        self.classes = classes
        self.fourier = Fourier(channels)
        self.embed = nn.Sequential(nn.Linear(channels, emb), nn.SiLU(), nn.Linear(emb, emb))
        self.label = nn.Embedding(classes + 1, emb) if classes else None
        self.stem = nn.Conv2d(image_channels, channels, 3, padding=1)

        self.down, skips, width = nn.ModuleList(), [channels], channels
        for c, att in zip(widths, has_attention, strict=True):
            level = nn.ModuleList()
            for _ in range(blocks):
                level.append(Block(width, c, emb, dropout, att))
                width = c
                skips.append(c)
            self.down.append(level)
        self.up, self.narrow = nn.ModuleList(), nn.ModuleList()
        for c, att in reversed(list(zip(widths, has_attention, strict=True))):
            self.narrow.append(nn.Conv2d(width, c, 1) if self.up else nn.Identity())
            width, level = c, nn.ModuleList()
            for _ in range(blocks):
                level.append(Block(width + skips.pop(), c, emb, dropout, att))
                width = c
            self.up.append(level)
        self.out_norm = norm(width + channels)
        self.out = zeroed(nn.Conv2d(width + channels, image_channels, 3, padding=1))

    def forward(self, x: Tensor, c: Tensor, y: Tensor | None = None) -> Tensor:
        emb = self.embed(self.fourier(c).to(x.dtype))
        if self.label is not None:
            y = torch.full((x.shape[0],), -1, device=x.device) if y is None else y
            emb = emb + self.label(torch.where(y < 0, self.classes, y))
        emb = F.silu(emb)
        x = self.stem(x)
        states = [x]
        for i, level in enumerate(self.down):
            if i:
                x = F.avg_pool2d(x, 2)
            for block in cast(nn.ModuleList, level):
                x = block(x, emb)
                states.append(x)
        for i, level in enumerate(self.up):
            if i:
                x = F.interpolate(self.narrow[i](x), scale_factor=2.0, mode="nearest")
            for block in cast(nn.ModuleList, level):
                x = block(torch.cat((x, states.pop()), dim=1), emb)
        x = torch.cat((x, states.pop()), dim=1)
        out: Tensor = self.out(F.silu(self.out_norm(x)))
        return out
