"""Stage ``invert@k``: real images sent to noise by a teacher -> data/inverted_k.zarr.

Pairs of (real image, its noise), in the pair store's format with the noise stored: config G of
RF++ (arXiv 2405.20320).  Resumable shard by shard, like ``generate``.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.work import pair_job, workdir

if TYPE_CHECKING:
    from rfpp_core.config.params import Finetuned, Params


def item_of(config: Params, k: str) -> Finetuned:
    """The fine-tuning named on the command line."""
    return workdir.entry(config.finetunes, k, "finetune")


def path_of(k: str) -> Path:
    return Path(f"data/inverted_{k}.zarr")


def order(k: str) -> pair_job.Order:
    """The pairs of a fine-tuning."""
    from pipeline.work import training_job
    from rfpp_core.config import params
    from rfpp_core.images import store as image_store
    from rfpp_core.pairs.spec import PairSpec

    config = params.load()
    teacher = Path(f"models/{item_of(config, k).teacher}.safetensors")
    digest, about = training_job.read_model(teacher)
    images, section, arch = image_store.about(workdir.IMAGES), config.invert, about["architecture"]
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
    arguments = (str(teacher.resolve()), str(workdir.IMAGES.resolve()))
    n = image_store.count(workdir.IMAGES, "train")
    return pair_job.Order(spec, n, "pipeline.workers.tasks:invert_shard", arguments, path_of(k))


def run(k: str) -> None:
    pair_job.make(lambda: order(k))


if __name__ == "__main__":
    workdir.main(run, "name")
