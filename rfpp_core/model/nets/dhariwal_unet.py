"""ADM (Dhariwal and Nichol, arXiv 2105.05233) as EDM trains it (arXiv 2206.00364, app. F).

EDM's network for ImageNet at 64 pixels is ``UNetShape(64, 3, 192, (1, 2, 3, 4), 3, (32, 16, 8),
classes=1000, dropout=0.1)``.
"""

from __future__ import annotations

import math
from dataclasses import replace

from torch import Tensor, nn
from torch.nn import functional as F

from rfpp_core.model.nets import edm_layers as layers
from rfpp_core.model.nets import edm_unet as unet
from rfpp_core.model.nets.edm_layers import Conv2d, Init, Linear
from rfpp_core.model.nets.edm_unet import UNetShape

HEAD = 64  # channels of an attention head


class DhariwalUNet(nn.Module):
    """Blocks scaled and shifted by the embedding, heads of 64 channels, box resampling.

    Args:
        shape: of the network.  The first state is as wide as the first level.

    Raises:
        ValueError: if the image does not halve often enough, or a width does not split into
            groups or heads.
    """

    def __init__(self, shape: UNetShape) -> None:
        super().__init__()
        channels, self.classes = shape.channels, shape.classes
        emb, init = 4 * channels, Init("kaiming", math.sqrt(1 / 3), math.sqrt(1 / 3))
        self.map_noise = layers.PositionalEmbedding(channels)
        if shape.augment:
            self.map_augment = layers.unused(Linear(shape.augment, channels, init, bias=False))
        self.map_layer0 = Linear(channels, emb, init)
        self.map_layer1 = Linear(emb, emb, init)
        label = Init("kaiming", math.sqrt(self.classes), normal=True)  # one-hot: variance 1 out
        self.map_label = Linear(self.classes, emb, label, bias=False) if self.classes else None

        style, attention = block_style(emb, shape.dropout, init), shape.attention_resolutions
        [(_, width), *_] = shape.levels
        self.enc, skips = unet.encoder(shape, width, style, residual=False)
        self.dec = unet.decoder(shape, skips, style, lambda side, _: side in attention)
        self.out_norm = layers.group_norm(width, style.eps)
        self.out_conv = Conv2d(width, shape.image_channels, 3, style.last)

    def forward(self, x: Tensor, c: Tensor, y: Tensor | None = None) -> Tensor:
        """(B, C, H, W), c_noise (B,), labels (B,) or None -> (B, C, H, W)."""
        emb = self._embed(x, c, y)
        x = unet.decode(self.dec, unet.encode(self.enc, x, emb), emb)
        out: Tensor = self.out_conv(F.silu(self.out_norm(x)))
        return out

    def _embed(self, x: Tensor, c: Tensor, y: Tensor | None) -> Tensor:
        """Embedding (B, 4 channels) in the dtype of x."""
        emb = F.silu(self.map_layer0(self.map_noise(c).to(x.dtype)))
        emb = self.map_layer1(emb)
        if self.map_label is not None:
            emb = emb + self.map_label(layers.one_hot(y, self.classes, x))
        return F.silu(emb)


def block_style(emb: int, dropout: float, init: Init) -> unet.BlockStyle:
    """Blocks of ADM."""
    return unet.BlockStyle(
        emb=emb,
        dropout=dropout,
        init=init,
        last=replace(init, weight=0.0, bias=0.0),
        qkv=init,
        eps=1e-5,
        skip_scale=1.0,
        adaptive=True,
        resample_proj=False,
        head=HEAD,
        taps=(1.0, 1.0),
    )
