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
        train, about["classes"], section.steps, section.batch, section.lr, config.seed
    )
    accuracy = features.accuracy(net, held)
    print(f"classifier: held-out accuracy {accuracy:.4f}")
    document = {
        "features": section.name,
        "channels": about["shape"][0],
        "classes": about["classes"],
        "held_out_accuracy": accuracy,
        "images": about["digest"],
        "seed": config.seed,
    }
    checkpoint.save(NET, net.state_dict(), document)
    real = {name: features.extract(net, torch.from_numpy(part.images))
            for name, part in (("train", train), ("held_out", held))}  # fmt: skip
    buffer = io.BytesIO()
    np.savez(buffer, **real, **_real_rows(real, config))  # type: ignore[arg-type]
    files.write_atomic(REFERENCE, lambda part: part.write_bytes(buffer.getvalue()))


def _real_rows(
    real: dict[str, NDArray[np.float64]], config: params.Params
) -> dict[str, NDArray[np.float64]]:
    """Per metric: the training set bootstrapped at n, and the held-out set at n, against train."""
    rows = {}
    for row, part in (("floor", "train"), ("held_out_row", "held_out")):
        draws = [resample(real[part], config.evaluate.n, config.seed, f"{row} {i}")
                 for i in range(config.evaluate.seeds)]  # fmt: skip
        k = config.evaluate.neighbours
        rows[row] = np.array([distances(real["train"], some, k) for some in draws])
    return rows


def distances(
    train: NDArray[np.float64], fake: NDArray[np.float64], neighbours: int
) -> tuple[float, float, float, float]:
    """Frechet distance, KID on standardised features, precision and recall against train."""
    scale = metrics.standardizer(train)
    fd = metrics.frechet(metrics.gaussian(fake), metrics.gaussian(train))
    pr = metrics.precision_recall(train, fake, neighbours)
    return fd, metrics.kid(scale(fake), scale(train)), *pr


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
