"""Stage ``finetune@k``: inverted real images -> models/flowk.safetensors, trained further.

With ``finetune.mix`` above 0, that share of every batch are pairs of a round instead.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from pipeline.stages import invert, reflow
from pipeline.work import training_job, workdir
from rfpp_core.config import params
from rfpp_core.errors import UserError
from rfpp_core.images.buffers import Shelf
from rfpp_core.pairs.store import PairStore
from rfpp_core.sampling.sampler import Recipe
from rfpp_core.storage import checkpoint
from rfpp_core.training import couplings


def job(k: str) -> training_job.Job:
    config = params.load()
    item = invert.item_of(config, k)
    teacher, _ = training_job.read_model(Path(f"models/{item.teacher}.safetensors"))
    digest, about = training_job.read_model(_start(item))
    store, pairs = PairStore.open(invert.path_of(k)), PairStore.open(reflow.pairs_path(item.pairs))
    if store.spec.teacher != teacher:
        raise UserError(f"{invert.path_of(k)} was made by another teacher than {item.teacher}; "
                        f"run `dvc repro invert@{k}`")  # fmt: skip
    content: dict[str, Any] = {
        "inverted": store.digest(decode=False), "n": store.n, "coupling": "stored",
    }  # fmt: skip
    if config.finetune.mix:
        content["pairs"] = pairs.digest(decode=False)
    return training_job.Job(
        name=f"finetune@{k}",
        params=config,
        section=config.finetune,
        data=content,
        architecture=about["architecture"],
        parents={"teacher": teacher, "flow": digest},
        forwards=store.n * Recipe(store.spec.solver, store.spec.nfe).forwards,
        inherited=about["provenance"]["budget_with_ancestors"],
        adopted=(*store.adopted, *pairs.adopted),
    )


def load(k: str, shelf: Shelf) -> training_job.Loaded:
    config = params.load()
    item, store = invert.item_of(config, k), PairStore.open(invert.path_of(k))
    shelf = replace(shelf, limit=shelf.limit / 2) if config.finetune.mix else shelf  # of two sets
    images, labels, noise = store.read_all(shelf)
    assert noise is not None
    y = torch.from_numpy(labels).long() if store.spec.classes else None
    coupling = couplings.stored(torch.from_numpy(noise))
    if config.finetune.mix:
        pairs = PairStore.open(reflow.pairs_path(item.pairs))
        made = pairs.read_all(replace(shelf, folder=shelf.folder / "pairs"))
        coupling = couplings.mixed(
            coupling,
            torch.from_numpy(made.images),
            torch.from_numpy(made.labels).long(),
            config.finetune.mix,
            reflow.coupling_of(pairs, made.noise),
        )
    weights = checkpoint.load(_start(item)).tensors
    return training_job.Loaded(torch.from_numpy(images), y, coupling, weights)


def _start(item: params.Finetuned) -> Path:
    return Path(f"models/{item.flow}.safetensors")


def run(k: str) -> None:
    training_job.run(partial(job, k), partial(load, k), f"flow{k}")


if __name__ == "__main__":
    workdir.main(run, "name")
