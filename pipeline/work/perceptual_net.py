"""The frozen net of a perceptual loss: LPIPS's, or one trained here on labels."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipeline import artifacts, console
from pipeline.work import workdir
from pipeline.work.identity import Name, digests
from rfpp_core.choices import Choices
from rfpp_core.config.dataset import Dataset
from rfpp_core.config.recipe import Loss
from rfpp_core.errors import UserError
from rfpp_core.evaluation import classifier
from rfpp_core.evaluation.classifier import ClassifierTraining
from rfpp_core.images import store as image_store
from rfpp_core.images.store import Images
from rfpp_core.interop import foreign
from rfpp_core.rng import permutation, subkey
from rfpp_core.storage import checkpoint, downloads, files
from rfpp_core.training import perceptual
from rfpp_core.training.losses import Distance

KIND = "perceptual"  # of staged work
STEPS, BATCH, LR = 800, 128, 2e-3
THREADS = 2  # on which the bits depend
CODE = [
    Name("rfpp_core.training.perceptual", "label_net"),
    Name("rfpp_core.training.perceptual", "Logits"),
    Name("rfpp_core.evaluation.classifier", "ClassifierTraining"),
    Name("pipeline.work.perceptual_net", "updates"),
]


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


def load(section: Loss, dataset: Dataset, device: torch.device) -> Distance | None:
    """The distance of images that a loss needs, on ``device``; None if it needs none."""
    if section.perceptual == "none":
        return None
    net = NETS[section.perceptual](section, dataset)
    net.chunk = section.chunk
    return net.requires_grad_(False).eval().to(device)


def _lpips(section: Loss, dataset: Dataset) -> perceptual.LPIPS:
    return lpips(section)


def _label_net(section: Loss, dataset: Dataset) -> perceptual.LabelNet:
    """A net of the labels, trained once for all trainings, in work of its own.

    It has another half of the images, seed and architecture than the metric's classifier.
    """
    metadata = image_store.metadata(artifacts.IMAGES)
    if not metadata["classes"]:
        raise UserError("loss.perceptual: classifier learns labels, but the images have none")
    net = perceptual.label_net(metadata["shape"][0], metadata["classes"], dataset.seed)
    state = classifier.ClassifierTraining(perceptual.Logits(net), STEPS, LR)
    document = {
        "classifier": {"steps": STEPS, "batch": BATCH, "lr": LR, "threads": THREADS},
        "images": metadata["digest"],
        "seed": dataset.seed,
        "code": digests(CODE, ()),
    }
    _restore(state, workdir.path_of(KIND, document))
    if state.step < STEPS:
        with workdir.staging(KIND, document) as work:
            _train(state, work.path, dataset.seed)
    return net


def _restore(
    state: ClassifierTraining, folder: Path, say: Callable[[str], None] = lambda _: None
) -> None:
    """Resumes the newest state, if there is one."""
    if saved := checkpoint.load_state(folder, STEPS, say):
        state.restore(saved.tensors, saved.metadata)


def _train(state: ClassifierTraining, folder: Path, seed: int) -> None:
    """Trains to the end from the newest state, which another process may have saved meanwhile."""
    _restore(state, folder, lambda text: print(f"perceptual classifier: {text}"))
    if state.step == STEPS:
        return
    if state.step:
        print(f"perceptual classifier: resumes at step {state.step}")
    threads, bar = (
        torch.get_num_threads(),
        console.bar("perceptual classifier", STEPS, "step", state.step),
    )
    torch.set_num_threads(THREADS)  # the same net whatever the recipe
    try:
        with workdir.Saver(folder, state, dict) as saver, bar:
            for step in updates(state, image_store.read(artifacts.IMAGES, "train"), seed):
                bar.update()
                saver.maybe(done=step == STEPS)
    finally:
        torch.set_num_threads(threads)
    accuracy = classifier.accuracy(state.net, image_store.read(artifacts.IMAGES, "held_out"))
    print(f"perceptual classifier: held-out accuracy {accuracy:.4f}")


def updates(state: ClassifierTraining, train: Images, seed: int) -> Iterator[int]:
    """Trains on a half of the images, drawn by the seed; yields the number of each update."""
    key, n = subkey(seed, "perceptual"), len(train.images)
    half = np.sort(permutation(key, 0, n)[: n // 2].numpy())
    some = Images(train.images[half], train.labels[half])
    yield from classifier.train_classifier(state, some, BATCH, key)


NETS: Choices[Callable[[Loss, Dataset], perceptual.Perceptual]] = {
    "lpips": _lpips,
    "classifier": _label_net,
}
