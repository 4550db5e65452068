"""What pretrain and reflow share: one training, staged, resumable, published."""

from __future__ import annotations

import os
import shutil
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from pydantic import ValidationError
from torch import Tensor

from pipeline import console
from pipeline.work import identity, perceptual_net, workdir
from pipeline.workers import launch
from rfpp_core import runtime
from rfpp_core.config import build
from rfpp_core.config.params import Architecture, Finetune, Params, Pretrain, Reflow, Training
from rfpp_core.errors import UserError
from rfpp_core.images import loader
from rfpp_core.images.buffers import Shelf
from rfpp_core.rng import subkey
from rfpp_core.storage import checkpoint, files
from rfpp_core.training import distributed
from rfpp_core.training.couplings import Batch, Coupling
from rfpp_core.training.trainer import (
    LossFunction,
    NonFiniteLoss,
    StepReport,
    TrainConfig,
    TrainState,
    train,
)


@dataclass(frozen=True)
class Job:
    """A training: its params section, data, coupling and where it starts."""

    name: str  # pretrain, reflow@2
    params: Params
    section: Training
    data: dict[str, Any]  # digests and shape of what it learns from, as JSON
    architecture: dict[str, Any]
    parents: dict[str, str]  # digests of the models it descends from
    forwards: int  # network forwards spent on its data, an image each
    inherited: int  # budget of its ancestors
    adopted: tuple[Any, ...] = ()  # what `rfpp work adopt` recorded about its data

    def identity(self) -> dict[str, Any]:
        """What determines the weights; ``steps`` too if the rate depends on it."""
        section, architecture = self.section, build.architecture_of(self.architecture)
        document: dict[str, Any] = {
            "stage": self.kind,
            "training": build.training_identity(section),
            "architecture": build.described(architecture),
            "data": self.data,
            "parents": self.parents,
            "seed": self.params.seed,
            "code": code_of(self.kind, section, architecture, self.data),
        }
        if section.decay == "constant":
            document["training"].pop("steps", None)
        if section.loss.is_perceptual:
            document["perceptual"] = perceptual_net.identity(section.loss, self.params.dataset)
        return document

    def request(self) -> dict[str, Any]:
        """The identity and what it leaves out: all that DVC will record with the result."""
        return {**self.identity(), "section": self.section.model_dump(mode="json")}

    @property
    def kind(self) -> str:
        return self.name.partition("@")[0]


def code_of(
    kind: str, section: Training, architecture: Architecture, data: Mapping[str, Any]
) -> dict[str, str]:
    """Digests of the code that determines the weights of a training, by module.

    Args:
        kind: pretrain, reflow or finetune.
        section: how it is trained.
        architecture: of which network.
        data: what it learns from; ``coupling`` names how noise belongs to its images.
    """
    loss = section.loss
    chosen = {
        section.times.law, section.decay, section.precision, loss.name, architecture.arch,
        architecture.precond, data["coupling"],
    }  # fmt: skip
    if loss.is_perceptual:
        chosen.add(loss.perceptual)
    roots = (
        identity.Name("pipeline.work.training_job", "prepare"),
        identity.Name("rfpp_core.training.trainer", "train"),
        identity.Name(f"pipeline.stages.{kind}", "load"),
    )
    return identity.digests(roots, chosen)


SECTIONS: dict[str, type[Training]] = {
    "pretrain": Pretrain, "reflow": Reflow, "finetune": Finetune,
}  # fmt: skip


def code_now(document: Mapping[str, Any]) -> dict[str, str]:
    """What :func:`code_of` gives today for an identity that is kept.

    Raises:
        UserError: if it is of an earlier version.
    """
    try:
        kind, data = document["stage"], {"coupling": document["data"]["coupling"]}
        # log_every is no part of an identity; 1 fits any number of steps
        section = SECTIONS[kind].model_validate({**document["training"], "log_every": 1})
    except (KeyError, TypeError, ValidationError):
        raise UserError("it was made by an earlier version of this project") from None
    return code_of(kind, section, build.architecture_of(document["architecture"]), data)


class Loaded(NamedTuple):
    """What a training learns from, and where it starts."""

    images: Tensor  # uint8 (N, C, H, W)
    labels: Tensor | None  # int64 (N,)
    coupling: Coupling
    weights: dict[str, Tensor] | None  # None: drawn from the seed


Load = Callable[[Shelf], Loaded]


def run(identify: Callable[[], Job], load: Load, flow: str) -> None:
    """Trains (or takes up, or finds finished) a job and publishes models/<flow>.safetensors.

    Args:
        identify: reads params and inputs' digests afresh; called again before publishing.
        load: images, labels, coupling and initial weights; large sets go where the shelf says.
        flow: name of the flow to make.
    """
    launch.spread()
    with distributed.group(runtime.device()) as rank:
        job = identify()
        steps = job.section.steps
        with _staging(job, rank) as work:
            model, curve = work.path / f"flow-{steps}.safetensors", work.path / f"loss-{steps}.csv"
            if not distributed.tell(rank.first and _finished(model, curve)):
                with runtime.enough_memory(advice(job.section)):
                    _train(job, load, work, model, curve, rank)
            else:
                say(f"{flow}: finished before, in {work.path.relative_to(workdir.root())}")
            if rank.first:
                workdir.confirm(job.request(), identify().request())
                workdir.publish(model, Path("models") / f"{flow}.safetensors")
                workdir.publish(curve, Path("curves") / f"{flow}_loss.csv")
            distributed.wait()


def advice(section: Training) -> str:
    """What to do when a training does not fit into its device."""
    return (
        f"raise accumulate (now {section.accumulate}), which takes a batch of {section.batch} in "
        f"more parts, or set loss.chunk where the loss is perceptual"
    )


def _finished(model: Path, curve: Path) -> bool:
    """Whether a finished training is staged, whole."""
    if not model.exists():
        return False
    try:
        wanted = checkpoint.load(model).about["provenance"].get("curve")
    except UserError:
        wanted = None
    if curve.exists() and files.sha256(curve) == wanted:
        return True
    say(f"what was finished in {model.parent} is damaged; it is made again from the last state")
    return False


def _staging(job: Job, rank: distributed.Rank) -> AbstractContextManager[workdir.Staging]:
    """The first process holds the lock for all."""
    if rank.first:
        return workdir.staging(job.kind, job.identity())
    return nullcontext(workdir.Staging(workdir.path_of(job.kind, job.identity())))


def say(text: str) -> None:
    """Prints, once for all processes."""
    if distributed.here().first:
        print(text)


class Prepared(NamedTuple):
    """All that the trainer needs."""

    state: TrainState
    batches: Callable[[int], Iterator[Batch]]  # from a step on
    loss: LossFunction
    config: TrainConfig


def prepare(
    job: Job, loaded: Loaded, work: Path, device: torch.device, rank: distributed.Rank
) -> Prepared:
    """Puts together what determines the weights; the identity covers all code used here."""
    section, seed = job.section, subkey(job.params.seed, job.kind)
    runtime.exact_training(device, tf32=section.precision == "tf32")
    torch.set_num_threads(section.threads)
    perceptual = perceptual_net.load(section.loss, job.params.dataset, work, device)
    config = build.train_config(section, seed)
    field = build.field(job.architecture, section.dropout, job.params.seed)
    if loaded.weights is not None:
        field.load_state_dict(loaded.weights)

    def batches(start: int) -> Iterator[Batch]:
        images, key = loader.place(loaded.images, device), subkey(seed, "order")
        return loader.batches(images, loaded.labels, section.batch, key, device, start, rank)

    loss = build.loss(section, loaded.coupling, perceptual)
    return Prepared(TrainState(field, config, device), batches, loss, config)


def _train(
    job: Job, load: Load, work: workdir.Staging, model: Path, curve: Path, rank: distributed.Rank
) -> None:
    section, device = job.section, runtime.device()
    _check_compiler(job, device)
    shelf = _shelf(work)
    if not shelf.fills:  # the first of each machine makes what all there share
        distributed.wait()
    state, batches, loss, config = prepare(job, load(shelf), work.path, device, rank)
    if shelf.fills:
        distributed.wait()
    rows = _resume(job, work.path, state)
    first, began = state.step, time.monotonic()
    saver = workdir.Saver(work.path, state, lambda: _beside(device, rows))
    reports = train(state, batches(state.step), loss, config)
    try:
        for report in _watched(reports, job.name, state.step, config):
            rows.append(row_of(report))
            if rank.first:
                saver.maybe(done=report.step == config.steps)
    except NonFiniteLoss as error:
        good = checkpoint.load_state(work.path, section.steps)
        raise UserError(f"{job.name}: {error}; the last good state is step "
                        f"{good.about['step'] if good else 0} in {work.path}; lower lr or set "
                        f"clip") from None  # fmt: skip
    seconds, images_seen = time.monotonic() - began, (state.step - first) * section.batch
    if not rank.first:
        return
    print(f"{job.name}: {state.step - first} steps in {seconds:.0f} s "
          f"({images_seen / max(seconds, 1e-9):,.0f} images/s)")  # fmt: skip
    workdir.write_csv(curve, rows)
    shutil.rmtree(work.path / "flat", ignore_errors=True)
    checkpoint.save(model, state.average.state_dict(), _about(job, work, files.sha256(curve)))


def _check_compiler(job: Job, device: torch.device) -> None:
    here = shutil.which("c++") or shutil.which("g++")
    if job.section.compile and device.type == "cpu" and not here:
        raise UserError(f"{job.kind}.compile on a CPU needs a C++ compiler; install g++ or set "
                        f"compile: false")  # fmt: skip


def _resume(job: Job, folder: Path, state: TrainState) -> list[workdir.Row]:
    """Restores the newest state that was saved, if any; the loss curve so far."""
    saved = checkpoint.load_state(
        folder, job.section.steps, lambda text: say(f"{job.name}: {text}")
    )
    if saved is None:
        return []
    state.restore(checkpoint.to_device(saved.tensors, state.device), saved.about)
    made_by = saved.about["made_by"]
    same = made_by == runtime.signature(state.device)
    say(f"{job.name}: resumes at step {state.step}"
        f"{'' if same else f' of {made_by}, not bit for bit'}")  # fmt: skip
    return [dict(row) for row in saved.about["curve"]]


def _shelf(work: workdir.Staging) -> Shelf:
    """``RFPP_MEMORY`` GiB of a set are held in memory, else half of what there is."""
    given = workdir.env_number("RFPP_MEMORY", runtime.memory() / 2**31) * 2**30
    share = int(os.environ.get("LOCAL_WORLD_SIZE", distributed.here().world))  # of this machine
    fills = os.environ.get("LOCAL_RANK", "0") == "0"
    return Shelf(work.path / "flat" / socket.gethostname(), given / share, fills)


def _about(job: Job, work: workdir.Staging, curve: str) -> dict[str, Any]:
    section = job.section
    budget = job.forwards + 3 * section.steps * section.batch
    provenance: dict[str, Any] = {
        "stage": job.kind,
        "parents": job.parents,
        "data": job.data,
        "seed": job.params.seed,
        "curve": curve,
        "images_seen": section.steps * section.batch,
        "budget": budget,
        "budget_with_ancestors": budget + job.inherited,
    }
    if section.loss.is_perceptual:
        provenance["perceptual"] = job.identity()["perceptual"]
    if adopted := [*job.adopted, *work.adopted]:
        provenance["adopted"] = adopted
    return {
        "architecture": job.architecture,
        "params": build.provenance_params(job.params, section),
        "provenance": provenance,
    }


def _beside(device: torch.device, rows: list[workdir.Row]) -> dict[str, Any]:
    """What a state holds beside the trainer's; a list of items keeps the order of a row."""
    curve = [list(row.items()) for row in rows]
    return {"made_by": runtime.signature(device), "curve": curve}


def row_of(report: StepReport) -> workdir.Row:
    """A line of the loss curve: the sum of the terms, each term, rate and gradient norm."""
    numbers = {"loss": sum(report.terms.values()), **report.terms, "lr": report.lr,
               "grad_norm": report.grad_norm}  # fmt: skip
    return {"step": report.step, **{name: f"{value:.6g}" for name, value in numbers.items()}}


def _watched(
    reports: Iterator[StepReport], name: str, start: int, config: TrainConfig
) -> Iterator[StepReport]:
    images, quiet = config.batch, not distributed.here().first
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
    about = loaded.about
    try:
        _ = about["architecture"]["shape"], int(about["provenance"]["budget_with_ancestors"])
    except (KeyError, TypeError, ValueError):
        raise UserError(f"{path} is not a model file of the pipeline (no architecture or budget "
                        f"in its metadata)") from None  # fmt: skip
    return build.flow_digest(loaded), about
