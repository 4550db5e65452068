"""Attacks on what a stage reads: params edited, files swapped, the lock file cut, work removed."""

from __future__ import annotations

import os
import random
import shutil
from pathlib import Path

from rfpp_core.config import build
from rfpp_core.config.network import Network
from rfpp_core.storage import checkpoint
from tests.faults.kills import somewhere
from tests.faults.scene import SHARDS, Failure, Scene

EDITS = {  # that change what the stage computes, and back
    "reference": ("features.steps=50", "features.steps=60"),
    "train@flow1": ("recipes.pretrain.lr=0.003", "recipes.pretrain.lr=0.002"),
    "generate@pairs2": ("pairs.pairs2.nfe=3", "pairs.pairs2.nfe=5"),
    "train@flow2": ("recipes.reflow.lr=0.003", "recipes.reflow.lr=0.002"),
    "evaluate@flow2": ("evaluate.n=180", "evaluate.n=200"),
}
READS = {"train@flow1": "unet", "generate@pairs2": "flow1", "train@flow2": "flow1",
         "evaluate@flow2": "flow2"}  # fmt: skip


def params_edited(scene: Scene, rng: random.Random) -> None:
    """While a stage runs: it does not publish what the params no longer say."""
    other, own = EDITS[scene.stage]
    process = scene.start()
    if scene.hit(scene.until(process, lambda: bool(scene.staged()))):
        scene.project.set(other)
    code, said = process.wait(120), scene.log.read_text()
    if code != 2 or "changed during the run" not in said or "Traceback" in said:
        raise Failure(f"exit code {code}, not refused in a line: {said[-300:]}")
    if (scene.path / scene.about.outs[-1]).exists():
        raise Failure("published all the same")
    if rng.random() < 0.5:  # the edit was meant
        scene.finish(scene.dvc)
    scene.project.set(own)
    scene.finish(scene.dvc)
    scene.same()
    scene.no_orphans()


def work_removed(scene: Scene, rng: random.Random) -> None:
    """``rm -r .work`` under a running stage: it ends right, or in one line; then all is well."""
    process = scene.start()
    if scene.hit(somewhere(scene, rng, process)):
        folders = [scene.path / ".work"] if rng.random() < 0.3 else scene.work()
        for folder in folders:
            shutil.rmtree(folder, ignore_errors=True)
    code, said = process.wait(120), scene.log.read_text()
    if code not in (0, 2) or "Traceback" in said or (code and "rfpp: " not in said):
        raise Failure(f"exit code {code}, not one line: {said[-300:]}")
    if code == 0:
        scene.same()
    scene.no_orphans()
    scene.finish()
    scene.same()
    scene.no_orphans()


def lock_cut(scene: Scene, rng: random.Random) -> None:
    """A truncated dvc.lock: DVC refuses it, or runs stages again, which find their work."""
    scene.finish()
    begun, measured = len(scene.made()), len(scene.measured())
    lock = scene.hit(scene.path / "dvc.lock")
    text = lock.read_text()
    lock.write_text(text[: rng.randrange(len(text))])
    if scene.start(["dvc", "repro", scene.stage]).wait(300):
        said = scene.log.read_text()
        if "dvc.lock" not in said or "Traceback" in said:
            raise Failure(f"not said what is wrong: {said[-300:]}")
        lock.unlink()
        scene.finish(["dvc", "repro", scene.stage])
    if (len(scene.made()), len(scene.measured())) != (begun, measured):
        raise Failure("something was made or measured again")
    scene.same()


def model_swapped(scene: Scene, rng: random.Random) -> None:
    """Another valid model in the place of one that a stage reads: where it does not fit it is
    refused in a line, and ``dvc repro`` brings the right one back."""
    name = READS[scene.stage]
    model, fits = scene.path / f"models/{name}.safetensors", rng.random() < 0.4
    other = scene.path.with_name("other.safetensors")
    _save_other(other, 8 if fits else 16, rng.randrange(100))
    os.replace(other, scene.hit(model))
    if not fits:
        said = scene.finish(code=2)
        if "Traceback" in said or f"models/{name}.safetensors" not in said:
            raise Failure(f"not refused by name: {said[-300:]}")
    scene.finish(["dvc", "repro", scene.stage])
    scene.same()
    scene.no_orphans()


def _save_other(path: Path, side: int, seed: int) -> None:
    """A model file of other weights, for images of a given side."""
    arch = build.architecture(Network(channels=8, precond="velocity"), (1, side, side), 0)
    provenance = {"stage": "train", "budget": 1, "budget_with_ancestors": 1}
    metadata = {"architecture": arch, "provenance": provenance}
    checkpoint.save(path, build.field(arch, seed=seed).state_dict(), metadata)


def pairs_swapped(scene: Scene, rng: random.Random) -> None:
    """Two sets of pairs of one teacher that changed places: the training refuses, and ``dvc
    repro`` puts each back without making a shard."""
    own = f"solver: heun, nfe: {rng.choice([1, 3])}"
    scene.project.set(
        f"pairs.pairs3={{teacher: flow1, n: 1200, {own}, shard: 100, micro_batch: 50}}"
    )
    scene.finish(["dvc", "repro", "generate@pairs3"])
    begun = len(scene.made())
    one, other = (scene.path / f"data/{name}.zarr" for name in ("pairs2", "pairs3"))
    aside = one.with_name("aside")
    for a, b in ((one, aside), (other, one), (aside, other)):
        a.rename(b)
    said = scene.hit(scene.finish(code=2))
    if "data/pairs2.zarr" not in said or "Traceback" in said:
        raise Failure(f"not refused by name: {said[-300:]}")
    scene.finish(["dvc", "repro", scene.stage])
    if len(scene.made()) != begun or begun != SHARDS:
        raise Failure(f"{len(scene.made()) - begun} shards were made again")
    scene.same()
