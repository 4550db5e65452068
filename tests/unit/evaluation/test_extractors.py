import numpy as np
import torch

from rfpp_core.evaluation import extractors


def uint8(n=3, channels=3, side=16):
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (n, channels, side, side), generator=generator, dtype=torch.uint8)


def test_pixels_are_averaged():
    images = uint8(2, 3, 16)
    found = extractors.extract(extractors.pooled_pixels, images)
    blocks = images.double().reshape(2, 3, 8, 2, 8, 2).mean((3, 5)).flatten(1) / 127.5 - 1
    np.testing.assert_allclose(found, blocks, atol=0.01)
