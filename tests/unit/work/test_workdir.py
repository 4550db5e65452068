"""Staging: one process an identity at a time, and nothing half written stays."""

import os
import subprocess
import sys
import time

import pytest

from pipeline.work import workdir
from rfpp_core.errors import UserError
from rfpp_core.storage import files


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".dvc").mkdir()
    return tmp_path


def test_a_changed_identity_is_not_published():
    workdir.confirm({"a": 1, "b": 2}, {"a": 1, "b": 2})
    with pytest.raises(UserError, match=r"changed during the run \(b; identity"):
        workdir.confirm({"a": 1, "b": 2}, {"a": 1, "b": 3})


HOLD = (
    "from pipeline.work import workdir\n"
    "with workdir.staging('x', {'a': 1}):\n"
    "    print('in', flush=True); input()\n"
)


def hold() -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", HOLD], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip


def test_a_busy_identity_waits_and_names_the_holder(here):
    holder = hold()
    assert holder.stdout.readline() == "in\n"
    waiter = hold()
    assert f"busy in process {holder.pid}" in waiter.stderr.readline()
    assert waiter.poll() is None
    holder.communicate("\n")
    assert waiter.communicate("\n")[0] == "in\n"


def test_a_killed_holder_frees_its_lock(here):
    holder = hold()
    holder.stdout.readline()
    holder.kill()
    holder.wait()
    start = time.monotonic()
    with workdir.staging("x", {"a": 1}):
        assert time.monotonic() - start < 5


def test_publishing_replaces_whole_files(tmp_path):
    source, target = tmp_path / "a", tmp_path / "out" / "b"
    source.write_text("new")
    target.parent.mkdir()
    target.write_text("old")
    files.publish(source, target)
    assert target.read_text() == "new"
    assert source.exists()
    assert [path.name for path in target.parent.iterdir()] == ["b"]


def test_what_a_killed_run_left_half_written_is_cleared_away(here):
    with workdir.staging("pairs", {"a": 1}) as work:
        (work.path / "commits").mkdir()
        left = [work.path / ".state.9.partial", work.path / "commits/.000001.json.9.partial"]
        for path in left:
            path.write_text("half")
        (work.path / "state").write_text("whole")
    with workdir.staging("pairs", {"a": 1}) as work:
        assert not any(path.exists() for path in left)
        assert (work.path / "state").read_text() == "whole"
    link = here / "models" / ".flow.9.partial"
    link.parent.mkdir()
    link.write_text("half")
    files.publish(work.path / "state", here / "models" / "flow")
    assert [path.name for path in link.parent.iterdir()] == ["flow"]
