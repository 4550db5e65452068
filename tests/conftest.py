"""Shared fixtures: the smoke params, and projects that ran before a test, which copies them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from filelock import FileLock

from rfpp_core.config import params, yaml_file
from tests.helpers import SMOKE, Project, new_project


@pytest.fixture(autouse=True, scope="session")
def _quiet_environment():
    """No setting of the user's shell leaks into the tests."""
    for name in [name for name in os.environ if name.startswith(("RFPP_", "DVC_", "PREFECT_"))]:
        del os.environ[name]
    os.environ["DVC_NO_ANALYTICS"] = "1"


@pytest.fixture
def smoke() -> params.Params:
    return params.parse(yaml_file.parse(SMOKE, "smoke"))


@pytest.fixture(scope="session")
def finished(tmp_path_factory, worker_id) -> Project:
    """A project whose whole pipeline ran once, uninterrupted."""
    return _shared(tmp_path_factory, worker_id, "finished")


@pytest.fixture(scope="session")
def pretrained(tmp_path_factory, worker_id) -> Project:
    """A project that stands before generate."""
    return _shared(tmp_path_factory, worker_id, "pretrained", "reference", "train@flow1")


def _shared(factory: pytest.TempPathFactory, worker: str, name: str, *targets: str) -> Project:
    """A project run once for all test processes, which only copy it; with TEST_PROJECTS, a folder,
    once for all runs of the tests of this code."""
    base = factory.getbasetemp()
    home = Path(os.environ.get("TEST_PROJECTS") or (base if worker == "master" else base.parent))
    home.mkdir(parents=True, exist_ok=True)
    home = home / name
    with FileLock(f"{home}.lock"):
        if not (home / "done").exists():
            new_project(home / "project").run("dvc", "repro", *targets)
            (home / "done").touch()
    return Project(home / "project")


@pytest.fixture
def project(tmp_path) -> Project:
    return new_project(tmp_path / "project")
