"""The frozen net of a perceptual loss: LPIPS's, or one trained here on labels."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipeline import stage
from rfpp_core import checkpoint, data, features, files, perceptual, weights
from rfpp_core.build import Choices
from rfpp_core.errors import UserError
from rfpp_core.losses import Distance
from rfpp_core.noise import permutation, subkey
from rfpp_core.params import Dataset, Loss

STEPS, BATCH, LR = 800, 128, 2e-3


def identity(section: Loss, dataset: Dataset) -> dict[str, Any]:
    """What determines the net: the digest of its weights, or what it is trained on."""
    if section.perceptual == "lpips":
        if section.vgg_path:
            return {"vgg": files.sha256(vgg(section))}
        return {"vgg": perceptual.VGG16.sha256}
    return {"images": data.about(stage.IMAGES)["digest"], "seed": dataset.seed}


def vgg(section: Loss) -> Path:
    """VGG16's file; raises :class:`UserError` if it cannot be had."""
    return weights.fetch(perceptual.VGG16, section.vgg_path)


def load(section: Loss, dataset: Dataset, work: Path, device: torch.device) -> Distance | None:
    """The distance that a loss needs, on ``device``, or None; ``work`` keeps what is trained."""
    if not section.is_perceptual:
        return None
    net = NETS[section.perceptual](section, dataset, work / "perceptual.safetensors")
    net.chunk = section.chunk
    return net.requires_grad_(False).eval().to(device)


def _lpips(section: Loss, dataset: Dataset, path: Path) -> perceptual.LPIPS:
    return perceptual.LPIPS(vgg(section), section.pooling, section.resize)


def _label_net(section: Loss, dataset: Dataset, path: Path) -> perceptual.LabelNet:
    """Trained once, on another half, seed and architecture than the metric's classifier."""
    about = data.about(stage.IMAGES)
    if not about["classes"]:
        raise UserError("loss.perceptual: classifier learns labels, but the images have none")
    net = perceptual.label_net(about["shape"][0], about["classes"], dataset.seed)
    if path.exists():
        try:
            checkpoint.load_into(net, checkpoint.load(path).tensors, str(path))
            return net
        except UserError as error:
            print(f"perceptual classifier: made again: {error}")
    train = data.read(stage.IMAGES, "train")
    seed = subkey(dataset.seed, "perceptual")
    half = np.sort(permutation(seed, 0, len(train.images))[: len(train.images) // 2].numpy())
    some = data.Images(train.images[half], train.labels[half])
    logits = perceptual.Logits(net)
    state = features.ClassifierTraining(logits, STEPS, LR)
    for _ in features.train_classifier(state, some, BATCH, seed):
        pass
    accuracy = features.accuracy(logits, data.read(stage.IMAGES, "held_out"))
    print(f"perceptual classifier: held-out accuracy {accuracy:.4f}")
    checkpoint.save(path, net.state_dict(), {"held_out_accuracy": accuracy})
    return net


NETS: Choices[Callable[[Loss, Dataset, Path], perceptual.Perceptual]] = {
    "lpips": _lpips,
    "classifier": _label_net,
}
