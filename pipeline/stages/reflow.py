"""Stage ``reflow@k``: data/pairs_k.zarr -> models/flowk.safetensors, the k-rectified flow."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.work import training_job, workdir
from rfpp_core.config import params
from rfpp_core.config.build import Choices
from rfpp_core.errors import UserError
from rfpp_core.images.buffers import Shelf
from rfpp_core.pairs.store import PairStore
from rfpp_core.sampling.sampler import Recipe
from rfpp_core.storage import checkpoint
from rfpp_core.training import couplings
from rfpp_core.training.couplings import Coupling


def round_of(config: params.Params, k: str) -> params.Round:
    """The round named on the command line."""
    return workdir.entry(config.rounds, k, "round")


def pairs_path(k: str) -> Path:
    return Path(f"data/pairs_{k}.zarr")


def teacher_path(config: params.Params, k: str) -> Path:
    return Path(f"models/{round_of(config, k).teacher}.safetensors")


def job(k: str) -> training_job.Job:
    config = params.load()
    teacher = teacher_path(config, k)
    digest, about = training_job.read_model(teacher)
    store = PairStore.open(pairs_path(k))
    if store.spec.teacher not in (digest, ""):  # "": imported, of a teacher not known here
        raise UserError(f"{pairs_path(k)} was made by another teacher than {teacher}; "
                        f"run `dvc repro generate@{k}`")  # fmt: skip
    _check_fit(store, about["architecture"], teacher)
    guidance = store.spec.guidance if store.spec.classes else 1.0
    return training_job.Job(
        name=f"reflow@{k}",
        params=config,
        section=config.reflow,
        data={
            "pairs": store.digest(decode=False),
            "n": store.n,
            "coupling": store.spec.noise_kind,
        },
        architecture=about["architecture"],
        parents={"teacher": digest},
        forwards=store.n * Recipe(store.spec.solver, store.spec.nfe, guidance=guidance).forwards,
        inherited=about["provenance"]["budget_with_ancestors"],
        adopted=tuple(store.adopted),
    )


def _check_fit(store: PairStore, arch: dict[str, Any], teacher: Path) -> None:
    """Imported pairs may be of other images than the teacher's."""
    spec, shape, classes = store.spec, tuple(arch["shape"]), arch["classes"]
    if spec.shape != shape:
        raise UserError(f"{store.path} holds images of {'x'.join(map(str, spec.shape))}, but "
                        f"{teacher} is of {'x'.join(map(str, shape))}")  # fmt: skip
    if bool(spec.classes) != bool(classes) or spec.classes > classes:
        raise UserError(f"{store.path} has labels of {spec.classes or 'no'} classes, but "
                        f"{teacher} of {classes or 'none'}")  # fmt: skip


def load(k: str, shelf: Shelf) -> training_job.Loaded:
    config, store = params.load(), PairStore.open(pairs_path(k))
    pairs = store.read_all(shelf)
    y = torch.from_numpy(pairs.labels).long() if store.spec.classes else None
    from_teacher = config.reflow.init == "teacher"
    weights = checkpoint.load(teacher_path(config, k)).tensors if from_teacher else None
    coupling = coupling_of(store, pairs.noise)
    return training_job.Loaded(torch.from_numpy(pairs.images), y, coupling, weights)


def coupling_of(store: PairStore, noise: NDArray[np.float32] | None) -> Coupling:
    """The store's own: noise by its seed, or as it holds it."""
    return COUPLINGS[store.spec.noise_kind](store.spec.seed, noise)


COUPLINGS: Choices[Callable[[int, NDArray[np.float32] | None], Coupling]] = {
    "seeded": lambda seed, noise: couplings.seeded(seed),
    "stored": lambda seed, noise: couplings.stored(torch.from_numpy(noise)),
}


def run(k: str) -> None:
    training_job.run(partial(job, k), partial(load, k), f"flow{k}")


if __name__ == "__main__":
    workdir.main(run, "round")
