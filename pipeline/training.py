"""What pretrain and reflow share: one training, staged, resumable, published."""

from __future__ import annotations

import os
import shutil
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from pipeline import perceptual_net, processes, stage
from rfpp_core import build, checkpoint, distributed, files, loader, runtime
from rfpp_core.couplings import Coupling
from rfpp_core.errors import UserError
from rfpp_core.noise import subkey
from rfpp_core.params import Loss, Params, Training
from rfpp_core.shelf import Shelf
from rfpp_core.trainer import NonFiniteLoss, StepReport, TrainConfig, TrainState, train


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
        section = build.training_params(self.section)
        if self.section.decay == "constant":
            del section["steps"]
        document: dict[str, Any] = {
            "stage": self.kind,
            "training": section,
            "architecture": self.architecture,
            "data": self.data,
            "parents": self.parents,
            "seed": self.params.seed,
            "code": stage.code_digests(rooms_of(self.architecture["arch"], self.section.loss)),
        }
        if self.section.loss.is_perceptual:
            document["perceptual"] = perceptual_net.identity(
                self.section.loss, self.params.dataset
            )
        return document

    def asked(self) -> dict[str, Any]:
        """The identity and what it leaves out: all that DVC will record with the result."""
        return {**self.identity(), "section": self.section.model_dump(mode="json")}

    @property
    def kind(self) -> str:
        return self.name.partition("@")[0]

    @property
    def seed(self) -> int:
        return subkey(self.params.seed, self.kind)


def rooms_of(arch: str, loss: Loss) -> tuple[str, ...]:
    """The rooms whose code determines a training's weights."""
    extra = perceptual_net.ROOMS if loss.is_perceptual else ()
    return (*stage.TRAINING_ROOMS, *stage.NET_ROOMS[arch], *extra)


Load = Callable[[Shelf], tuple[Tensor, Tensor | None, Coupling, dict[str, Tensor] | None]]


def run(identify: Callable[[], Job], load: Load, flow: str) -> None:
    """Trains (or takes up, or finds finished) a job and publishes models/<flow>.safetensors.

    Args:
        identify: reads params and inputs' digests afresh; called again before publishing.
        load: images, labels, coupling and initial weights; large sets go where the shelf says.
        flow: name of the flow to make.
    """
    processes.spread()
    with distributed.group(runtime.device()) as rank:
        job = identify()
        steps = job.section.steps
        with _staging(job, rank) as work:
            model, curve = work.path / f"flow-{steps}.safetensors", work.path / f"loss-{steps}.csv"
            if not distributed.tell(rank.first and _finished(model, curve)):
                _train(job, load, work, model, curve, rank)
            else:
                say(f"{flow}: finished before, in {work.path.relative_to(stage.root())}")
            if rank.first:
                stage.confirm(job.asked(), identify().asked())
                stage.publish(model, Path("models") / f"{flow}.safetensors")
                stage.publish(curve, Path("curves") / f"{flow}_loss.csv")
            distributed.wait()


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


def _staging(job: Job, rank: distributed.Rank) -> AbstractContextManager[stage.Staging]:
    """The first process holds the lock for all."""
    if rank.first:
        return stage.staging(job.kind, job.identity())
    return nullcontext(stage.Staging(stage.path_of(job.kind, job.identity())))


def say(text: str) -> None:
    """Prints, once for all processes."""
    if distributed.here().first:
        print(text)


def _train(
    job: Job, load: Load, work: stage.Staging, model: Path, curve: Path, rank: distributed.Rank
) -> None:
    section, device = job.section, runtime.device()
    runtime.exact()
    if (
        section.compile
        and device.type == "cpu"
        and not (shutil.which("c++") or shutil.which("g++"))
    ):
        raise UserError(f"{job.kind}.compile on a CPU needs a C++ compiler; install g++ or set "
                        f"compile: false")  # fmt: skip
    torch.set_num_threads(section.threads)
    shelf = _shelf(work)
    if not shelf.fills:  # the first of each machine makes what all there share
        distributed.wait()
    images, labels, coupling, weights = load(shelf)
    perceptual = perceptual_net.load(section.loss, job.params.dataset, work.path, device)
    if shelf.fills:
        distributed.wait()
    config = build.train_config(section, job.seed)
    field = build.field(job.architecture, section.dropout, job.params.seed)
    if weights is not None:
        field.load_state_dict(weights)
    state = TrainState(field, config, device)
    saved = checkpoint.load_state(
        work.path, section.steps, lambda text: say(f"{job.name}: {text}")
    )
    if saved:
        state.restore(checkpoint.to_device(saved.tensors, device), saved.about)
        made_by = saved.about["made_by"]
        other = "" if made_by == runtime.signature(device) else f" of {made_by}, not bit for bit"
        say(f"{job.name}: goes on from step {state.step}{other}")
    rows: list[stage.Row] = [dict(row) for row in saved.about["curve"]] if saved else []
    source = loader.batches(
        loader.place(images, device), labels, section.batch, subkey(job.seed, "order"), device,
        state.step, rank,
    )  # fmt: skip
    reports = train(state, source, build.loss(section, coupling, perceptual), config)
    first, began = state.step, time.monotonic()
    saver = Saver(work.path, state, rows)
    try:
        for report in _bar(reports, job.name, state.step, config):
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
    stage.write_csv(curve, rows)
    shutil.rmtree(work.path / "flat", ignore_errors=True)
    checkpoint.save(model, state.average.state_dict(), _about(job, work, files.sha256(curve)))


def _shelf(work: stage.Staging) -> Shelf:
    """``RFPP_MEMORY`` GiB of a set are held in memory, else half of what there is."""
    given = stage.env_number("RFPP_MEMORY", runtime.memory() / 2**31) * 2**30
    share = int(os.environ.get("LOCAL_WORLD_SIZE", distributed.here().world))  # of this machine
    fills = os.environ.get("LOCAL_RANK", "0") == "0"
    return Shelf(work.path / "flat" / socket.gethostname(), given / share, fills)


def _about(job: Job, work: stage.Staging, curve: str) -> dict[str, Any]:
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


def row_of(report: StepReport) -> stage.Row:
    """A line of the loss curve: the sum of the terms, each term, rate and gradient norm."""
    numbers = {"loss": sum(report.terms.values()), **report.terms, "lr": report.lr,
               "grad_norm": report.grad_norm}  # fmt: skip
    return {"step": report.step, **{name: f"{value:.6g}" for name, value in numbers.items()}}


class Saver:
    """Saves state and curve, often enough to lose little and seldom enough to cost under 2 %.

    ``RFPP_CHECKPOINT_SECONDS`` fixes the interval; at 0 every report is followed by a save.
    """

    def __init__(self, folder: Path, state: TrainState, rows: list[stage.Row]) -> None:
        self.folder, self.state, self.rows = folder, state, rows
        given = bool(os.environ.get("RFPP_CHECKPOINT_SECONDS"))
        self.fixed = stage.env_number("RFPP_CHECKPOINT_SECONDS", 0) if given else None
        self.last, self.cost = time.monotonic(), 0.0
        self.setting = {"made_by": runtime.signature(state.device)}

    def maybe(self, done: bool) -> None:
        wait = max(15.0, 50 * self.cost) if self.fixed is None else self.fixed
        start = time.monotonic()
        if not done and start - self.last < wait:
            return
        curve = [list(row.items()) for row in self.rows]  # JSON objects lose their order
        about = {**self.state.about(), **self.setting, "curve": curve}
        checkpoint.save_state(self.folder, self.state.step, self.state.tensors(), about)
        self.last = time.monotonic()
        self.cost = self.last - start


def _bar(
    reports: Iterator[StepReport], name: str, start: int, config: TrainConfig
) -> Iterator[StepReport]:
    images = config.batch
    quiet = None if distributed.here().first else True
    with tqdm(total=config.steps * images, initial=start * images, desc=name, unit="img",
              unit_scale=True, disable=quiet, mininterval=1) as bar:  # fmt: skip
        for report in reports:
            bar.update(report.step * images - bar.n)
            bar.set_postfix({k: f"{v:.4g}" for k, v in report.terms.items()}, refresh=False)
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
    return loaded.flow, about
