"""Stage ``reference``: what real images look like to the metrics.

data/images.zarr -> models/features.safetensors (the classifier, if there is one, and what the
feature nets are) and data/reference.npz (for every feature net the features of both splits, and
the two real rows of its table).
"""

from __future__ import annotations

import hashlib
import io
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline import console
from pipeline.work import identity as code
from pipeline.work import workdir
from rfpp_core import runtime
from rfpp_core.config import params
from rfpp_core.errors import UserError
from rfpp_core.evaluation import classifier as features
from rfpp_core.evaluation import distances as measures
from rfpp_core.evaluation import inception
from rfpp_core.images import store as image_store
from rfpp_core.rng import subkey, uniform
from rfpp_core.storage import checkpoint, files

NET = Path("models/features.safetensors")
REFERENCE = Path("data/reference.npz")
MOST = 10_000  # images of a set that KID, precision and recall look at: their cost is its square

Array = NDArray[np.float32]
Extract = Callable[[Tensor], Tensor]  # uint8 images (B, C, H, W) -> features (B, D)
ROWS = ("floor", "held_out_row")  # the two real rows of a table
SPLITS: tuple[image_store.Split, ...] = ("train", "held_out")
BLOCK = 20  # parts of a split whose features are kept together
FEATURES = code.Name("rfpp_core.evaluation.classifier", "extract")
NETS = {
    "classifier": code.Name("rfpp_core.evaluation.classifier", "Classifier"),
    "pixels": code.Name("rfpp_core.evaluation.classifier", "pooled_pixels"),
    "inception": code.Name("rfpp_core.evaluation.inception", "load"),
    "inception_clean": code.Name("rfpp_core.evaluation.inception", "load"),
}
CLASSIFIER = [
    code.Name("rfpp_core.evaluation.classifier", name)
    for name in ("new_classifier", "train_classifier", "ClassifierTraining")
]


class Real(NamedTuple):
    """Real images in one feature net: features (N, D) of both splits and their moments."""

    train: Array
    held_out: Array
    moments: tuple[measures.Gaussian, measures.Gaussian]


def run() -> None:
    config = params.load()
    section, about = config.features, image_store.about(workdir.IMAGES)
    parts = {part: image_store.read(workdir.IMAGES, part) for part in SPLITS}
    runtime.exact()
    torch.set_num_threads(2)  # the same net whatever the machine's number of cores
    document: dict[str, Any] = {
        "features": described(section),
        "shape": about["shape"],
        "classes": about["classes"],
        "images": about["digest"],
        "seed": config.dataset.seed,
    }
    weights: dict[str, Tensor] = {}
    classifier = None
    if "classifier" in section.nets:
        classifier = _classifier(config, parts["train"], about)
        weights, accuracy = (
            classifier.state_dict(),
            features.accuracy(classifier, parts["held_out"]),
        )
        document["held_out_accuracy"] = accuracy
        print(f"classifier: held-out accuracy {accuracy:.4f}")
    checkpoint.save(NET, weights, document)
    arrays: dict[str, NDArray[Any]] = {}
    for net, extract in extractors(section, classifier).items():
        identity = {
            "net": net,
            "weights": _net_digest(net, section, weights),
            "images": about["digest"],
            "code": code.digests([FEATURES, NETS[net]], ()),
        }
        with workdir.staging("features", identity) as work:
            real = real_of(*(_features(net, extract, parts[p].images, work.path / p)
                             for p in SPLITS))  # fmt: skip
        found = {"train": real.train, "held_out": real.held_out, **_real_rows(real, config)}
        arrays |= {f"{net}/{name}": array for name, array in found.items()}
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)  # type: ignore[arg-type]
    files.write_atomic(REFERENCE, lambda part: part.write_bytes(buffer.getbuffer()))


def _classifier(
    config: params.Params, train: image_store.Images, about: dict[str, Any]
) -> features.Classifier:
    """The classifier, trained, resumed, or found finished."""
    if not about["classes"]:
        raise UserError("features.nets has classifier, which learns labels, but the images have "
                        "none; use inception or, as a last resort, pixels")  # fmt: skip
    section, (channels, side, _), seed = config.features, about["shape"], config.dataset.seed
    identity = {
        "classifier": {"steps": section.steps, "batch": section.batch, "lr": section.lr},
        "images": about["digest"],
        "classes": about["classes"],
        "seed": seed,
        "code": code.digests(CLASSIFIER, ()),
    }
    net = features.new_classifier(channels, about["classes"], side, seed)
    state = features.ClassifierTraining(net, section.steps, section.lr)
    with workdir.staging("classifier", identity) as work:
        if saved := checkpoint.load_state(work.path, section.steps, print):
            state.restore(saved.tensors, saved.about)
            left = section.steps - state.step
            print(f"classifier: {f'resumes at step {state.step}' if left else 'finished before'}")
        saver = workdir.Saver(work.path, state, dict)
        with console.bar("classifier", section.steps, "step", state.step) as bar:
            for step in features.train_classifier(state, train, section.batch, seed):
                bar.update()
                saver.maybe(done=step == section.steps)
    return net


def _features(net: str, extract: Extract, images: NDArray[np.uint8], folder: Path) -> Array:
    """Features (N, D) of images, block by block; those that are staged are read."""
    found = []
    with console.bar(f"features {net}", len(images), "img") as bar:
        for start in range(0, len(images), size := BLOCK * features.part_of(images.shape[2:])):
            block = torch.from_numpy(images[start : start + size])
            found.append(_block(folder / f"{start:08d}.safetensors", extract, block))
            bar.update(len(block))
    return np.concatenate(found)


def _block(file: Path, extract: Extract, images: Tensor) -> Array:
    if file.exists():
        with suppress(UserError):  # damaged: computed again
            return checkpoint.load(file).tensors["features"].numpy()
    block = features.extract(extract, images)
    checkpoint.save(file, {"features": torch.from_numpy(block)}, {})
    return block


def _net_digest(net: str, section: params.Features, weights: dict[str, Tensor]) -> str:
    """What a feature net is, beside its code."""
    if net == "classifier":
        return checkpoint.digest(weights)
    if net.startswith("inception"):
        return section.inception_sha256 or inception.WEIGHTS.sha256
    return ""


def extractors(
    section: params.Features, classifier: features.Classifier | None
) -> dict[str, Extract]:
    """The feature nets that the params name, in that order."""
    device = runtime.device()
    found: dict[str, Extract] = {}
    for name in section.nets:
        if name == "classifier":
            assert classifier is not None
            found[name] = classifier.of_uint8
        elif name == "pixels":
            print("rfpp: fd_pixels compares averaged pixels: it sees neither detail nor content; "
                  "prefer inception or a classifier", file=sys.stderr)  # fmt: skip
            found[name] = features.pooled_pixels
        else:
            found[name] = inception.load(
                section.inception_path, section.inception_sha256, name == "inception_clean", device
            )
    return found


def described(section: params.Features) -> dict[str, Any]:
    """What of the section determines features: no path."""
    return section.model_dump(mode="json", exclude={"inception_path"}, exclude_defaults=True)


def real_of(train: Array, held_out: Array) -> Real:
    """Features of both splits with their moments."""
    return Real(train, held_out, (measures.gaussian(train), measures.gaussian(held_out)))


def _real_rows(real: Real, config: params.Params) -> dict[str, NDArray[Any]]:
    """Metrics of real images: the training set (floor) and the held-out set.

    Frechet distances are those of bootstraps of n images.  A bootstrap repeats images, which
    distorts KID and makes neighbours of copies, so the held-out set's KID, precision and recall
    are those of its distinct images; the training set against itself has none.
    """
    rows = {}
    section = config.evaluate
    distinct = distances(real, real.held_out, section.neighbours)
    for row, part in zip(ROWS, (real.train, real.held_out), strict=True):
        found = []
        for i in range(section.seeds):
            some = measures.gaussian(_resample(part, section.n, config.dataset.seed, f"{row} {i}"))
            fd, fd_held_out = (measures.frechet(some, to) for to in real.moments)
            others = distinct[2:] if part is real.held_out else (np.nan,) * 3
            found.append((fd, fd_held_out, *others))
        rows[row] = np.array(found)
    return rows


def distances(
    real: Real, fake: Array, neighbours: int
) -> tuple[float, float, float, float, float]:
    """Frechet distances to the training and to the held-out split; to the training split also KID
    on standardised features, precision and recall (of at most 10,000 images a set)."""
    of_fake = measures.gaussian(fake)
    fd, fd_held_out = (measures.frechet(of_fake, to) for to in real.moments)
    train, fakes = (_spread(rows).astype(np.float64) for rows in (real.train, fake))
    scale = measures.standardizer(train)
    kid = measures.kid(scale(fakes), scale(train))
    return fd, fd_held_out, kid, *measures.precision_recall(train, fakes, neighbours)


def _spread(rows: Array) -> Array:
    """At most 10,000 rows, evenly."""
    if len(rows) <= MOST:
        return rows
    some: Array = rows[np.linspace(0, len(rows) - 1, MOST).round().astype(int)]
    return some


def _resample(rows: Array, n: int, seed: int, purpose: str) -> Array:
    """A bootstrap sample of n rows."""
    pick = uniform(subkey(seed, purpose), torch.arange(n)) * len(rows)
    chosen: Array = rows[pick.long().numpy()]
    return chosen


class Reference:
    """The feature nets and what real images look like to each."""

    def __init__(self, config: params.Params) -> None:
        section = config.features
        tensors, about, _ = checkpoint.load(NET, "dvc repro reference")
        if about.get("features") != described(section):
            have = (about.get("features") or {}).get("nets", params.Features().nets)
            raise UserError(
                f"{NET} is of {', '.join(have)}, made with other features params than "
                f"now ({', '.join(section.nets)}); run `dvc repro reference`"
            )
        self.classifier = None
        if "classifier" in section.nets:
            channels, side, _ = about["shape"]
            self.classifier = features.Classifier(channels, about["classes"], side)
            checkpoint.load_into(self.classifier, tensors, str(NET))
            self.classifier.eval()
        self.extractors = extractors(section, self.classifier)
        arrays = np.load(REFERENCE)
        self.real: dict[str, Real] = {
            net: real_of(arrays[f"{net}/train"], arrays[f"{net}/held_out"]) for net in section.nets
        }
        self.digests: dict[str, str] = {
            net: self._digest(net, section, tensors) for net in section.nets
        }
        self.rows = {net: {row: arrays[f"{net}/{row}"] for row in ROWS} for net in section.nets}

    def _digest(self, net: str, section: params.Features, tensors: dict[str, Tensor]) -> str:
        """What a distance in a feature net depends on, beside the samples."""
        real = [hashlib.sha256(part.tobytes()).hexdigest() for part in self.real[net][:2]]
        return files.digest([net, _net_digest(net, section, tensors), *real])


if __name__ == "__main__":
    workdir.main(run)
