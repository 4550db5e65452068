"""ADM (Dhariwal and Nichol, arXiv 2105.05233) as EDM trains it (arXiv 2206.00364, app. F).

The defaults are EDM's network for ImageNet at 64 pixels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor, nn
from torch.nn import functional as F

from rfpp_core.model.nets import edm_layers as layers
from rfpp_core.model.nets.edm_layers import Conv2d, Init, Linear

HEAD = 64  # channels of an attention head


class DhariwalUNet(nn.Module):
    """Blocks scaled and shifted by the embedding, heads of 64 channels, box resampling.

    The first state is as wide as the first level.

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
    """

    def __init__(
        self,
        image_size: int,
        image_channels: int,
        channels: int = 192,
        multipliers: Sequence[int] = (1, 2, 3, 4),
        blocks: int = 3,
        attention_resolutions: Sequence[int] = (32, 16, 8),
        classes: int = 1000,
        augment: int = 0,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        emb, init = 4 * channels, Init("kaiming", math.sqrt(1 / 3), math.sqrt(1 / 3))
        self.classes = classes
        self.map_noise = layers.PositionalEmbedding(channels)
        if augment:
            self.map_augment = layers.unused(Linear(augment, channels, init, bias=False))
        self.map_layer0 = Linear(channels, emb, init)
        self.map_layer1 = Linear(emb, emb, init)
        label = Init("kaiming", math.sqrt(classes), normal=True)  # one-hot: variance 1 out
        self.map_label = Linear(classes, emb, label, bias=False) if classes else None

        style = block_style(emb, dropout, init)
        sizes, attention = layers.levels(image_size, channels, multipliers), attention_resolutions
        self.enc, skips = layers.encoder(
            (image_channels, sizes[0][1]), sizes, blocks, style, attention, residual=False
        )
        self.dec = layers.decoder(sizes, skips, blocks, style, lambda side, _: side in attention)
        self.out_norm = layers.group_norm(sizes[0][1], style.eps)
        self.out_conv = Conv2d(sizes[0][1], image_channels, 3, style.last)

    def forward(self, x: Tensor, c: Tensor, y: Tensor | None = None) -> Tensor:
        """(B, C, H, W), c_noise (B,), labels (B,) or None -> (B, C, H, W)."""
        emb = self._embed(x, c, y)
        x = layers.decode(self.dec, layers.encode(self.enc, x, emb), emb)
        out: Tensor = self.out_conv(F.silu(self.out_norm(x)))
        return out

    def _embed(self, x: Tensor, c: Tensor, y: Tensor | None) -> Tensor:
        """Embedding (B, 4 channels) in the dtype of x."""
        emb = F.silu(self.map_layer0(self.map_noise(c).to(x.dtype)))
        emb = self.map_layer1(emb)
        if self.map_label is not None:
            emb = emb + self.map_label(layers.one_hot(y, self.classes, x))
        return F.silu(emb)


def block_style(emb: int, dropout: float, init: Init) -> layers.BlockStyle:
    """Blocks of ADM."""
    return layers.BlockStyle(
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
