"""Stage ``invert@k``: real images sent to noise by a teacher -> data/inverted_k.zarr.

Pairs of (real image, its noise), in the pair store's format with the noise stored: config G of
RF++ (arXiv 2405.20320).  Resumable shard by shard, like ``generate``.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from pipeline import generate, stage

if TYPE_CHECKING:
    from rfpp_core.params import Finetuned, Params


def item_of(config: Params, k: str) -> Finetuned:
    """The fine-tuning named on the command line."""
    return stage.entry(config.finetunes, k, "finetune")


def path_of(k: str) -> Path:
    return Path(f"data/inverted_{k}.zarr")


def order(k: str) -> generate.Order:
    """The pairs of a fine-tuning."""
    from pipeline import training
    from rfpp_core import data, params
    from rfpp_core.pair_spec import PairSpec

    config = params.load()
    teacher = Path(f"models/{item_of(config, k).teacher}.safetensors")
    digest, about = training.read_model(teacher)
    images, section, arch = data.about(stage.IMAGES), config.invert, about["architecture"]
    spec = PairSpec(
        teacher=digest,
        solver=section.solver,
        nfe=section.nfe,
        grid=section.grid,
        guidance=1.0,
        classes=arch["classes"],
        seed=0,
        shape=tuple(arch["shape"]),
        micro_batch=section.micro_batch,
        shard=section.shard,
        start=about.get("start", 1.0),
        source=images["digest"],
        noise_kind="stored",
    )
    arguments = (str(teacher.resolve()), str(stage.IMAGES.resolve()))
    n = data.count(stage.IMAGES, "train")
    return generate.Order(spec, n, "pipeline.shards:invert_shard", arguments, path_of(k))


def run(k: str) -> None:
    generate.make(lambda: order(k))


if __name__ == "__main__":
    stage.main(run, "name")
