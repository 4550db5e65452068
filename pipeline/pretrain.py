"""Stage ``pretrain``: the 1-rectified flow, trained on data/images.zarr or imported.

-> models/flow1.safetensors
"""

from __future__ import annotations

from pathlib import Path

import torch

from pipeline import stage, training
from rfpp_core import build, couplings, data, importing, params
from rfpp_core.shelf import Shelf

MODEL, CURVE = Path("models/flow1.safetensors"), Path("curves/flow1_loss.csv")


def job() -> training.Job:
    config, about = params.load(), data.about(stage.IMAGES)
    return training.Job(
        name="pretrain",
        params=config,
        section=config.pretrain,
        data={"images": about["digest"], "part": "train", "coupling": "independent"},
        architecture=build.architecture(config.network, about["shape"], about["classes"]),
        parents={},
        forwards=0,
        inherited=0,
    )


def load(shelf: Shelf) -> training.Loaded:
    part, conditional = data.read(stage.IMAGES, "train", shelf), params.load().network.conditional
    labels = torch.from_numpy(part.labels).long() if conditional else None
    return training.Loaded(torch.from_numpy(part.images), labels, couplings.independent, None)


def take_in(section: params.Pretrain) -> None:
    """The checkpoint as it is: an EDM denoiser is a 1-rectified flow without training."""
    assert section.checkpoint is not None
    MODEL.parent.mkdir(exist_ok=True)
    importing.convert(
        Path(section.checkpoint), MODEL, job().architecture, section.checkpoint_sha256,
        say=lambda note: print(f"pretrain: {note}"),
    )  # fmt: skip
    CURVE.parent.mkdir(exist_ok=True)
    stage.write_csv(CURVE, [{"step": 0, "loss": ""}])
    print(f"pretrain: {section.checkpoint} is flow1 (sha256 {section.checkpoint_sha256})")


def run() -> None:
    config = params.load()
    if config.pretrain.source == "import":
        take_in(config.pretrain)
    else:
        training.run(job, load, "flow1")


if __name__ == "__main__":
    stage.main(run)
