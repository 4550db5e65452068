"""Perceptual distances of images, for losses: LPIPS, and the same in a classifier of the labels.

Both compare unit-normalised features layer by layer: squared differences, weighted over channels,
averaged over pixels, summed over layers (Zhang et al., arXiv 1801.03924).  The RF++ runs use LPIPS
with VGG16's max pools replaced by average pools, and both images resized to 224x224.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rfpp_core.errors import UserError
from rfpp_core.rng import subkey
from rfpp_core.storage.downloads import Published

VGG16 = Published(
    "VGG16 of LPIPS (loss.perceptual)",
    "https://download.pytorch.org/models/vgg16-397923af.pth",
    "397923af8e79cdbb6a7127f12361acd7a2f83e06b05044ddf496e83de57a5bf0",
    "loss.vgg_path",
)
LEAST_SIDE = 16  # VGG16 halves four times before its last features
EPS = 1e-20  # inside the root: the gradient of a root at 0 is infinite


class Perceptual(nn.Module):
    """A frozen distance: (x_hat (B, C, H, W), x of the same shape) in [-1, 1] -> (B,).

    Features of the target x carry no gradient, and everything is computed in float32.  With
    ``chunk`` images at a time, the gradient of each chunk is computed in the forward pass, and
    no activation of the net is stored for the backward pass.
    """

    chunk = 0

    def layers(self, x: Tensor) -> list[Tensor]:
        """Features by layer, each (B, C_l, H_l, W_l)."""
        raise NotImplementedError

    def weigh(self, layer: int, square: Tensor) -> Tensor:
        """Squared differences (B, C_l, H_l, W_l) weighted over channels: (B, 1, H_l, W_l)."""
        return square.sum(1, keepdim=True)

    def forward(self, x_hat: Tensor, x: Tensor) -> Tensor:
        if self.chunk and torch.is_grad_enabled() and x_hat.requires_grad:
            found: Tensor = _InChunks.apply(x_hat, x.detach(), self)
            return found
        return self.compare(x_hat, x)

    def compare(self, x_hat: Tensor, x: Tensor) -> Tensor:
        """The distance, all images at once."""
        with torch.autocast(x.device.type, enabled=False):
            with torch.no_grad():
                target = [_unit(layer) for layer in self.layers(x.float())]
            ours = [_unit(layer) for layer in self.layers(x_hat.float())]
            terms = [
                self.weigh(i, (a - b).square()).mean((1, 2, 3))
                for i, (a, b) in enumerate(zip(ours, target, strict=True))
            ]
            return torch.stack(terms).sum(0)


class _InChunks(torch.autograd.Function):
    """The same distance.  That of an image depends on its own target alone, so the gradient of
    the sum holds each image's own; the backward pass needs no more than that, one image each."""

    @staticmethod
    def forward(ctx: Any, x_hat: Tensor, x: Tensor, net: Perceptual) -> Tensor:
        distances, gradients = [], []
        chunks = (torch.split(images, net.chunk) for images in (x_hat, x))
        for some, target in zip(*chunks, strict=True):
            with torch.enable_grad():
                leaf = some.detach().requires_grad_()
                distance = net.compare(leaf, target)
                gradients.append(torch.autograd.grad(distance.sum(), leaf)[0])
            distances.append(distance.detach())
        ctx.save_for_backward(torch.cat(gradients))
        return torch.cat(distances)

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = ctx.saved_tensors
        return outer[0][:, None, None, None] * gradient, None, None


class LPIPS(Perceptual):
    """LPIPS with VGG16, v0.1, from the ``lpips`` package.

    Args:
        weights: tensors of torchvision's VGG16 by name; None for random ones (for tests).
        pooling: ``"average"`` as in the RF++ runs, ``"max"`` as published by LPIPS.
        resize: side that images are resized to (bilinear, not antialiased); 0 for none.

    Raises:
        UserError: if the tensors are not VGG16's.
    """

    def __init__(
        self, weights: Mapping[str, Tensor] | None, pooling: str = "average", resize: int = 224
    ) -> None:
        super().__init__()
        import lpips

        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # the package's call of torchvision
            self.net = lpips.LPIPS(net="vgg", pnet_rand=True, verbose=False)
        self.resize = resize
        if weights is not None:
            _load_trunk(self.net.net, weights)
        self.slices = [getattr(self.net.net, f"slice{i}") for i in range(1, 6)]
        if pooling == "average":
            for part in self.slices:
                for name, layer in part.named_children():
                    if isinstance(layer, nn.MaxPool2d):
                        setattr(part, name, nn.AvgPool2d(2))
        self.requires_grad_(False).eval()

    def layers(self, x: Tensor) -> list[Tensor]:
        x = x.expand(-1, 3, -1, -1) if x.shape[1] == 1 else x
        if self.resize:
            x = F.interpolate(x, (self.resize, self.resize), mode="bilinear")
        x, found = self.net.scaling_layer(x), []
        for part in self.slices:
            x = part(x)
            found.append(x)
        return found

    def weigh(self, layer: int, square: Tensor) -> Tensor:
        out: Tensor = self.net.lins[layer](square)
        return out


class LabelNet(Perceptual):
    """A classifier of the user's labels: three stages of two 3x3 convolutions, images halved in
    between."""

    def __init__(self, channels: int, classes: int, widths: Sequence[int] = (32, 64, 96)) -> None:
        super().__init__()
        self.stages, width = nn.ModuleList(), channels
        for c in widths:
            self.stages.append(
                nn.Sequential(
                    nn.Conv2d(width, c, 3, padding=1),
                    nn.SiLU(),
                    nn.Conv2d(c, c, 3, padding=1),
                    nn.SiLU(),
                )
            )
            width = c
        self.head = nn.Linear(width, classes)

    def layers(self, x: Tensor) -> list[Tensor]:
        found: list[Tensor] = []
        for stage in self.stages:
            x = stage(F.avg_pool2d(x, 2) if found else x)
            found.append(x)
        return found


class Logits(nn.Module):
    """The classifier of a :class:`LabelNet`: (B, C, H, W) -> (B, classes)."""

    def __init__(self, net: LabelNet) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.net.head(self.net.layers(x)[-1].mean((2, 3)))
        return out


def label_net(channels: int, classes: int, seed: int) -> LabelNet:
    """An untrained :class:`LabelNet`, its weights drawn from ``seed``."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(subkey(seed, "perceptual"))
        return LabelNet(channels, classes)


def _unit(x: Tensor) -> Tensor:
    return x / (x.square().sum(1, keepdim=True) + EPS).sqrt()


def _load_trunk(trunk: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Copies the convolutions; a file of VGG16 also holds classifier layers.

    Raises:
        UserError: naming the first tensor that is missing or of another shape.
    """
    for name, own in trunk.state_dict().items():
        given = f"features.{name.partition('.')[2]}"
        if given not in weights:
            raise UserError(f"has no tensor '{given}'")
        tensor = weights[given]
        if tensor.shape != own.shape:
            raise UserError(f"{given} is {tuple(tensor.shape)}, not {tuple(own.shape)}")
        own.copy_(tensor)
