"""Staging: one process an identity at a time, and nothing half written stays."""

import os
import subprocess
import sys
import threading
import time

import pytest
import torch

from pipeline.work import workdir
from rfpp_core.errors import UserError
from rfpp_core.storage import checkpoint, files


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


class Counter:
    """A training whose weights are its number of updates."""

    def __init__(self):
        self.step, self.weights = 0, torch.zeros(2, 3, 4, 4).to(memory_format=torch.channels_last)

    def update(self):
        self.step += 1
        self.weights += 1

    def tensors(self):
        return {"weights": self.weights}

    def metadata(self):
        return {"step": self.step}


@pytest.fixture
def every_call(monkeypatch):
    monkeypatch.setenv("RFPP_CHECKPOINT_SECONDS", "0")


def test_a_training_goes_on_while_its_state_is_written(tmp_path, monkeypatch, every_call):
    """The state written is that of the call, whatever the training did since."""
    go, save = threading.Event(), checkpoint.save_state
    monkeypatch.setattr(checkpoint, "save_state", lambda *a: (go.wait(60), save(*a)))
    state = Counter()
    with workdir.Saver(tmp_path, state, lambda: {"seen": state.step}) as saver:
        state.update()
        saver.maybe(done=False)
        state.update()
        assert not list(tmp_path.iterdir())
        go.set()
    found = checkpoint.load_state(tmp_path, 9)
    assert found.metadata == {"step": 1, "seen": 1}
    assert torch.equal(found.tensors["weights"], torch.ones(2, 3, 4, 4))


def test_every_state_asked_for_is_written(tmp_path, every_call):
    state = Counter()
    with workdir.Saver(tmp_path, state, dict) as saver:
        for _ in range(5):
            state.update()
            saver.maybe(done=False)
    assert checkpoint.load_state(tmp_path, 9).metadata["step"] == 5
    assert checkpoint.load_state(tmp_path, 4).metadata["step"] == 4


def test_a_state_that_cannot_be_written_ends_the_training(tmp_path, every_call):
    (tmp_path / "file").touch()
    state = Counter()

    def two_states():
        with workdir.Saver(tmp_path / "file", state, dict) as saver:
            for _ in range(2):
                state.update()
                saver.maybe(done=False)
        raise AssertionError("the second call did not tell")

    with pytest.raises(FileExistsError):
        two_states()
