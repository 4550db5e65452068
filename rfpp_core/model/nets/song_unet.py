"""NCSN++ and DDPM++ (Song et al., arXiv 2011.13456) as EDM trains them (arXiv 2206.00364, app. F).

The defaults are EDM's NCSN++ for CIFAR-10.  For 64 pixels it has ``multipliers=(1, 2, 2, 2)``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rfpp_core.model.nets import edm_layers as layers
from rfpp_core.model.nets.edm_layers import Conv2d, Init, Linear

Embedding = Literal["fourier", "positional"]
Encoder = Literal["residual", "standard"]

# NCSN++, DDPM++; the published weights fix what goes with which embedding
NOISE_WIDTH: dict[Embedding, int] = {"fourier": 2, "positional": 1}
TAPS: dict[Embedding, tuple[float, ...]] = {
    "fourier": (1.0, 3.0, 3.0, 1.0),
    "positional": (1.0, 1.0),
}
RESIDUAL: dict[Encoder, bool] = {"residual": True, "standard": False}


class SongUNet(nn.Module):
    """Blocks shifted by the embedding, sums scaled by sqrt(1/2), one attention head.

    Args:
        image_size: side of the images, pixels; names the levels.
        image_channels: channels C of the images.
        channels: unit of the widths.
        multipliers: width of each level, in ``channels``; one halving between levels.
        blocks: residual blocks of a level on the way down; one more on the way up.
        attention_resolutions: sides of the levels with attention.
        classes: number of labels, 0 for none; label -1 (or None) is "no label".
        augment: length of the augmentation vector; it is taken as zero, "not augmented".
        dropout: dropout probability in [0, 1).
        embedding: of the noise level, "fourier" (NCSN++) or "positional" (DDPM++); it brings
            its width and the resampling filter, [1, 3, 3, 1] or [1, 1].
        encoder: "residual" (NCSN++) adds a pyramid of the image, "standard" (DDPM++) does not.
    """

    def __init__(
        self,
        image_size: int,
        image_channels: int,
        channels: int = 128,
        multipliers: Sequence[int] = (2, 2, 2),
        blocks: int = 4,
        attention_resolutions: Sequence[int] = (16,),
        classes: int = 0,
        augment: int = 9,
        dropout: float = 0.0,
        embedding: Embedding = "fourier",
        encoder: Encoder = "residual",
    ) -> None:
        super().__init__()
        emb, init, self.classes = 4 * channels, Init("xavier"), classes
        taps, noise = TAPS[embedding], channels * NOISE_WIDTH[embedding]
        self.map_noise: nn.Module = layers.PositionalEmbedding(noise, endpoint=True)
        if embedding == "fourier":
            self.map_noise = layers.FourierEmbedding(noise)
        self.map_label = Linear(classes, noise, init) if classes else None
        if augment:
            self.map_augment = layers.unused(Linear(augment, noise, init, bias=False))
        self.map_layer0 = Linear(noise, emb, init)
        self.map_layer1 = Linear(emb, emb, init)

        style, attention = block_style(emb, dropout, taps), attention_resolutions
        sizes = layers.levels(image_size, channels, multipliers)
        self.enc, skips = layers.encoder(
            (image_channels, channels), sizes, blocks, style, attention, RESIDUAL[encoder]
        )
        self.dec = layers.decoder(
            sizes, skips, blocks, style, lambda side, k: side in attention and k == blocks
        )
        self.last, width = f"{image_size}x{image_size}_aux_", sizes[0][1]
        self.dec[self.last + "norm"] = layers.group_norm(width, style.eps)
        self.dec[self.last + "conv"] = Conv2d(width, image_channels, 3, style.last)

    def forward(self, x: Tensor, c: Tensor, y: Tensor | None = None) -> Tensor:
        """(B, C, H, W), c_noise (B,), labels (B,) or None -> (B, C, H, W)."""
        emb = self._embed(x, c, y)
        x = layers.decode(self.dec, layers.encode(self.enc, x, emb), emb)
        out: Tensor = self.dec[self.last + "conv"](F.silu(self.dec[self.last + "norm"](x)))
        return out

    def _embed(self, x: Tensor, c: Tensor, y: Tensor | None) -> Tensor:
        """Embedding (B, 4 channels) in the dtype of x."""
        emb: Tensor = self.map_noise(c).to(x.dtype)
        emb = torch.cat(emb.chunk(2, dim=1)[::-1], dim=1)  # weights expect sin before cos
        if self.map_label is not None:
            labels = layers.one_hot(y, self.classes, x) * math.sqrt(self.classes)
            emb = emb + self.map_label(labels)
        emb = F.silu(self.map_layer0(emb))
        return F.silu(self.map_layer1(emb))


def block_style(emb: int, dropout: float, taps: tuple[float, ...]) -> layers.BlockStyle:
    """Blocks of NCSN++ and DDPM++."""
    init = Init("xavier")
    return layers.BlockStyle(
        emb=emb,
        dropout=dropout,
        init=init,
        last=replace(init, weight=1e-5),
        qkv=replace(init, weight=math.sqrt(0.2)),
        eps=1e-6,
        skip_scale=math.sqrt(0.5),
        adaptive=False,
        resample_proj=True,
        head=None,
        taps=taps,
    )
