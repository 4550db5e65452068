"""The frozen net of a perceptual loss: LPIPS's, or one trained here on labels."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipeline import artifacts
from rfpp_core.choices import Choices
from rfpp_core.config.dataset import Dataset
from rfpp_core.config.recipe import Loss
from rfpp_core.errors import UserError
from rfpp_core.evaluation import classifier
from rfpp_core.images import store as image_store
from rfpp_core.interop import foreign
from rfpp_core.rng import permutation, subkey
from rfpp_core.storage import checkpoint, downloads, files
from rfpp_core.training import perceptual
from rfpp_core.training.losses import Distance

STEPS, BATCH, LR = 800, 128, 2e-3


def identity(section: Loss, dataset: Dataset) -> dict[str, Any]:
    """What determines the net: the digest of its weights, or what it is trained on."""
    if section.perceptual == "lpips":
        if section.vgg_path:
            return {"vgg": files.sha256(vgg(section))}
        return {"vgg": perceptual.VGG16.sha256}
    return {"images": image_store.metadata(artifacts.IMAGES)["digest"], "seed": dataset.seed}


def vgg(section: Loss) -> Path:
    """VGG16's file; raises :class:`UserError` if it cannot be had."""
    return downloads.fetch(perceptual.VGG16, artifacts.located_if_given(section.vgg_path))


def lpips(section: Loss) -> perceptual.LPIPS:
    """LPIPS with VGG16 of a file, which is read as data.

    Raises:
        UserError: if the file cannot be had, or is another.
    """
    path = vgg(section)
    try:
        return perceptual.LPIPS(foreign.read(path).tensors, section.pooling, section.resize)
    except UserError as error:
        reason = str(error).removeprefix(f"{path} ")
        raise UserError(f"{path} is not torchvision's VGG16: {reason}") from None


def load(section: Loss, dataset: Dataset, work: Path, device: torch.device) -> Distance | None:
    """The distance that a loss needs, on ``device``, or None; ``work`` keeps what is trained."""
    if section.perceptual == "none":
        return None
    net = NETS[section.perceptual](section, dataset, work / "perceptual.safetensors")
    net.chunk = section.chunk
    return net.requires_grad_(False).eval().to(device)


def _lpips(section: Loss, dataset: Dataset, path: Path) -> perceptual.LPIPS:
    return lpips(section)


def _label_net(section: Loss, dataset: Dataset, path: Path) -> perceptual.LabelNet:
    """Trained once, on another half, seed and architecture than the metric's classifier."""
    metadata = image_store.metadata(artifacts.IMAGES)
    if not metadata["classes"]:
        raise UserError("loss.perceptual: classifier learns labels, but the images have none")
    net = perceptual.label_net(metadata["shape"][0], metadata["classes"], dataset.seed)
    if path.exists():
        try:
            checkpoint.load_into(net, checkpoint.load(path).tensors, str(path))
            return net
        except UserError as error:
            print(f"perceptual classifier: made again: {error}")
    train = image_store.read(artifacts.IMAGES, "train")
    seed = subkey(dataset.seed, "perceptual")
    half = np.sort(permutation(seed, 0, len(train.images))[: len(train.images) // 2].numpy())
    some = image_store.Images(train.images[half], train.labels[half])
    logits = perceptual.Logits(net)
    state = classifier.ClassifierTraining(logits, STEPS, LR)
    for _ in classifier.train_classifier(state, some, BATCH, seed):
        pass
    accuracy = classifier.accuracy(logits, image_store.read(artifacts.IMAGES, "held_out"))
    print(f"perceptual classifier: held-out accuracy {accuracy:.4f}")
    checkpoint.save(path, net.state_dict(), {"held_out_accuracy": accuracy})
    return net


NETS: Choices[Callable[[Loss, Dataset, Path], perceptual.Perceptual]] = {
    "lpips": _lpips,
    "classifier": _label_net,
}
