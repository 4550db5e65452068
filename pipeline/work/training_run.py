"""Running a training: staged, resumable, published, in one process or several."""

from __future__ import annotations

import copy
import os
import shutil
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import torch

from pipeline import artifacts, console, settings
from pipeline.work import perceptual_net, training_data, training_job, workdir
from pipeline.work.training_data import Loaded
from pipeline.work.training_job import Job
from pipeline.workers import launch
from rfpp_core import runtime
from rfpp_core.config import build, objective
from rfpp_core.config.params import Params
from rfpp_core.config.recipe import Recipe
from rfpp_core.errors import UserError
from rfpp_core.images import loader
from rfpp_core.images.buffers import Buffers
from rfpp_core.images.loader import Batch
from rfpp_core.rng import subkey
from rfpp_core.storage import checkpoint, files
from rfpp_core.training import distributed
from rfpp_core.training.losses import LossFunction
from rfpp_core.training.train_config import TrainConfig
from rfpp_core.training.trainer import NonFiniteLoss, StepReport, TrainState, train

Row = dict[str, Any]  # of the loss curve


def run(flow: str, read_params: Callable[[], Params]) -> None:
    """Trains (or resumes, or finds finished) a row of ``flows`` and publishes its model file.

    Args:
        flow: name of the row.
        read_params: reads and checks params; called again before publishing.
    """
    launch.spread()
    with distributed.group(runtime.device()) as rank:
        job = training_job.job_of(flow, read_params())
        steps = job.recipe.steps
        with _staging(job, rank) as work:
            model, curve = work.path / f"flow-{steps}.safetensors", work.path / f"loss-{steps}.csv"
            if not distributed.tell(rank.first and _finished(model, curve)):
                with runtime.enough_memory(advice(job.recipe)):
                    _train(job, work, model, curve, rank)
            else:
                say(f"{flow}: finished before, in {work.path.relative_to(artifacts.root())}")
            if rank.first:
                workdir.confirm(job.request(), training_job.job_of(flow, read_params()).request())
                files.publish(model, artifacts.model(flow))
                files.publish(curve, artifacts.loss_curve(flow))
            distributed.wait()


def keep(flow: str, params: Params) -> None:
    """Publishes a flow of zero steps: the weights it starts from, as they are."""
    start = artifacts.model(params.flows[flow].start)
    training_data.read_model(start)
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
        return workdir.staging(training_job.KIND, job.identity())
    return nullcontext(workdir.Staging(workdir.path_of(training_job.KIND, job.identity())))


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


def prepare(job: Job, loaded: Loaded, device: torch.device, rank: runtime.Rank) -> Prepared:
    """Puts together what determines the weights; the identity covers all code used here."""
    recipe, seed = job.recipe, job.seed
    runtime.exact_training(device, tf32=recipe.precision == "tf32")
    torch.set_num_threads(recipe.threads)
    perceptual = perceptual_net.load(recipe.loss, job.params.dataset, device)
    config = build.train_config(recipe, seed)
    field = build.field(job.architecture, recipe.dropout)
    checkpoint.load_into(field, checkpoint.load(job.start).tensors, str(job.start))
    frozen = None
    if recipe.frozen_start:
        frozen = copy.deepcopy(field).requires_grad_(False).eval().to(device)

    def batches(start: int) -> Iterator[Batch]:
        images, key = loader.place(loaded.images, device), subkey(seed, "order")
        return loader.batches(images, loaded.labels, recipe.batch, key, device, start, rank)

    loss = objective.loss(recipe, loaded.coupling, perceptual, frozen)
    return Prepared(TrainState(field, config, device), batches, loss, config)


def _train(job: Job, work: workdir.Staging, model: Path, curve: Path, rank: runtime.Rank) -> None:
    """Trains to the end from the newest state, and writes the finished files."""
    device = runtime.device()
    _check_compiler(job, device)
    buffers = _buffers(work)
    if not buffers.fills:  # the first of each machine fills what all there share
        distributed.wait()
    prepared = prepare(job, _load(job, buffers), device, rank)
    if buffers.fills:
        distributed.wait()
    rows = _resume(job, work.path, prepared.state)
    _run_steps(job, prepared, rows, work.path, rank)
    if rank.first:
        files.write_csv(curve, rows)
        shutil.rmtree(work.path / "flat", ignore_errors=True)
        metadata = training_job.metadata_of(job, files.sha256(curve), work.adopted)
        checkpoint.save(model, prepared.state.average.state_dict(), metadata)


def _load(job: Job, buffers: Buffers) -> Loaded:
    return training_data.load(job.sets, job.recipe, job.architecture["classes"] > 0, buffers)


def _run_steps(
    job: Job, prepared: Prepared, rows: list[Row], folder: Path, rank: runtime.Rank
) -> None:
    """The remaining updates, each report a row, states saved now and then."""
    state, config = prepared.state, prepared.config
    first, began = state.step, time.monotonic()
    reports = train(state, prepared.batches(state.step), prepared.loss, config)
    try:
        with workdir.Saver(folder, state, lambda: _beside(state.device, rows)) as saver:
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
    share = int(
        os.environ.get("LOCAL_WORLD_SIZE", runtime.process_rank().world)
    )  # of this machine
    fills = os.environ.get("LOCAL_RANK", "0") == "0"
    return Buffers(work.path / "flat" / socket.gethostname(), settings.memory() / share, fills)


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
