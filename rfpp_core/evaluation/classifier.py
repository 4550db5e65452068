"""A classifier of the labels as feature net: uint8 images -> features for a Frechet distance.

The network (docs/concepts/metrics.md): convolutions 3x3 from C to 32 and from 32 to 64 channels;
2x2 average pooling and a convolution from 64 to 64, until sides have at most 4 pixels; the mean of
each quadrant; linear from 256 to 64, the features; linear to the labels.  All but the last have a
ReLU.  It is trained once, on the training split shifted by up to a pixel.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rfpp_core.evaluation.extractors import part_of
from rfpp_core.images.loader import batches
from rfpp_core.images.pixels import to_float
from rfpp_core.images.store import Images
from rfpp_core.rng import StepRNG, subkey
from rfpp_core.storage import optimizer

DIM = 64


class Classifier(nn.Module):
    """Logits (B, classes) of float images (B, C, H, W); :meth:`features` is the layer before."""

    def __init__(self, channels: int, classes: int, side: int) -> None:
        super().__init__()
        self.conv0 = nn.Conv2d(channels, 32, 3, padding=1)
        self.conv1 = nn.Conv2d(32, 64, 3, padding=1)
        self.conv2 = nn.Conv2d(64, 64, 3, padding=1)
        self.hidden = nn.Linear(256, DIM)
        self.head = nn.Linear(DIM, classes)
        halvings = max(0, math.ceil(math.log2(side / 8)))
        self.deeper = nn.ModuleList(nn.Conv2d(64, 64, 3, padding=1) for _ in range(halvings))

    def features(self, x: Tensor) -> Tensor:
        """(B, C, H, W) in [-1, 1] -> (B, 64), non-negative."""
        h = F.relu(self.conv1(F.relu(self.conv0(x))))
        for conv in self.deeper:
            h = F.relu(conv(F.avg_pool2d(h, 2)))
        h = F.relu(self.conv2(F.avg_pool2d(h, 2)))
        return F.relu(self.hidden(F.adaptive_avg_pool2d(h, 2).flatten(1)))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.features(x))
        return out

    def of_uint8(self, images: Tensor) -> Tensor:
        """Features (B, 64) of uint8 images (B, C, H, W)."""
        return self.features(to_float(images.to(next(self.parameters()).device)))


def new_classifier(channels: int, classes: int, side: int, seed: int) -> Classifier:
    """An untrained classifier, its weights drawn from ``seed``."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(subkey(seed, "classifier"))
        return Classifier(channels, classes, side)


class ClassifierTraining:
    """All of a training's state: weights, optimiser, learning rate, and the number of updates."""

    def __init__(self, net: nn.Module, steps: int, lr: float) -> None:
        self.net, self.steps, self.step = net, steps, 0
        self.optimizer = torch.optim.Adam(net.parameters(), lr=lr)
        self.schedule = torch.optim.lr_scheduler.CosineAnnealingLR(self.optimizer, steps)

    def tensors(self) -> dict[str, Tensor]:
        """Everything but the counters, by name."""
        weights = {f"net.{name}": t for name, t in self.net.state_dict().items()}
        return weights | optimizer.tensors_of(self.optimizer)

    def metadata(self) -> dict[str, Any]:
        """The counters, as a JSON document."""
        rates = [group["lr"] for group in self.optimizer.param_groups]
        return {"step": self.step, "rates": rates, "schedule": self.schedule.state_dict()}

    def restore(self, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> None:
        """Resumes from what :meth:`tensors` and :meth:`metadata` gave."""
        self.net.load_state_dict(optimizer.under("net.", tensors))
        optimizer.load(self.optimizer, tensors)
        self.schedule.load_state_dict(metadata["schedule"])
        for group, rate in zip(self.optimizer.param_groups, metadata["rates"], strict=True):
            group["lr"] = rate
        self.step = int(metadata["step"])


def train_classifier(
    state: ClassifierTraining, train: Images, batch: int, seed: int
) -> Iterator[int]:
    """Trains a classifier in place by Adam with a cosine learning rate, on shifted images.

    Args:
        state: where to start or resume.
        train: uint8 images and labels of the training split.
        batch: images of an update, at most all of them.
        seed: of order and shifts.

    Yields:
        The number of updates after each; the state may be saved then.
    """
    images, labels = torch.from_numpy(train.images), torch.from_numpy(train.labels).long()
    key, batch = subkey(seed, "classifier order"), min(batch, len(images))
    source = batches(images, labels, batch, key, torch.device("cpu"), state.step)
    while state.step < state.steps:
        x, _, y = next(source)
        assert y is not None
        draws = StepRNG(subkey(seed, "classifier"), state.step, batch)
        x = shifted(x, draws.uniform("dx"), draws.uniform("dy"))
        state.optimizer.zero_grad()
        logits = state.net(x)
        F.cross_entropy(logits, y, label_smoothing=0.05).backward()  # type: ignore[no-untyped-call]
        state.optimizer.step()
        state.schedule.step()
        state.step += 1
        yield state.step
    state.net.eval()


def shifted(x: Tensor, u: Tensor, w: Tensor) -> Tensor:
    """Images (B, C, H, W) moved by -1, 0 or 1 pixel along each side; edges repeat.

    u and w (B,), uniform in (0, 1), say by how much: rows by u, columns by w.
    """
    n, (h, wide) = len(x), x.shape[2:]
    padded = F.pad(x, (1, 1, 1, 1), mode="replicate")
    rows = (u * 3).long()[:, None] + torch.arange(h)
    cols = (w * 3).long()[:, None] + torch.arange(wide)
    at = torch.arange(n)[:, None, None]
    return padded[at, :, rows[:, :, None], cols[:, None, :]].permute(0, 3, 1, 2)


@torch.inference_mode()
def accuracy(net: nn.Module, data: Images) -> float:
    """Share in [0, 1] of labels that the classifier gets right."""
    images, device = torch.from_numpy(data.images), next(net.parameters()).device
    parts = torch.split(images, part_of(images.shape[2:]))
    guess = torch.cat([net(to_float(part.to(device))).argmax(1).cpu() for part in parts])
    return float((guess == torch.from_numpy(data.labels)).double().mean())
