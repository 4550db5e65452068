"""Projects that stand before a stage, and what must hold of them after an attack."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any, NamedTuple, TypeVar

import yaml

from rfpp_core.pairs.store import PairStore
from rfpp_core.pairs.verify import verify
from rfpp_core.storage import checkpoint, files
from tests.helpers import ROOT, Project, new_project, processes_in

INJECT = Path(__file__).parent / "inject"
SHARDS = 12  # of presets/smoke.yaml
STAGED = {
    "reference": ("state-*.json", "*/*.safetensors"),
    "train": ("state-*.json",),
    "generate": ("pairs.zarr/commits/0*.json",),
    "evaluate": ("[0-9a-f]" * 16 + ".json",),
}
TOLERANCE = 2e-4  # of 100 updates by two processes
T = TypeVar("T")


class Stage(NamedTuple):
    """A stage that is attacked."""

    product: str  # the out by which it is known to have published
    outs: tuple[str, ...]
    later: tuple[str, ...]  # stages that need it
    most: int  # staged files that show how far it is
    steps: int = 0  # of its training


TRAINED = "train@flow2", "evaluate@flow2"
STAGES = {
    "reference": Stage(
        "data/reference.npz", ("models/features.safetensors", "data/reference.npz"),
        ("evaluate@flow2",), 4, 60,
    ),
    "train@flow1": Stage(
        "models/flow1.safetensors", ("models/flow1.safetensors", "curves/loss/flow1.csv"),
        ("generate@pairs2", *TRAINED), 2, 100,
    ),
    "generate@pairs2": Stage("data/pairs2.zarr", ("data/pairs2.zarr",), TRAINED, SHARDS),
    "train@flow2": Stage(
        "models/flow2.safetensors", ("models/flow2.safetensors", "curves/loss/flow2.csv"),
        ("evaluate@flow2",), 2, 100,
    ),
    "evaluate@flow2": Stage(
        "samples/flow2/trajectory.png",
        ("curves/distance/flow2.csv", "metrics/flow2.json", "samples/flow2"), (), 7,
    ),
}  # fmt: skip


class Failure(AssertionError):
    """A promise that did not hold."""


Attack = Callable[["Scene", Random], None]


def code_digest() -> str:
    """Of what is attacked and how: rounds of other code prove nothing."""
    parts = ("pipeline/**/*.py", "rfpp_core/**/*.py", "tests/faults/**/*.py", "tests/helpers.py",
             "dvc.yaml", "presets/*.yaml")  # fmt: skip
    code = sorted(path for part in parts for path in ROOT.glob(part))
    return files.digest([files.sha256(path) for path in code])[:16]


def reference(home: Path, digest: str) -> Project:
    """The uninterrupted run that every other is compared with; run once for the code as it is, or
    that of the tests (TEST_PROJECTS)."""
    project, done = Project(home / "reference"), home / "reference.done"
    if not done.exists() or done.read_text() != digest:
        shutil.rmtree(project.path, ignore_errors=True)
        finished = Path(os.environ.get("TEST_PROJECTS", home)) / "finished"
        if (finished / "done").exists():
            Project(finished / "project").copy(project.path)
        else:
            new_project(project.path)
            project.run("dvc", "repro")
        done.write_text(digest)
    return project


def work_of(project: Project, stage: str) -> list[Path]:
    """The folders in which the work of a stage is staged."""
    match stage:
        case "train@flow1":
            return project.trainings("images")
        case "train@flow2":
            return project.trainings("pairs")
        case "generate@pairs2":
            return _folders(project, "pairs")
        case "evaluate@flow2":
            return _folders(project, "evaluate")
    return _folders(project, "classifier") + _folders(project, "features")


def _folders(project: Project, kind: str) -> list[Path]:
    return [path for path in project.work(f"{kind}/*") if path.is_dir()]


def content(path: Path) -> Any:
    """What is compared: bytes; of metrics, all but the speed, which is that of the moment."""
    if path.is_dir():
        return {file.name: content(file) for file in sorted(path.iterdir())}
    if path.parent.name == "metrics":
        return {**json.loads(path.read_text()), "images_per_second_nfe1": None}
    return files.sha256(path)


class Scene:
    """A copy of the reference that stands before a stage."""

    def __init__(self, home: Path, truth: Project, stage: str, env: dict[str, str]) -> None:
        self.truth, self.stage, self.about = truth, stage, STAGES[stage]
        self.path = home / "scene"
        shutil.rmtree(self.path, ignore_errors=True)
        self.project = truth.copy(self.path)
        for name in (stage, *self.about.later):
            for path in work_of(self.project, name):
                shutil.rmtree(path)
            for out in STAGES[name].outs:
                path = self.path / out
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        shutil.rmtree(self.path / ".dvc/cache/runs", ignore_errors=True)
        lock = self.path / "dvc.lock"  # which would let DVC restore the product from its cache
        document = yaml.safe_load(lock.read_text())
        for name in (stage, *self.about.later):
            document["stages"].pop(name)
        lock.write_text(yaml.safe_dump(document))
        self.faults = home / "faults"
        shutil.rmtree(self.faults, ignore_errors=True)
        self.faults.mkdir()
        self.env = {**self.project.env, **env, "FAULT_HOME": str(self.faults),
                    "RFPP_RETRY_SECONDS": "0.1", "PYTHONPATH": str(INJECT)}  # fmt: skip
        self.log = home / "scene.log"
        self.log.write_text("")
        self.struck = False
        self.width = int(env["RFPP_WORKERS"])
        self.notes: dict[str, Any] = {}
        self.product = self.path / self.about.product
        verb, _, row = stage.partition("@")
        self.verb, self.pairs, self.trains = verb, verb == "generate", verb == "train"
        self.command = [sys.executable, "-m", f"pipeline.stages.{verb}", *([row] if row else [])]
        self.dvc = ["dvc", "repro", "-s", stage]

    def hit(self, what: T) -> T:
        """Notes whether the attack met what it was meant for: a kill may come too late."""
        self.struck = bool(what)
        return what

    def private(self) -> None:
        """Has the stage start a Prefect server of its own."""
        self.env.pop("PREFECT_API_URL", None)
        self.notes["private"] = True

    def commit(self) -> None:
        """Experiments begin from a commit."""
        self.finish(["git", "add", "-f", "dvc.lock"])
        self.finish(["git", "commit", "-qm", "lock"])

    def start(self, command: list[str] | None = None, **env: str) -> subprocess.Popen[bytes]:
        out = self.log.open("ab")
        return subprocess.Popen(command or self.command, cwd=self.path, env={**self.env, **env},
                                stdout=out, stderr=out, start_new_session=True)  # fmt: skip

    def finish(self, command: list[str] | None = None, code: int = 0, **env: str) -> str:
        """Runs to the end and returns what was said; the exit code must be ``code``."""
        before = self.log.stat().st_size
        got = self.start(command, **env).wait(600)
        said = self.log.read_bytes()[before:].decode(errors="replace")
        if got != code:
            raise Failure(f"exit code {got}, not {code}: {said[-400:]}")
        return said

    def half_done(self, least: int) -> None:
        """Kills a run as soon as so much of it is staged."""
        process = self.start()
        self.until(process, lambda: len(self.staged()) >= least)
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        self.no_orphans()

    def work(self) -> list[Path]:
        """The folders of its staged work."""
        return work_of(self.project, self.stage)

    def staged(self) -> list[Path]:
        """What shows how far it is: markers of states and of shards, and measurements."""
        return [path for folder in self.work() for pattern in STAGED[self.verb]
                for path in sorted(folder.glob(pattern))]  # fmt: skip

    def done_for_good(self) -> dict[Path, int]:
        """What is staged and must not be written again; a training drops its older states."""
        return {path: path.stat().st_mtime_ns for path in self.staged()
                if not path.name.startswith("state-")}  # fmt: skip

    def until(self, process: subprocess.Popen[bytes], there: Callable[[], bool]) -> bool:
        """Waits for something to be there; False if the process ended before."""
        deadline = time.monotonic() + 120
        while not there():
            if process.poll() is not None:
                return False
            if time.monotonic() > deadline:
                raise Failure("nothing happened for two minutes")
            time.sleep(0.002)
        return True

    def pids(self, text: str) -> list[int]:
        """Processes of the scene whose command line has a text."""
        return [pid for pid, line in processes_in(self.path).items() if text in line]

    def workers(self) -> list[int]:
        return self.pids("spawn_main")

    def no_orphans(self) -> None:
        deadline = time.monotonic() + 20
        while there := processes_in(self.path):
            if time.monotonic() > deadline:
                raise Failure(f"orphans: {there}")
            time.sleep(0.05)

    def clear(self) -> None:
        """Ends whatever still runs."""
        for pid in processes_in(self.path):
            os.kill(pid, signal.SIGKILL)

    def made(self) -> list[int]:
        """Every shard that a worker began, in order."""
        return [int(line) for line in self._logged("made")]

    def measured(self) -> list[str]:
        """Every measurement that was written, in order."""
        return self._logged("measured")

    def _logged(self, name: str) -> list[str]:
        log = self.faults / name
        return log.read_text().split() if log.exists() else []

    def no_twice(self, kills: int = 0) -> None:
        """No shard was begun twice, but for those that workers had in hand at a kill; no step of
        a training was made twice, and nothing was measured twice."""
        steps = sum(map(int, re.findall(r": (\d+) steps in", self.log.read_text())))
        if self.trains and not kills and steps != self.about.steps:
            raise Failure(f"{steps} steps were made, not {self.about.steps}")
        made = self.made()
        if len(made) - len(set(made)) > kills * self.width:
            raise Failure(f"shards made twice: {sorted(made)}")
        measured = self.measured()
        if len(measured) > len(set(measured)):
            raise Failure(f"measured twice: {sorted(measured)}")

    def resume(self, command: list[str] | None = None) -> None:
        """Runs again: only what is missing, and the same bytes."""
        self.no_orphans()
        before, begun, resumes = self.staged(), len(self.made()), self._resumes()
        kept = self.done_for_good()
        said = self.finish(command)
        if resumes not in said:
            raise Failure(f"not {resumes!r}: {said[-300:]}")
        if moved := [path for path, at in kept.items() if path.stat().st_mtime_ns != at]:
            raise Failure(f"written again: {moved}")
        if self.pairs:
            again = len(self.made()) - begun
            self.notes |= {"kept": len(before), "again": again}
            if again != SHARDS - len(before):
                raise Failure(f"{again} shards made with {len(before)} of {SHARDS} there")
            self.no_twice(kills=1)
        if self.verb == "evaluate":
            self.no_twice()
        self.same()
        self.no_orphans()

    def _resumes(self) -> str:
        """What a training must say when it is run again: that it loses no saved step."""
        states = [path for path in self.staged() if path.name.startswith("state-")]
        steps = [int(path.stem.partition("-")[2]) for path in states]
        if not steps or self._skipped():
            return ""
        over = steps[-1] == self.about.steps
        if self.trains:
            over = any(any(folder.glob("flow-*.safetensors")) for folder in self.work())
        return "finished before" if over else f"resumes at step {steps[-1]}"

    def _skipped(self) -> bool:
        """Whether DVC has recorded the stage, and need not run it again."""
        return self.stage in yaml.safe_load((self.path / "dvc.lock").read_text())["stages"]

    def close(self) -> None:
        """The weights are the reference's but for the order of sums over processes."""
        ours, theirs = (checkpoint.load(project.path / self.about.product).tensors
                        for project in (self.project, self.truth))  # fmt: skip
        gap = max(float((ours[name] - theirs[name]).abs().max()) for name in theirs)
        if gap > TOLERANCE:
            raise Failure(f"weights differ by {gap}")

    def same(self) -> None:
        """The outs are the reference's: nothing lost, nothing twice, no bit moved."""
        for name in self.about.outs:
            ours, theirs = self.path / name, self.truth.path / name
            if self.pairs:
                store = PairStore.open(ours)
                if wrong := verify(store):
                    raise Failure(f"pairs: {wrong}")
                equal = store.digest() == PairStore.open(theirs).digest()
            else:
                equal = content(ours) == content(theirs)
            if not equal:
                raise Failure(f"{name} differs from the uninterrupted run's")
