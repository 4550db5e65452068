"""What pretrain and reflow share: one training, staged, resumable, published."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from pipeline import stage
from rfpp_core import build, checkpoint, files, loader, runtime
from rfpp_core.couplings import Coupling
from rfpp_core.errors import UserError
from rfpp_core.noise import subkey
from rfpp_core.params import Params, Training
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

    def identity(self) -> dict[str, Any]:
        """What determines the weights; ``steps`` too if the rate depends on it."""
        section = self.section.model_dump(mode="json")
        if self.section.decay == "constant":
            del section["steps"]
        del section["log_every"]
        return {
            "stage": self.kind,
            "training": section,
            "architecture": self.architecture,
            "data": self.data,
            "parents": self.parents,
            "seed": self.params.seed,
            "code": stage.code_digests(),
        }

    @property
    def kind(self) -> str:
        return self.name.partition("@")[0]

    @property
    def seed(self) -> int:
        return subkey(self.params.seed, self.kind)


Load = Callable[[], tuple[Tensor, Tensor | None, Coupling, dict[str, Tensor] | None]]


def run(identify: Callable[[], Job], load: Load, flow: str) -> None:
    """Trains (or takes up, or finds finished) a job and publishes models/<flow>.safetensors.

    Args:
        identify: reads params and inputs' digests afresh; called again before publishing.
        load: images, labels, coupling and initial weights.
        flow: name of the flow to make.
    """
    job = identify()
    steps = job.section.steps
    with stage.staging(job.kind, job.identity()) as work:
        model, curve = work.path / f"flow-{steps}.safetensors", work.path / f"loss-{steps}.csv"
        if not model.exists():
            _train(job, load, work, model, curve)
        else:
            print(f"{flow}: finished before, in {work.path.relative_to(stage.root())}")
        work.confirm(lambda: identify().identity())
        stage.publish(model, Path("models") / f"{flow}.safetensors")
        stage.publish(curve, Path("curves") / f"{flow}_loss.csv")


def _train(job: Job, load: Load, work: stage.Staging, model: Path, curve_path: Path) -> None:
    section, device = job.section, runtime.device()
    runtime.exact()
    torch.set_num_threads(section.threads)
    images, labels, coupling, weights = load()
    config = build.train_config(section, job.seed)
    field = build.field(job.architecture, section.dropout, job.params.seed)
    if weights is not None:
        field.load_state_dict(weights)
    state = TrainState(field, config, device)
    saved = checkpoint.load_state(work.path, section.steps)
    if saved:
        state.restore(checkpoint.to_device(saved.tensors, device), saved.about)
        print(f"{job.name}: goes on from step {state.step}")
    curve = stage.Curve(work.path / "loss.csv", state.step)
    source = loader.batches(
        loader.place(images, device), labels, section.batch, subkey(job.seed, "order"), device,
        state.step,
    )  # fmt: skip
    reports = train(state, source, build.loss(section, coupling), config)
    first, began = state.step, time.monotonic()
    saver = Saver(work.path, state, curve)
    try:
        for report in _bar(reports, job.name, state.step, config):
            terms = {name: f"{value:.6g}" for name, value in report.terms.items()}
            curve.add({"step": report.step, **terms, "lr": f"{report.lr:.6g}",
                       "grad_norm": f"{report.grad_norm:.6g}"})  # fmt: skip
            saver.maybe(done=report.step == config.steps)
    except NonFiniteLoss as error:
        good = checkpoint.load_state(work.path, section.steps)
        raise UserError(f"{job.name}: {error}; the last good state is step "
                        f"{good.about['step'] if good else 0} in {work.path}; lower lr or set "
                        f"clip") from None  # fmt: skip
    seconds, images_seen = time.monotonic() - began, (state.step - first) * section.batch
    print(f"{job.name}: {state.step - first} steps in {seconds:.0f} s "
          f"({images_seen / max(seconds, 1e-9):,.0f} images/s)")  # fmt: skip
    stage.publish(curve.path, curve_path)
    checkpoint.save(model, state.average.state_dict(), _about(job, work))


def _about(job: Job, work: stage.Staging) -> dict[str, Any]:
    section = job.section
    budget = job.forwards + 3 * section.steps * section.batch
    provenance: dict[str, Any] = {
        "stage": job.kind,
        "parents": job.parents,
        "data": job.data,
        "seed": job.params.seed,
        "images_seen": section.steps * section.batch,
        "budget": budget,
        "budget_with_ancestors": budget + job.inherited,
    }
    if work.adopted:
        provenance["adopted"] = work.adopted
    return {
        "architecture": job.architecture,
        "params": build.provenance_params(job.params, section),
        "provenance": provenance,
    }


class Saver:
    """Saves state and curve often enough to lose little, seldom enough to cost under 2 %.

    ``RFPP_CHECKPOINT_SECONDS`` fixes the interval; at 0 every report is followed by a save.
    """

    def __init__(self, folder: Path, state: TrainState, curve: stage.Curve) -> None:
        self.folder, self.state, self.curve = folder, state, curve
        given = os.environ.get("RFPP_CHECKPOINT_SECONDS")
        self.fixed = float(given) if given else None
        self.last, self.cost = time.monotonic(), 0.0

    def maybe(self, done: bool) -> None:
        wait = max(15.0, 50 * self.cost) if self.fixed is None else self.fixed
        start = time.monotonic()
        if not done and start - self.last < wait:
            return
        self.curve.save()
        checkpoint.save_state(
            self.folder, self.state.step, self.state.tensors(), self.state.about()
        )
        self.last = time.monotonic()
        self.cost = self.last - start


def _bar(
    reports: Iterator[StepReport], name: str, start: int, config: TrainConfig
) -> Iterator[StepReport]:
    images = config.batch
    with tqdm(total=config.steps * images, initial=start * images, desc=name, unit="img",
              unit_scale=True, disable=None, mininterval=1) as bar:  # fmt: skip
        for report in reports:
            bar.update(report.step * images - bar.n)
            bar.set_postfix({k: f"{v:.4g}" for k, v in report.terms.items()}, refresh=False)
            yield report


def digest_of_model(path: Path, made_by: str) -> str:
    """sha256 of a model file, or a :class:`UserError` that names the command that makes it."""
    if not path.exists():
        raise UserError(f"{path} is missing; `{made_by}` makes it")
    return files.sha256(path)
