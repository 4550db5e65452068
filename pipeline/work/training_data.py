"""What a training learns from: the real images or a pair store, or one of each (a mix)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pipeline import artifacts
from pipeline.work import ledger
from rfpp_core import runtime
from rfpp_core.config import build, objective
from rfpp_core.config.flow import IMAGES, Domains
from rfpp_core.config.params import Params
from rfpp_core.config.recipe import Recipe
from rfpp_core.errors import UserError
from rfpp_core.images import loader
from rfpp_core.images import store as image_store
from rfpp_core.images.buffers import Buffers
from rfpp_core.images.store import Images
from rfpp_core.pairs.store import PairStore
from rfpp_core.sampling.sampler import SamplerConfig
from rfpp_core.storage import checkpoint
from rfpp_core.training.couplings import Coupling
from rfpp_core.training.couplings.flipped import flipped
from rfpp_core.training.couplings.matched import Matched, Source
from rfpp_core.training.couplings.mixed import mixed
from rfpp_core.training.couplings.shuffled import shuffled


class DataSet(NamedTuple):
    """What a training learns from, by content.

    ``coupling`` is what the recipe says for real images, ``transfer`` for those of two domains,
    ``seeded`` or ``stored`` for pairs, whose noise has a seed or lies in the store.
    """

    path: Path
    digest: str
    n: int
    coupling: str
    purpose: str  # which stream of random numbers the training draws from
    spent: dict[str, int]  # network forwards of its making, an image each; see ``ledger``
    adopted: tuple[Any, ...] = ()  # what `rfpp work adopt` recorded about it
    domains: Mapping[str, list[int]] | None = None  # source and target, of images that translate

    @property
    def identity(self) -> dict[str, Any]:
        """What determines a training on it; domains only where there are any, so that they are
        in no identity of a flow from noise."""
        found = {"digest": self.digest, "n": self.n, "coupling": self.coupling,
                 "purpose": self.purpose}  # fmt: skip
        return found if self.domains is None else {**found, "domains": dict(self.domains)}


def data_of(
    name: str,
    params: Params,
    recipe: Recipe,
    start: Path,
    architecture: Mapping[str, Any],
    domains: Domains | None = None,
) -> DataSet:
    """The real images, or a row of ``pairs``, for a network of the model file ``start``.

    Args:
        name: of the set.
        params: params.
        recipe: of the training.
        start: the model file.
        architecture: of its metadata.
        domains: between which images are translated, if they are.

    Raises:
        UserError: if it does not fit the network, or is not what params say.
    """
    images = image_store.metadata(artifacts.IMAGES)
    if name == IMAGES:
        check_fit(artifacts.IMAGES, images["shape"], None, start, architecture)
        if domains is not None:
            return _of_domains(domains, images["digest"])
        n = image_store.count(artifacts.IMAGES, "train")
        return DataSet(artifacts.IMAGES, images["digest"], n, recipe.coupling, "pretrain", {})
    path, teacher = artifacts.pairs(name), artifacts.model(params.pairs[name].teacher)
    digest, about = read_model(teacher)
    store = PairStore.open(path)
    spec, made = store.spec, store.digest(decode=False)
    if spec.teacher not in (digest, ""):  # "": imported, of a teacher not known here
        raise UserError(f"{path} was made by another teacher than {teacher}; "
                        f"run `dvc repro generate@{name}`")  # fmt: skip
    check_fit(path, spec.shape, spec.classes, start, architecture)
    if wrong := _differs(name, params, store, made):
        raise UserError(f"{path} is not what pairs.{name} says ({wrong}); run `dvc repro "
                        f"generate@{name}`")  # fmt: skip
    guidance = spec.guidance if spec.classes else 1.0
    forwards = store.n * SamplerConfig(spec.solver, spec.nfe, guidance=guidance).forwards
    inverted = spec.source == images["digest"] and not spec.domain
    return DataSet(
        path=path,
        digest=made,
        n=store.n,
        coupling=spec.noise_kind,
        purpose="finetune" if inverted else "reflow",
        spent=ledger.union(ledger.of(about, digest), {ledger.key("pairs", made): forwards}),
        adopted=tuple(store.adopted),
        domains=about.get("domains"),
    )


def _of_domains(domains: Domains, digest: str) -> DataSet:
    """The images of two domains; there are as many as in the target, which epochs go through."""
    sides = {"source": domains.source, "target": domains.target}
    counts = {side: len(image_store.rows_of(artifacts.IMAGES, "train", wanted))
              for side, wanted in sides.items()}  # fmt: skip
    for side, wanted in sides.items():
        if not counts[side]:
            raise UserError(f"{artifacts.IMAGES} has no training images of the classes "
                            f"{', '.join(map(str, wanted))} (domains.{side}); data/summary.json "
                            f"lists those there are, from 0")  # fmt: skip
    document = domains.model_dump(mode="json")
    return DataSet(
        artifacts.IMAGES, digest, counts["target"], "transfer", "pretrain", {}, domains=document
    )


def _differs(name: str, params: Params, store: PairStore, digest: str) -> str:
    """What of a store is otherwise than its row says."""
    from pipeline.work import pair_job  # which reads models by this module

    if params.pairs[name].source == "import":
        wanted = params.pairs[name].digest
        return "" if digest == wanted else f"digest {digest} instead of {wanted}"
    job = pair_job.job_of(name, params)
    if store.n != job.n:
        return f"n {store.n} instead of {job.n}"
    return store.spec.differences(job.spec)


def check_fit(
    path: Path, shape: Sequence[int], classes: int | None, model: Path, arch: Mapping[str, Any]
) -> None:
    """Refuses data of other images than a model's, or other labels than it knows."""
    if tuple(shape) != tuple(arch["shape"]):
        raise UserError(f"{path} holds images of {'x'.join(map(str, shape))}, but the network is "
                        f"of {'x'.join(map(str, arch['shape']))} ({model}); `dvc repro` rebuilds "
                        f"what was exchanged")  # fmt: skip
    if classes is not None and (
        bool(classes) != bool(arch["classes"]) or classes > arch["classes"]
    ):
        raise UserError(f"{path} has labels of {classes or 'no'} classes, but the network of "
                        f"{arch['classes'] or 'none'} ({model})")  # fmt: skip


class Loaded(NamedTuple):
    """A set in memory (or paged in): images uint8 (N, C, H, W), labels int64 (N,) or None."""

    images: Tensor
    labels: Tensor | None
    coupling: Coupling


def reader_of(coupling: str) -> str:
    """Which reader a set needs."""
    if coupling in objective.PAIRED:
        return "pairs"
    if coupling in objective.TRANSFERS:
        return "domains"
    return "matched" if coupling in objective.MATCHINGS else "images"


def read_images(part: DataSet, recipe: Recipe, conditional: bool, buffers: Buffers) -> Loaded:
    """The training split of the real images."""
    found = image_store.read(part.path, "train", buffers)
    labels = torch.from_numpy(found.labels).long() if conditional else None
    coupling = objective.COUPLINGS[recipe.coupling](recipe)
    return Loaded(torch.from_numpy(found.images), labels, coupling)


def read_matched(part: DataSet, recipe: Recipe, conditional: bool, buffers: Buffers) -> Loaded:
    """The training split of the real images, for a coupling that looks at several batches of it;
    on the device already, so that the coupling and the trainer share one copy."""
    source = source_of(image_store.read(part.path, "train", buffers), recipe, conditional)
    matching = objective.MATCHINGS[recipe.coupling](recipe)
    return Loaded(source.images, source.labels, Matched(source, matching))


def source_of(found: Images, recipe: Recipe, conditional: bool) -> Source:
    """Images as a matching takes them, on this process's device."""
    labels = torch.from_numpy(found.labels).long() if conditional else None
    images = loader.place(torch.from_numpy(found.images), runtime.device())
    return Source(images, labels, recipe.batch, runtime.process_rank())


def read_domains(part: DataSet, recipe: Recipe, conditional: bool, buffers: Buffers) -> Loaded:
    """The training images of the target; those of the source are in the coupling, on the device
    already."""
    assert part.domains is not None
    halves = replace(buffers, limit=buffers.limit / 2)
    other = replace(halves, folder=buffers.folder / "source")
    target = image_store.read(part.path, "train", halves, part.domains["target"])
    source = image_store.read(part.path, "train", other, part.domains["source"])
    placed = loader.place(torch.from_numpy(source.images), runtime.device())
    coupling = objective.TRANSFERS[part.coupling](placed)
    return Loaded(torch.from_numpy(target.images), None, coupling)


def read_pairs(part: DataSet, recipe: Recipe, conditional: bool, buffers: Buffers) -> Loaded:
    """All pairs of a store; noise by its seed, or as the store holds it."""
    store = PairStore.open(part.path)
    found = store.read_all(buffers)
    labels = torch.from_numpy(found.labels).long() if conditional else None
    noise = None if found.noise is None else torch.from_numpy(found.noise)
    coupling = objective.PAIRED[store.spec.noise_kind](store.spec.seed, noise)
    return Loaded(torch.from_numpy(found.images), labels, coupling)


READERS = {
    "images": read_images,
    "matched": read_matched,
    "domains": read_domains,
    "pairs": read_pairs,
}


def varied(part: DataSet, loaded: Loaded, recipe: Recipe) -> Coupling:
    """The coupling of a set with what the recipe varies of it: flips, and the noise of pairs."""
    coupling, paired = loaded.coupling, reader_of(part.coupling) == "pairs"
    if paired and recipe.shuffled:
        seed = PairStore.open(part.path).spec.seed
        coupling = shuffled(coupling, len(loaded.images), seed)
    if recipe.flip:
        coupling = flipped(coupling)
    if paired and recipe.anneal.schedule != "none":
        coupling = objective.annealing(recipe.anneal, coupling)
    return coupling


def load(sets: Sequence[DataSet], recipe: Recipe, conditional: bool, buffers: Buffers) -> Loaded:
    """What a training learns from, the second set of a mix included."""
    if len(sets) > 1:
        buffers = replace(buffers, limit=buffers.limit / 2)  # of two sets
    found = []
    for i, part in enumerate(sets):
        here = replace(buffers, folder=buffers.folder / "mix") if i else buffers
        loaded = READERS[reader_of(part.coupling)](part, recipe, conditional, here)
        found.append(loaded._replace(coupling=varied(part, loaded, recipe)))
    if len(found) == 1:
        return found[0]
    first, second = found
    coupling = mixed(first.coupling, second.images, second.labels, recipe.mix, second.coupling)
    return first._replace(coupling=coupling)


def read_model(path: Path) -> tuple[str, dict[str, Any]]:
    """Digest of a model file's weights and architecture, and its metadata.

    Raises:
        UserError: naming the command that makes it.
    """
    loaded = checkpoint.load(path)
    metadata = loaded.metadata
    try:
        _ = metadata["architecture"]["shape"], int(metadata["provenance"]["budget_with_ancestors"])
    except (KeyError, TypeError, ValueError):
        raise UserError(f"{path} is not a model file of the pipeline (no architecture or budget "
                        f"in its metadata)") from None  # fmt: skip
    return build.flow_digest(loaded), metadata
