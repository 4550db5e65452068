"""Stage ``reference``: what real images look like to the metrics.

data/images.zarr -> models/features.safetensors (the classifier, if there is one, and what the
feature nets are) and data/reference.npz (for every feature net the features of both splits, and
the two real rows of its table).
"""

from __future__ import annotations

import io
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline import artifacts, console
from pipeline.work import feature_nets, identity, workdir
from rfpp_core import runtime
from rfpp_core.config import params
from rfpp_core.config.params import Params
from rfpp_core.errors import UserError
from rfpp_core.evaluation import classifier
from rfpp_core.evaluation.classifier import Classifier
from rfpp_core.evaluation.extractors import Extract, part_of
from rfpp_core.evaluation.extractors import extract as extract_features
from rfpp_core.evaluation.reference import real_of, real_rows
from rfpp_core.images import store as image_store
from rfpp_core.images.store import Images
from rfpp_core.storage import checkpoint, files

SPLITS: tuple[image_store.Split, ...] = ("train", "held_out")
BLOCK = 20  # parts of a split whose features are staged together
FEATURES = identity.Name("rfpp_core.evaluation.extractors", "extract")
CLASSIFIER = [
    identity.Name("rfpp_core.evaluation.classifier", name)
    for name in ("new_classifier", "train_classifier", "ClassifierTraining")
]


def request(config: Params) -> dict[str, Any]:
    """All that DVC will record with the result."""
    chosen = config.evaluate.model_dump(mode="json", include={"n", "seeds", "neighbours"})
    images = image_store.metadata(artifacts.IMAGES)["digest"]
    features = config.features.model_dump(mode="json")
    return {"features": features, "evaluate": chosen, "seed": config.dataset.seed,
            "images": images}  # fmt: skip


@runtime.enough_memory("free the device or set RFPP_DEVICE=cpu")
def run() -> None:
    config = params.load()
    requested = request(config)
    section, about = config.features, image_store.metadata(artifacts.IMAGES)
    parts = {part: image_store.read(artifacts.IMAGES, part) for part in SPLITS}
    runtime.exact()
    torch.set_num_threads(2)  # the same net whatever the machine's number of cores
    document: dict[str, Any] = {
        "features": feature_nets.described(section),
        "shape": about["shape"],
        "classes": about["classes"],
        "images": about["digest"],
        "seed": config.dataset.seed,
    }
    weights: dict[str, Tensor] = {}
    net = None
    if "classifier" in section.nets:
        net = _classifier(config, parts["train"], about)
        weights, accuracy = net.state_dict(), classifier.accuracy(net, parts["held_out"])
        document["held_out_accuracy"] = accuracy
        print(f"classifier: held-out accuracy {accuracy:.4f}")
    arrays, device = dict[str, NDArray[Any]](), runtime.device()
    for name, extract in feature_nets.extractors(section, net).items():
        of_net = {
            "net": name,
            "weights": feature_nets.net_digest(name, section, weights),
            "images": about["digest"],
            "code": identity.digests([FEATURES, feature_nets.CODE[name]], ()),
        }
        with workdir.staging("features", of_net) as work:
            real = real_of(*(_features(name, extract, parts[p].images, work.path / p).to(device)
                             for p in SPLITS))  # fmt: skip
        of = config.evaluate
        rows = real_rows(real, of.n, of.seeds, of.neighbours, config.dataset.seed)
        found = {
            "train": real.train.cpu().numpy(),
            "held_out": real.held_out.cpu().numpy(),
            **rows,
        }
        arrays |= {f"{name}/{key}": array for key, array in found.items()}
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)  # type: ignore[arg-type]
    workdir.confirm(requested, request(params.load()))
    checkpoint.save(artifacts.FEATURES, weights, document)
    files.write_atomic(artifacts.REFERENCE, lambda part: part.write_bytes(buffer.getbuffer()))


def _classifier(config: Params, train: Images, metadata: dict[str, Any]) -> Classifier:
    """The classifier, trained, resumed, or found finished."""
    if not metadata["classes"]:
        raise UserError("features.nets has classifier, which learns labels, but the images have "
                        "none; use inception or, as a last resort, pixels")  # fmt: skip
    section, (channels, side, _), seed = config.features, metadata["shape"], config.dataset.seed
    document = {
        "classifier": {"steps": section.steps, "batch": section.batch, "lr": section.lr},
        "images": metadata["digest"],
        "classes": metadata["classes"],
        "seed": seed,
        "code": identity.digests(CLASSIFIER, ()),
    }
    net = classifier.new_classifier(channels, metadata["classes"], side, seed)
    state = classifier.ClassifierTraining(net, section.steps, section.lr)
    with workdir.staging("classifier", document) as work:
        if saved := checkpoint.load_state(work.path, section.steps, print):
            state.restore(saved.tensors, saved.metadata)
            left = section.steps - state.step
            print(f"classifier: {f'resumes at step {state.step}' if left else 'finished before'}")
        bar = console.bar("classifier", section.steps, "step", state.step)
        with workdir.Saver(work.path, state, dict) as saver, bar:
            for step in classifier.train_classifier(state, train, section.batch, seed):
                bar.update()
                saver.maybe(done=step == section.steps)
    return net


def _features(net: str, extract: Extract, images: NDArray[np.uint8], folder: Path) -> Tensor:
    """Features (N, D) of images, block by block; those that are staged are read."""
    found = []
    with console.bar(f"features {net}", len(images), "img") as bar:
        for start in range(0, len(images), size := BLOCK * part_of(images.shape[2:])):
            block = torch.from_numpy(images[start : start + size])
            found.append(_block(folder / f"{start:08d}.safetensors", extract, block))
            bar.update(len(block))
    return torch.cat(found)


def _block(file: Path, extract: Extract, images: Tensor) -> Tensor:
    if file.exists():
        with suppress(UserError):  # damaged: computed again
            return checkpoint.load(file).tensors["features"]
    block = extract_features(extract, images)
    checkpoint.save(file, {"features": block}, {})
    return block


if __name__ == "__main__":
    console.main(run)
