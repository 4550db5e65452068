"""One training: a row of ``flows``, staged, resumable, published.

What it learns from is one set, or two where the recipe mixes; each set is the real images or a
pair store.  Names of rows are in no identity: a renamed row, or two that say the same, compute
nothing twice.
"""

from __future__ import annotations

import os
import shutil
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from pydantic import ValidationError
from torch import Tensor

from pipeline import artifacts, console, settings
from pipeline.work import identity, ledger, perceptual_net, workdir
from pipeline.workers import launch
from rfpp_core import runtime
from rfpp_core.config import build
from rfpp_core.config.flow import IMAGES
from rfpp_core.config.network import Architecture
from rfpp_core.config.params import Params
from rfpp_core.config.recipe import Recipe
from rfpp_core.config.section import described
from rfpp_core.errors import UserError
from rfpp_core.images import loader
from rfpp_core.images import store as image_store
from rfpp_core.images.buffers import Buffers
from rfpp_core.images.loader import Batch
from rfpp_core.pairs.store import PairStore
from rfpp_core.rng import subkey
from rfpp_core.sampling.sampler import SamplerConfig
from rfpp_core.storage import checkpoint, files
from rfpp_core.training import distributed
from rfpp_core.training.couplings import Coupling
from rfpp_core.training.couplings.mixed import mixed
from rfpp_core.training.losses import LossFunction
from rfpp_core.training.trainer import (
    NonFiniteLoss,
    StepReport,
    TrainConfig,
    TrainState,
    train,
)

KIND = "train"  # of staged work
Row = dict[str, Any]  # of the loss curve


class DataSet(NamedTuple):
    """What a training learns from, by content.

    ``coupling`` is ``independent`` for real images (or what the recipe says), ``seeded`` or
    ``stored`` for pairs, whose noise has a seed or lies in the store.
    """

    path: Path
    digest: str
    n: int
    coupling: str
    purpose: str  # which stream of random numbers the training draws from
    spent: dict[str, int]  # network forwards of its making, an image each; see ``ledger``
    adopted: tuple[Any, ...] = ()  # what `rfpp work adopt` recorded about it

    @property
    def identity(self) -> dict[str, Any]:
        """What determines a training on it."""
        return {"digest": self.digest, "n": self.n, "coupling": self.coupling,
                "purpose": self.purpose}  # fmt: skip


@dataclass(frozen=True)
class Job:
    """A training, with all that determines its weights."""

    name: str  # of the flow, for messages
    params: Params
    recipe: Recipe
    sets: tuple[DataSet, ...]  # its data; and the second set of a mix
    start: Path  # model file of its initial weights
    start_digest: str
    architecture: dict[str, Any]
    spent: dict[str, int]  # network forwards of its ancestors; see ``ledger``

    def identity(self) -> dict[str, Any]:
        """What determines the weights; ``steps`` too if the rate depends on it."""
        recipe, architecture = self.recipe, build.architecture_of(self.architecture)
        document: dict[str, Any] = {
            "training": recipe.identity,
            "architecture": described(architecture),
            "data": [part.identity for part in self.sets],
            "start": self.start_digest,
            "seed": self.params.seed,
            "code": code_of(recipe, architecture, [part.coupling for part in self.sets]),
        }
        if recipe.decay == "constant":
            document["training"].pop("steps", None)
        if recipe.loss.perceptual != "none":
            document["perceptual"] = perceptual_net.identity(recipe.loss, self.params.dataset)
        return document

    def request(self) -> dict[str, Any]:
        """The identity and what it leaves out: all that DVC will record with the result."""
        return {**self.identity(), "recipe": self.recipe.model_dump(mode="json")}

    @property
    def seed(self) -> int:
        """Of order, noise, times and dropout."""
        return subkey(self.params.seed, self.sets[0].purpose)


def job_of(flow: str, params: Params) -> Job:
    """The training of a row of ``flows``, from params and the files it reads.

    Raises:
        UserError: if a file is missing, or is not what the row says.
    """
    row, recipe = params.flows[flow], params.recipe_of(flow)
    start = artifacts.model(row.start)
    digest, about = read_model(start)
    names = [row.data, row.mix] if params.uses_mix(flow) else [row.data]
    sets = tuple(data_of(name, params, recipe, about["architecture"]) for name in names)
    return Job(
        name=flow,
        params=params,
        recipe=recipe,
        sets=sets,
        start=start,
        start_digest=digest,
        architecture=about["architecture"],
        spent=ledger.union(ledger.of(about, digest), *(part.spent for part in sets)),
    )


def data_of(
    name: str, params: Params, recipe: Recipe, architecture: Mapping[str, Any]
) -> DataSet:
    """The real images, or a row of ``pairs``.

    Raises:
        UserError: if it does not fit the network, or was made by another teacher than params say.
    """
    images = image_store.metadata(artifacts.IMAGES)
    if name == IMAGES:
        _check_fit(artifacts.IMAGES, images["shape"], None, architecture)
        n = image_store.count(artifacts.IMAGES, "train")
        return DataSet(artifacts.IMAGES, images["digest"], n, recipe.coupling, "pretrain", {})
    path, teacher = artifacts.pairs(name), artifacts.model(params.pairs[name].teacher)
    digest, about = read_model(teacher)
    store = PairStore.open(path)
    spec, made = store.spec, store.digest(decode=False)
    if spec.teacher not in (digest, ""):  # "": imported, of a teacher not known here
        raise UserError(f"{path} was made by another teacher than {teacher}; "
                        f"run `dvc repro generate@{name}`")  # fmt: skip
    _check_fit(path, spec.shape, spec.classes, architecture)
    guidance = spec.guidance if spec.classes else 1.0
    forwards = store.n * SamplerConfig(spec.solver, spec.nfe, guidance=guidance).forwards
    inverted = spec.source == images["digest"]
    return DataSet(
        path=path,
        digest=made,
        n=store.n,
        coupling=spec.noise_kind,
        purpose="finetune" if inverted else "reflow",
        spent=ledger.union(ledger.of(about, digest), {ledger.key("pairs", made): forwards}),
        adopted=tuple(store.adopted),
    )


def _check_fit(
    path: Path, shape: Sequence[int], classes: int | None, arch: Mapping[str, Any]
) -> None:
    """Data of other images than the network's, or other labels than it knows."""
    if tuple(shape) != tuple(arch["shape"]):
        raise UserError(f"{path} holds images of {'x'.join(map(str, shape))}, but the network is "
                        f"of {'x'.join(map(str, arch['shape']))}")  # fmt: skip
    if classes is not None and (bool(classes) != bool(arch["classes"]) or classes > arch["classes"]):
        raise UserError(f"{path} has labels of {classes or 'no'} classes, but the network of "
                        f"{arch['classes'] or 'none'}")  # fmt: skip


def code_of(
    recipe: Recipe, architecture: Architecture, couplings: Sequence[str]
) -> dict[str, str]:
    """Digests of the code that determines the weights of a training, by module.

    Args:
        recipe: how it is trained.
        architecture: of which network.
        couplings: how noise belongs to the images of each set.
    """
    loss = recipe.loss
    chosen = {
        recipe.times.distribution, recipe.decay, recipe.precision, loss.name, architecture.arch,
        architecture.precond, *couplings,
    }  # fmt: skip
    if loss.perceptual != "none":
        chosen |= {loss.perceptual, loss.weighting}
    roots = [
        identity.Name("pipeline.work.training_job", "prepare"),
        identity.Name("rfpp_core.training.trainer", "train"),
    ]
    roots += [identity.Name("pipeline.work.training_job", READERS[kind].__name__)
              for kind in {_reader(coupling) for coupling in couplings}]  # fmt: skip
    return identity.digests(roots, chosen)


def code_now(document: Mapping[str, Any]) -> dict[str, str]:
    """What :func:`code_of` gives today for an identity that is staged.

    Raises:
        UserError: if it is of an earlier version.
    """
    try:
        couplings = [part["coupling"] for part in document["data"]]
        # log_every is no part of an identity; 1 fits any number of steps
        recipe = Recipe.model_validate({**document["training"], "log_every": 1})
    except (KeyError, TypeError, ValidationError):
        raise UserError("it was made by an earlier version of this project") from None
    return code_of(recipe, build.architecture_of(document["architecture"]), couplings)


class Loaded(NamedTuple):
    """A set in memory (or paged in): images uint8 (N, C, H, W), labels int64 (N,) or None."""

    images: Tensor
    labels: Tensor | None
    coupling: Coupling


def _reader(coupling: str) -> str:
    return "pairs" if coupling in build.PAIRED else "images"


def read_images(part: DataSet, recipe: Recipe, conditional: bool, buffers: Buffers) -> Loaded:
    """The training split of the real images."""
    found = image_store.read(part.path, "train", buffers)
    labels = torch.from_numpy(found.labels).long() if conditional else None
    coupling = build.COUPLINGS[recipe.coupling](recipe)
    return Loaded(torch.from_numpy(found.images), labels, coupling)


def read_pairs(part: DataSet, recipe: Recipe, conditional: bool, buffers: Buffers) -> Loaded:
    """All pairs of a store; noise by its seed, or as the store holds it."""
    store = PairStore.open(part.path)
    found = store.read_all(buffers)
    labels = torch.from_numpy(found.labels).long() if conditional else None
    noise = None if found.noise is None else torch.from_numpy(found.noise)
    coupling = build.PAIRED[store.spec.noise_kind](store.spec.seed, noise)
    return Loaded(torch.from_numpy(found.images), labels, coupling)


READERS = {"images": read_images, "pairs": read_pairs}


def load(job: Job, buffers: Buffers) -> Loaded:
    """What a training learns from, the second set of a mix included."""
    conditional = job.architecture["classes"] > 0
    if len(job.sets) > 1:
        buffers = replace(buffers, limit=buffers.limit / 2)  # of two sets
    found = []
    for i, part in enumerate(job.sets):
        here = replace(buffers, folder=buffers.folder / "mix") if i else buffers
        read = READERS[_reader(part.coupling)]
        found.append(read(part, job.recipe, conditional, here))
    if len(found) == 1:
        return found[0]
    first, second = found
    coupling = mixed(
        first.coupling, second.images, second.labels, job.recipe.mix, second.coupling
    )
    return first._replace(coupling=coupling)


def run(flow: str, read_params: Callable[[], Params]) -> None:
    """Trains (or resumes, or finds finished) a row of ``flows`` and publishes its model file.

    Args:
        flow: name of the row.
        read_params: reads and checks params; called again before publishing.
    """
    launch.spread()
    with distributed.group(runtime.device()) as rank:
        job = job_of(flow, read_params())
        steps = job.recipe.steps
        with _staging(job, rank) as work:
            model, curve = work.path / f"flow-{steps}.safetensors", work.path / f"loss-{steps}.csv"
            if not distributed.tell(rank.first and _finished(model, curve)):
                with runtime.enough_memory(advice(job.recipe)):
                    _train(job, work, model, curve, rank)
            else:
                say(f"{flow}: finished before, in {work.path.relative_to(artifacts.root())}")
            if rank.first:
                workdir.confirm(job.request(), job_of(flow, read_params()).request())
                files.publish(model, artifacts.model(flow))
                files.publish(curve, artifacts.loss_curve(flow))
            distributed.wait()


def keep(flow: str, params: Params) -> None:
    """Publishes a flow of zero steps: the weights it starts from, as they are."""
    start = artifacts.model(params.flows[flow].start)
    read_model(start)
    files.publish(start, artifacts.model(flow))
    files.write_csv(artifacts.loss_curve(flow), [{"step": 0, "loss": ""}])
    say(f"{flow}: {start} as it is")


def advice(recipe: Recipe) -> str:
    """What to do when a training does not fit into its device."""
    return (
        f"raise accumulate (now {recipe.accumulate}), which takes a batch of {recipe.batch} in "
        f"more parts, or set loss.chunk where the loss is perceptual"
    )


def _finished(model: Path, curve: Path) -> bool:
    """Whether a finished training is staged, complete."""
    if not model.exists():
        return False
    try:
        wanted = checkpoint.load(model).metadata["provenance"].get("curve")
    except UserError:
        wanted = None
    if curve.exists() and files.sha256(curve) == wanted:
        return True
    say(f"what was finished in {model.parent} is corrupted; it is trained again from the last "
        f"state")  # fmt: skip
    return False


def _staging(job: Job, rank: runtime.Rank) -> AbstractContextManager[workdir.Staging]:
    """The first process holds the lock for all."""
    if rank.first:
        return workdir.staging(KIND, job.identity())
    return nullcontext(workdir.Staging(workdir.path_of(KIND, job.identity())))


def say(text: str) -> None:
    """Prints, once for all processes."""
    if runtime.process_rank().first:
        print(text)


class Prepared(NamedTuple):
    """All that the trainer needs."""

    state: TrainState
    batches: Callable[[int], Iterator[Batch]]  # from a step on
    loss: LossFunction
    config: TrainConfig


def prepare(
    job: Job, loaded: Loaded, work: Path, device: torch.device, rank: runtime.Rank
) -> Prepared:
    """Puts together what determines the weights; the identity covers all code used here."""
    recipe, seed = job.recipe, job.seed
    runtime.exact_training(device, tf32=recipe.precision == "tf32")
    torch.set_num_threads(recipe.threads)
    perceptual = perceptual_net.load(recipe.loss, job.params.dataset, work, device)
    config = build.train_config(recipe, seed)
    field = build.field(job.architecture, recipe.dropout)
    checkpoint.load_into(field, checkpoint.load(job.start).tensors, str(job.start))

    def batches(start: int) -> Iterator[Batch]:
        images, key = loader.place(loaded.images, device), subkey(seed, "order")
        return loader.batches(images, loaded.labels, recipe.batch, key, device, start, rank)

    loss = build.loss(recipe, loaded.coupling, perceptual)
    return Prepared(TrainState(field, config, device), batches, loss, config)


def _train(
    job: Job, work: workdir.Staging, model: Path, curve: Path, rank: runtime.Rank
) -> None:
    """Trains to the end from the newest state, and writes the finished files."""
    device = runtime.device()
    _check_compiler(job, device)
    buffers = _buffers(work)
    if not buffers.fills:  # the first of each machine fills what all there share
        distributed.wait()
    prepared = prepare(job, load(job, buffers), work.path, device, rank)
    if buffers.fills:
        distributed.wait()
    rows = _resume(job, work.path, prepared.state)
    _run_steps(job, prepared, rows, work.path, rank)
    if rank.first:
        files.write_csv(curve, rows)
        shutil.rmtree(work.path / "flat", ignore_errors=True)
        metadata = _metadata(job, work, files.sha256(curve))
        checkpoint.save(model, prepared.state.average.state_dict(), metadata)


def _run_steps(
    job: Job, prepared: Prepared, rows: list[Row], folder: Path, rank: runtime.Rank
) -> None:
    """The remaining updates, each report a row, states saved now and then."""
    state, config = prepared.state, prepared.config
    first, began = state.step, time.monotonic()
    saver = workdir.Saver(folder, state, lambda: _beside(state.device, rows))
    reports = train(state, prepared.batches(state.step), prepared.loss, config)
    try:
        for report in _watched(reports, job.name, state.step, config):
            rows.append(row_of(report))
            if rank.first:
                saver.maybe(done=report.step == config.steps)
    except NonFiniteLoss as error:
        good = checkpoint.load_state(folder, config.steps)
        raise UserError(f"{job.name}: {error}; the last good state is step "
                        f"{good.metadata['step'] if good else 0} in {folder}; lower lr or set "
                        f"clip") from None  # fmt: skip
    seconds, images = time.monotonic() - began, (state.step - first) * config.batch
    say(f"{job.name}: {state.step - first} steps in {seconds:.0f} s "
        f"({images / max(seconds, 1e-9):,.0f} images/s)")  # fmt: skip


def _check_compiler(job: Job, device: torch.device) -> None:
    here = shutil.which("c++") or shutil.which("g++")
    if job.recipe.compile and device.type == "cpu" and not here:
        raise UserError(f"{job.name}: compile on a CPU needs a C++ compiler; install g++ or set "
                        f"compile: false in its recipe")  # fmt: skip


def _resume(job: Job, folder: Path, state: TrainState) -> list[Row]:
    """Restores the newest state that was saved, if any; the loss curve so far."""
    saved = checkpoint.load_state(
        folder, job.recipe.steps, lambda text: say(f"{job.name}: {text}")
    )
    if saved is None:
        return []
    state.restore(checkpoint.to_device(saved.tensors, state.device), saved.metadata)
    made_by = saved.metadata["made_by"]
    same = made_by == runtime.signature(state.device)
    say(f"{job.name}: resumes at step {state.step}"
        f"{'' if same else f' of {made_by}, not bit for bit'}")  # fmt: skip
    return [dict(row) for row in saved.metadata["curve"]]


def _buffers(work: workdir.Staging) -> Buffers:
    """Where a set is held: in memory up to this process's share, else in files."""
    share = int(os.environ.get("LOCAL_WORLD_SIZE", runtime.process_rank().world))  # of this machine
    fills = os.environ.get("LOCAL_RANK", "0") == "0"
    return Buffers(work.path / "flat" / socket.gethostname(), settings.memory() / share, fills)


def _metadata(job: Job, work: workdir.Staging, curve: str) -> dict[str, Any]:
    """Of the finished model file: no name, path, host or time."""
    recipe = job.recipe
    own = 3 * recipe.steps * recipe.batch
    made = {name: forwards for part in job.sets for name, forwards in part.spent.items()
            if name == ledger.key("pairs", part.digest)}  # fmt: skip
    spent = {**job.spent, ledger.key(KIND, files.digest(job.identity())): own}
    provenance: dict[str, Any] = {
        "stage": KIND,
        "start": job.start_digest,
        "data": [part.identity for part in job.sets],
        "seed": job.params.seed,
        "curve": curve,
        "images_seen": recipe.steps * recipe.batch,
        "budget": own + sum(made.values()),
        "budget_with_ancestors": sum(spent.values()),
        "ledger": spent,
    }
    if recipe.loss.perceptual != "none":
        provenance["perceptual"] = job.identity()["perceptual"]
    if adopted := [note for part in job.sets for note in part.adopted] + work.adopted:
        provenance["adopted"] = adopted
    return {
        "architecture": job.architecture,
        "params": build.provenance_params(job.params, recipe),
        "provenance": provenance,
    }


def _beside(device: torch.device, rows: list[Row]) -> dict[str, Any]:
    """What a state holds beside the trainer's; a list of items keeps the order of a row."""
    curve = [list(row.items()) for row in rows]
    return {"made_by": runtime.signature(device), "curve": curve}


def row_of(report: StepReport) -> Row:
    """A line of the loss curve: the sum of the terms, each term, rate and gradient norm."""
    numbers = {"loss": sum(report.terms.values()), **report.terms, "lr": report.lr,
               "grad_norm": report.grad_norm}  # fmt: skip
    return {"step": report.step, **{name: f"{value:.6g}" for name, value in numbers.items()}}


def _watched(
    reports: Iterator[StepReport], name: str, start: int, config: TrainConfig
) -> Iterator[StepReport]:
    images, quiet = config.batch, not runtime.process_rank().first
    with console.bar(name, config.steps * images, "img", start * images, quiet) as bar:
        for report in reports:
            terms = {k: f"{v:.4g}" for k, v in report.terms.items()}
            bar.set_postfix(terms, refresh=False)
            bar.update(report.step * images - bar.n)
            yield report


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
