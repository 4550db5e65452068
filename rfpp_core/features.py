"""Feature nets: uint8 images -> features, for the distances of ``metrics``.

The digits classifier (docs/metrics.md): conv 3x3 1->32, conv 3x3 32->64, 2x2 average pool,
conv 3x3 64->64, mean over pixels and 4 quadrants, linear 256->64 (the features), linear 64->10;
ReLU after each but the last.  It is trained once on the training split, with shifts of a pixel.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from rfpp_core.data import Images
from rfpp_core.loader import batches
from rfpp_core.noise import Draws, subkey
from rfpp_core.pixels import to_float

DIM = 64


class Classifier(nn.Module):
    """Logits (B, classes) of float images (B, C, H, W); :meth:`features` is the layer before."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.conv0 = nn.Conv2d(channels, 32, 3, padding=1)
        self.conv1 = nn.Conv2d(32, 64, 3, padding=1)
        self.conv2 = nn.Conv2d(64, 64, 3, padding=1)
        self.hidden = nn.Linear(256, DIM)
        self.head = nn.Linear(DIM, classes)

    def features(self, x: Tensor) -> Tensor:
        """(B, C, H, W) in [-1, 1] -> (B, 64), non-negative."""
        h = F.relu(self.conv1(F.relu(self.conv0(x))))
        h = F.relu(self.conv2(F.avg_pool2d(h, 2)))
        return F.relu(self.hidden(F.adaptive_avg_pool2d(h, 2).flatten(1)))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.features(x))
        return out


def train_classifier(
    train: Images, classes: int, steps: int, batch: int, lr: float, seed: int
) -> Classifier:
    """Trains the classifier with Adam, a cosine rate and random shifts of up to one pixel."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(subkey(seed, "classifier"))
        net = Classifier(train.images.shape[1], classes)
    optimizer = torch.optim.Adam(net.parameters(), lr=lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    images, labels = torch.from_numpy(train.images), torch.from_numpy(train.labels).long()
    key = subkey(seed, "classifier order")
    source = batches(images, labels, batch, key, torch.device("cpu"))
    for step, (x, _, y) in zip(range(steps), source, strict=False):
        assert y is not None
        draws = Draws(subkey(seed, "classifier"), step, batch)
        x = shifted(x, draws.uniform("dx"), draws.uniform("dy"))
        optimizer.zero_grad()
        F.cross_entropy(net(x), y, label_smoothing=0.05).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
    return net.eval()


def shifted(x: Tensor, u: Tensor, w: Tensor) -> Tensor:
    """Images moved by -1, 0 or 1 pixel each way, as drawn by u and w in (0, 1); edges repeat."""
    n, (h, wide) = len(x), x.shape[2:]
    padded = F.pad(x, (1, 1, 1, 1), mode="replicate")
    rows = (u * 3).long()[:, None] + torch.arange(h)
    cols = (w * 3).long()[:, None] + torch.arange(wide)
    at = torch.arange(n)[:, None, None]
    return padded[at, :, rows[:, :, None], cols[:, None, :]].permute(0, 3, 1, 2)


@torch.inference_mode()
def extract(net: Classifier, images: Tensor) -> NDArray[np.float64]:
    """Features float64 (N, 64) of uint8 images (N, C, H, W)."""
    parts = [net.features(to_float(part)) for part in torch.split(images, 1000)]
    return torch.cat(parts).double().numpy()


@torch.inference_mode()
def accuracy(net: Classifier, data: Images) -> float:
    """Share of labels the classifier gets right."""
    parts = torch.split(torch.from_numpy(data.images), 1000)
    guess = torch.cat([net(to_float(part)).argmax(1) for part in parts])
    return float((guess == torch.from_numpy(data.labels)).double().mean())
