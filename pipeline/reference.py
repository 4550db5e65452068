"""Stage ``reference``: what real images look like to the metric.

data/images.zarr -> models/features.safetensors (the feature net) and data/reference.npz (features
of both splits, and the two real rows of every table).
"""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline import stage
from rfpp_core import checkpoint, data, features, files, metrics, params
from rfpp_core.noise import subkey, uniform

NET = Path("models/features.safetensors")
REFERENCE = Path("data/reference.npz")

Split = dict[str, NDArray[np.float64]]  # features (N, 64) by split


def run() -> None:
    config = params.load()
    about, train, held = (
        data.about(stage.IMAGES),
        data.read(stage.IMAGES, "train"),
        data.read(stage.IMAGES, "held_out"),
    )
    torch.set_num_threads(2)  # the same net whatever the machine's number of cores
    section = config.features
    net = features.train_classifier(
        train, about["classes"], section.steps, section.batch, section.lr, config.dataset.seed
    )
    accuracy = features.accuracy(net, held)
    print(f"classifier: held-out accuracy {accuracy:.4f}")
    document = {
        "features": section.name,
        "channels": about["shape"][0],
        "classes": about["classes"],
        "held_out_accuracy": accuracy,
        "images": about["digest"],
        "seed": config.dataset.seed,
    }
    checkpoint.save(NET, net.state_dict(), document)
    real = {name: features.extract(net, torch.from_numpy(part.images))
            for name, part in (("train", train), ("held_out", held))}  # fmt: skip
    buffer = io.BytesIO()
    np.savez(buffer, **real, **_real_rows(real, config))  # type: ignore[arg-type]
    files.write_atomic(REFERENCE, lambda part: part.write_bytes(buffer.getvalue()))


def _real_rows(real: Split, config: params.Params) -> Split:
    """Metrics of real images: the training set (floor) and the held-out set.

    Frechet distances are those of bootstraps of n images.  A bootstrap repeats images, which
    distorts KID and makes neighbours of copies, so the held-out set's KID, precision and recall
    are those of its distinct images; the training set against itself has none.
    """
    rows = {}
    section = config.evaluate
    distinct = distances(real, real["held_out"], section.neighbours)
    for row, part in (("floor", "train"), ("held_out_row", "held_out")):
        found = []
        for i in range(section.seeds):
            some = resample(real[part], section.n, config.dataset.seed, f"{row} {i}")
            fd, fd_held_out = (_frechet(real[to], some) for to in ("train", "held_out"))
            others = distinct[2:] if part == "held_out" else (np.nan,) * 3
            found.append((fd, fd_held_out, *others))
        rows[row] = np.array(found)
    return rows


def distances(
    real: Split, fake: NDArray[np.float64], neighbours: int
) -> tuple[float, float, float, float, float]:
    """Frechet distances to the training and to the held-out split; to the training split also KID
    on standardised features, precision and recall."""
    train = real["train"]
    scale = metrics.standardizer(train)
    kid = metrics.kid(scale(fake), scale(train))
    pr = metrics.precision_recall(train, fake, neighbours)
    return _frechet(train, fake), _frechet(real["held_out"], fake), kid, *pr


def _frechet(real: NDArray[np.float64], fake: NDArray[np.float64]) -> float:
    return metrics.frechet(metrics.gaussian(fake), metrics.gaussian(real))


def resample(rows: NDArray[np.float64], n: int, seed: int, purpose: str) -> NDArray[np.float64]:
    """A bootstrap sample of n rows."""
    pick = uniform(subkey(seed, purpose), torch.arange(n)) * len(rows)
    chosen: NDArray[np.float64] = rows[pick.long().numpy()]
    return chosen


def load_net() -> features.Classifier:
    """The feature net of the metric."""
    tensors, about = checkpoint.load(NET, "dvc repro reference")
    net = features.Classifier(about["channels"], about["classes"])
    checkpoint.load_into(net, tensors, str(NET))
    return net.eval()


if __name__ == "__main__":
    stage.main(run)
