"""Projects that stand before a stage, and what must hold of them after an attack."""

from __future__ import annotations

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
from typing import TypeVar

import yaml

from rfpp_core.pairs.store import PairStore
from rfpp_core.storage import checkpoint, files
from tests.helpers import ROOT, Project, new_project, processes_in

LATER = {
    "pretrain": ["models/flow1.safetensors", "data/pairs_2.zarr", "models/flow2.safetensors",
                 ".work/pretrain", ".work/pairs", ".work/reflow"],
    "generate": ["data/pairs_2.zarr", "models/flow2.safetensors", ".work/pairs", ".work/reflow"],
    "reflow": ["models/flow2.safetensors", ".work/reflow"],
}  # fmt: skip
AFTER = {
    "pretrain": ["pretrain", "generate@2", "reflow@2"],
    "generate": ["generate@2", "reflow@2"],
    "reflow": ["reflow@2"],
}
STAGED = {
    "pretrain": "pretrain/*/state-*.json",
    "generate": "pairs/*/pairs.zarr/commits/0*.json",
    "reflow": "reflow/*/state-*.json",
}
PRODUCT = {"pretrain": "models/flow1.safetensors", "generate": "data/pairs_2.zarr",
           "reflow": "models/flow2.safetensors"}  # fmt: skip
FOLDER = {"pretrain": "pretrain", "generate": "pairs", "reflow": "reflow"}
INJECT = Path(__file__).parent / "inject"
SHARDS, STEPS = 12, 100  # of presets/smoke.yaml
TOLERANCE = 2e-4  # of 100 updates by two processes
T = TypeVar("T")


class Failure(AssertionError):
    """A promise that did not hold."""


Attack = Callable[["Scene", Random], None]


def code_digest() -> str:
    """Of what is attacked and how: rounds fought otherwise prove nothing."""
    parts = ("pipeline/*.py", "rfpp_core/**/*.py", "tests/faults/**/*.py", "tests/conftest.py",
             "dvc.yaml", "presets/smoke.yaml")  # fmt: skip
    code = sorted(path for part in parts for path in ROOT.glob(part))
    return files.digest([files.sha256(path) for path in code])[:16]


def reference(home: Path, digest: str) -> Project:
    """The uninterrupted run that every other is compared with; made once for the code as it is."""
    project, done = Project(home / "reference"), home / "reference.done"
    if not done.exists() or done.read_text() != digest:
        shutil.rmtree(project.path, ignore_errors=True)
        new_project(project.path)
        project.run("dvc", "repro", "reflow@2")
        done.write_text(digest)
    return project


class Scene:
    """A copy of the reference that stands before a stage."""

    def __init__(self, home: Path, truth: Project, stage: str, env: dict[str, str]) -> None:
        self.truth, self.stage = truth, stage
        self.path = home / "scene"
        shutil.rmtree(self.path, ignore_errors=True)
        shutil.copytree(truth.path, self.path, symlinks=True)
        for name in (*LATER[stage], ".dvc/cache/runs"):
            path = self.path / name
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        lock = self.path / "dvc.lock"  # which would let DVC restore the product from its cache
        document = yaml.safe_load(lock.read_text())
        for name in AFTER[stage]:
            document["stages"].pop(name, None)
        lock.write_text(yaml.safe_dump(document))
        self.faults = home / "faults"
        shutil.rmtree(self.faults, ignore_errors=True)
        self.faults.mkdir()
        self.env = {**Project(self.path).env, **env, "FAULT_HOME": str(self.faults),
                    "RFPP_RETRY_SECONDS": "0.1", "PYTHONPATH": str(INJECT)}  # fmt: skip
        self.log = home / "scene.log"
        self.log.write_text("")
        self.struck = False
        self.width = int(env["RFPP_WORKERS"])
        self.notes: dict[str, float] = {}
        self.product, self.folder = self.path / PRODUCT[stage], FOLDER[stage]
        round_name = [] if stage == "pretrain" else ["2"]
        self.command = [sys.executable, "-m", f"pipeline.{stage}", *round_name]
        self.target = "@".join([stage, *round_name])
        self.dvc = ["dvc", "repro", "-s", self.target]

    def hit(self, what: T) -> T:
        """Notes whether the attack met what it was meant for: a kill may come too late."""
        self.struck = bool(what)
        return what

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

    def staged(self) -> list[Path]:
        return sorted((self.path / ".work").glob(STAGED[self.stage]))

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
        log = self.faults / "made"
        return [int(line) for line in log.read_text().split()] if log.exists() else []

    def no_twice(self, kills: int = 0) -> None:
        """No shard was begun twice, but for those that workers had in hand at a kill; no step of
        a training was made twice."""
        steps = sum(map(int, re.findall(r": (\d+) steps in", self.log.read_text())))
        if self.stage != "generate" and not kills and steps != STEPS:
            raise Failure(f"{steps} steps were made, not {STEPS}")
        made = self.made()
        if len(made) - len(set(made)) > kills * self.width:
            raise Failure(f"shards made twice: {sorted(made)}")

    def resume(self, command: list[str] | None = None) -> None:
        """Runs again: the missing shards only, and the same bytes."""
        self.no_orphans()
        kept, begun, goes_on = len(self.staged()), len(self.made()), self._goes_on()
        said = self.finish(command)
        if goes_on not in said:
            raise Failure(f"not {goes_on!r}: {said[-300:]}")
        if self.stage == "generate":
            again = len(self.made()) - begun
            self.notes |= {"kept": kept, "again": again}
            if again != SHARDS - kept:
                raise Failure(f"{again} shards made with {kept} of {SHARDS} there")
            self.no_twice(kills=1)
        self.same()
        self.no_orphans()

    def _goes_on(self) -> str:
        """What a training must say when it is run again: that it loses no saved step."""
        if self.stage == "generate":
            return ""
        states = self.staged()
        if list((self.path / ".work").glob(f"{self.folder}/*/flow-*.safetensors")):
            return "finished before" if not self._skipped() else ""
        return f"resumes at step {int(states[-1].stem.partition('-')[2])}" if states else ""

    def _skipped(self) -> bool:
        """Whether DVC has recorded the stage, and need not run it again."""
        stages = yaml.safe_load((self.path / "dvc.lock").read_text())["stages"]
        return self.target in stages

    def close(self) -> None:
        """The weights are the reference's but for the order of sums over processes."""
        ours, theirs = (checkpoint.load(project / PRODUCT[self.stage]).tensors
                        for project in (self.path, self.truth.path))  # fmt: skip
        gap = max(float((ours[name] - theirs[name]).abs().max()) for name in theirs)
        if gap > TOLERANCE:
            raise Failure(f"weights differ by {gap}")

    def same(self) -> None:
        """The product is the reference's: nothing lost, nothing twice, no bit moved."""
        name = PRODUCT[self.stage]
        ours, theirs = self.product, self.truth.path / name
        if self.stage == "generate":
            store = PairStore.open(ours)
            if wrong := store.verify():
                raise Failure(f"pairs: {wrong}")
            equal = store.digest() == PairStore.open(theirs).digest()
        else:
            curve = name.replace("models", "curves").replace(".safetensors", "_loss.csv")
            equal = files.sha256(ours) == files.sha256(theirs)
            if (self.path / curve).read_text() != (self.truth.path / curve).read_text():
                raise Failure("the loss curve differs")
        if not equal:
            raise Failure(f"{name} differs from the uninterrupted run's")
