"""Stage ``pretrain``: the 1-rectified flow, trained on data/images.zarr or imported.

-> models/flow1.safetensors
"""

from __future__ import annotations

from pathlib import Path

import torch

from pipeline.work import training_job, workdir
from rfpp_core.config import build, params
from rfpp_core.images import store as image_store
from rfpp_core.images.buffers import Shelf
from rfpp_core.interop import importing
from rfpp_core.training import couplings

MODEL, CURVE = Path("models/flow1.safetensors"), Path("curves/flow1_loss.csv")


def job() -> training_job.Job:
    config, about = params.load(), image_store.about(workdir.IMAGES)
    return training_job.Job(
        name="pretrain",
        params=config,
        section=config.pretrain,
        data={"images": about["digest"], "part": "train", "coupling": "independent"},
        architecture=build.architecture(config.network, about["shape"], about["classes"]),
        parents={},
        forwards=0,
        inherited=0,
    )


def load(shelf: Shelf) -> training_job.Loaded:
    part, conditional = (
        image_store.read(workdir.IMAGES, "train", shelf),
        params.load().network.conditional,
    )
    labels = torch.from_numpy(part.labels).long() if conditional else None
    return training_job.Loaded(torch.from_numpy(part.images), labels, couplings.independent, None)


def take_in(section: params.Pretrain) -> None:
    """The checkpoint as it is: an EDM denoiser is a 1-rectified flow without training."""
    assert section.checkpoint is not None
    MODEL.parent.mkdir(exist_ok=True)
    importing.convert(
        Path(section.checkpoint), MODEL, job().architecture, section.checkpoint_sha256,
        say=lambda note: print(f"pretrain: {note}"),
    )  # fmt: skip
    CURVE.parent.mkdir(exist_ok=True)
    workdir.write_csv(CURVE, [{"step": 0, "loss": ""}])
    print(f"pretrain: {section.checkpoint} is flow1 (sha256 {section.checkpoint_sha256})")


def run() -> None:
    config = params.load()
    if config.pretrain.source == "import":
        take_in(config.pretrain)
    else:
        training_job.run(job, load, "flow1")


if __name__ == "__main__":
    workdir.main(run)
