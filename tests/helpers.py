"""What tests share: the smoke params, a small flow, a pair store's spec, and whole projects."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import torch

from pipeline.cli import presets
from rfpp_core.config import build
from rfpp_core.config.network import Network
from rfpp_core.pairs.spec import PairSpec
from rfpp_core.storage import checkpoint

ROOT = Path(__file__).parent.parent
SMOKE = presets.composed("smoke")  # the text of a params file


def tiny_arch(classes: int = 0, precond: str = "velocity", attention: int = 0) -> dict:
    network = Network(channels=8, multipliers=(1, 2), precond=precond, conditional=classes > 0,
                      attention=attention)  # fmt: skip
    return build.architecture(network, (1, 8, 8), classes)


def randomised(field: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """Gives zero-initialised layers something to do."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in field.parameters():
            p.add_(0.05 * torch.randn(p.shape, generator=generator))
    return field


def save_tiny(path: Path, classes: int = 0, seed: int = 0, attention: int = 0) -> Path:
    """A model file of an untrained flow."""
    arch = tiny_arch(classes, attention=attention)
    metadata = {
        "architecture": arch,
        "provenance": {"stage": "train", "budget": 1, "budget_with_ancestors": 1},
    }
    checkpoint.save(path, randomised(build.field(arch), seed).state_dict(), metadata)
    return path


def spec_for(teacher: str = "t" * 64, **changes) -> PairSpec:
    values = dict(
        teacher=teacher, solver="heun", nfe=3, grid="uniform", guidance=1.0, classes=0, seed=7,
        shape=(1, 8, 8), micro_batch=5, shard=20,
    )  # fmt: skip
    return PairSpec(**{**values, **changes})


class Project:
    """A copy of the project in its own git repository, at smoke size."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def env(self) -> dict[str, str]:
        bin_folder = str(Path(sys.executable).parent)
        return {
            **os.environ,
            "PATH": f"{bin_folder}{os.pathsep}{os.environ['PATH']}",
            "RFPP_CHECKPOINT_SECONDS": "0",
            "PYTHONDONTWRITEBYTECODE": "1",
            "GIT_AUTHOR_NAME": "t", "GIT_AUTHOR_EMAIL": "t@example.org",
            "GIT_COMMITTER_NAME": "t", "GIT_COMMITTER_EMAIL": "t@example.org",
        }  # fmt: skip

    def start(self, *command: str) -> subprocess.Popen:
        log = (self.path.parent / f"{self.path.name}.log").open("ab")
        return subprocess.Popen(
            command, cwd=self.path, env=self.env, stdout=log, stderr=log, start_new_session=True
        )

    def run(self, *command: str, ok: bool = True) -> subprocess.CompletedProcess:
        done = subprocess.run(command, cwd=self.path, env=self.env, capture_output=True, text=True)
        assert not ok or done.returncode == 0, done.stdout + done.stderr
        return done

    def stage(self, name: str, *args: str, ok: bool = True) -> subprocess.CompletedProcess:
        return self.run(sys.executable, "-m", f"pipeline.stages.{name}", *args, ok=ok)

    def rfpp(self, *args: str, ok: bool = True) -> subprocess.CompletedProcess:
        return self.run(sys.executable, "-m", "pipeline.cli.main", *args, ok=ok)

    def edit(self, name: str, old: str, new: str) -> None:
        text = (self.path / name).read_text()
        assert old in text
        (self.path / name).write_text(text.replace(old, new, 1))

    def set(self, *values: str) -> None:
        """Params as for `rfpp preset --set`: ``evaluate.n=210``."""
        text = (self.path / "params.yaml").read_text()
        for value in values:
            text = presets.with_value(text, value)
        (self.path / "params.yaml").write_text(text)

    def rename(self, old: str, new: str) -> None:
        """A name everywhere in the params."""
        text = (self.path / "params.yaml").read_text()
        assert re.search(rf"\b{old}\b", text)
        (self.path / "params.yaml").write_text(re.sub(rf"\b{old}\b", new, text))

    def work(self, pattern: str) -> list[Path]:
        """Staged work."""
        return sorted((self.path / ".work").glob(pattern))

    def trainings(self, data: str) -> list[Path]:
        """Staged trainings on ``images`` or on ``pairs``, which identity.json tells apart: names
        are in no identity."""
        found = []
        for file in self.work("train/*/identity.json"):
            coupling = json.loads(file.read_text())["data"][0]["coupling"]
            if (coupling == "independent") == (data == "images"):
                found.append(file.parent)
        return found

    def states(self, data: str) -> list[Path]:
        """Markers of the states of these trainings."""
        return [path for folder in self.trainings(data)
                for path in sorted(folder.glob("state-*.json"))]  # fmt: skip

    def copy(self, path: Path) -> Project:
        shutil.copytree(self.path, path, symlinks=True)
        return Project(path)


def ran(output: str) -> list[str]:
    """Stages that ``dvc repro`` ran; ``source`` always runs."""
    return re.findall(r"Running stage '(.*)'", output)


def processes_in(folder: Path) -> dict[int, str]:
    """Pid and command line of the processes whose directory is in a folder."""
    found = {}
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if (process / "cwd").resolve().is_relative_to(folder):
                found[int(process.name)] = (process / "cmdline").read_text()
        except OSError:
            continue
    return found


def new_project(path: Path) -> Project:
    path.mkdir(parents=True)
    for name in ("dvc.yaml", ".dvcignore", ".gitignore", "pyproject.toml"):
        shutil.copy(ROOT / name, path / name)
    for name in ("rfpp_core", "pipeline", "presets", "plots"):
        shutil.copytree(ROOT / name, path / name, ignore=shutil.ignore_patterns("__pycache__"))
    (path / ".dvc").mkdir()
    for name in ("config", ".gitignore"):
        shutil.copy(ROOT / ".dvc" / name, path / ".dvc" / name)
    for name in ("data", "data/raw"):
        (path / name).mkdir()
        shutil.copy(ROOT / name / ".gitignore", path / name / ".gitignore")
    (path / "params.yaml").write_text(SMOKE)
    project = Project(path)
    project.run("git", "init", "-q")
    project.run("git", "add", "-A")
    project.run("git", "commit", "-qm", "start")
    return project
