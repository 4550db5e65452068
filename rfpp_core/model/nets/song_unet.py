"""NCSN++ and DDPM++ (Song et al., arXiv 2011.13456) as EDM trains them (arXiv 2206.00364, app. F).

EDM's NCSN++ for CIFAR-10 is ``UNetShape(32, 3, 128, (2, 2, 2), 4, (16,), augment=9)``; the one for
faces at 64 pixels has multipliers ``(1, 2, 2, 2)``.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rfpp_core.model.nets import edm_layers as layers
from rfpp_core.model.nets import edm_unet as unet
from rfpp_core.model.nets.edm_layers import Conv2d, Init, Linear
from rfpp_core.model.nets.edm_unet import UNetShape

Embedding = Literal["fourier", "positional"]
Encoder = Literal["residual", "standard"]

# NCSN++, DDPM++: in the published weights these come with the embedding
NOISE_WIDTH: dict[Embedding, int] = {"fourier": 2, "positional": 1}
TAPS: dict[Embedding, tuple[float, ...]] = {
    "fourier": (1.0, 3.0, 3.0, 1.0),
    "positional": (1.0, 1.0),
}
RESIDUAL: dict[Encoder, bool] = {"residual": True, "standard": False}


class SongUNet(nn.Module):
    """The embedding is added inside blocks, sums are scaled by sqrt(1/2), attention has one head.

    Args:
        shape: of the network.
        embedding: of the noise level, "fourier" (NCSN++) or "positional" (DDPM++); its width and
            the resampling filter, [1, 3, 3, 1] or [1, 1], follow from it.
        encoder: "residual" (NCSN++) adds a pyramid of the image, "standard" (DDPM++) does not.

    Raises:
        ValueError: if the image does not halve often enough, or a width does not split into
            groups or heads.
    """

    def __init__(self, shape: UNetShape, embedding: Embedding, encoder: Encoder) -> None:
        super().__init__()
        channels, self.classes = shape.channels, shape.classes
        emb, init = 4 * channels, Init("xavier")
        taps, noise = TAPS[embedding], channels * NOISE_WIDTH[embedding]
        self.map_noise: nn.Module = layers.PositionalEmbedding(noise, endpoint=True)
        if embedding == "fourier":
            self.map_noise = layers.FourierEmbedding(noise)
        self.map_label = Linear(self.classes, noise, init) if self.classes else None
        if shape.augment:
            self.map_augment = layers.unused(Linear(shape.augment, noise, init, bias=False))
        self.map_layer0 = Linear(noise, emb, init)
        self.map_layer1 = Linear(emb, emb, init)

        style, attention = block_style(emb, shape.dropout, taps), shape.attention_resolutions
        self.enc, skips = unet.encoder(shape, channels, style, RESIDUAL[encoder])
        self.dec = unet.decoder(
            shape, skips, style, lambda side, k: side in attention and k == shape.blocks
        )
        [(size, width), *_] = shape.levels
        self.last = f"{size}x{size}_aux_"
        self.dec[self.last + "norm"] = layers.group_norm(width, style.eps)
        self.dec[self.last + "conv"] = Conv2d(width, shape.image_channels, 3, style.last)

    def forward(self, x: Tensor, c: Tensor, y: Tensor | None = None) -> Tensor:
        """(B, C, H, W), c_noise (B,), labels (B,) or None -> (B, C, H, W)."""
        emb = self._embed(x, c, y)
        x = unet.decode(self.dec, unet.encode(self.enc, x, emb), emb)
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


def block_style(emb: int, dropout: float, taps: tuple[float, ...]) -> unet.BlockStyle:
    """Blocks of NCSN++ and DDPM++."""
    init = Init("xavier")
    return unet.BlockStyle(
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
