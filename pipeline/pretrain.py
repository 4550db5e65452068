"""Stage ``pretrain``: data/images.zarr -> models/flow1.safetensors, the 1-rectified flow."""

from __future__ import annotations

import torch
from torch import Tensor

from pipeline import stage, training
from rfpp_core import build, couplings, data, params
from rfpp_core.couplings import Coupling


def job() -> training.Job:
    config, about = params.load(), data.about(stage.IMAGES)
    return training.Job(
        name="pretrain",
        params=config,
        section=config.pretrain,
        data={"images": about["digest"], "part": "train"},
        architecture=build.architecture(config.network, about["shape"], about["classes"]),
        parents={},
        forwards=0,
        inherited=0,
    )


def load() -> tuple[Tensor, Tensor | None, Coupling, None]:
    part, conditional = data.read(stage.IMAGES, "train"), params.load().network.conditional
    labels = torch.from_numpy(part.labels).long() if conditional else None
    return torch.from_numpy(part.images), labels, couplings.independent, None


def run() -> None:
    training.run(job, load, "flow1")


if __name__ == "__main__":
    stage.main(run)
