"""From images to a flow on pairs: a training and a worker are killed while they work."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest
import torch

from pipeline.workers.pool import ProcessPool, WorkerDied
from rfpp_core.config import build
from rfpp_core.pairs.store import PairStore
from rfpp_core.pairs.verify import verify
from rfpp_core.storage import checkpoint
from rfpp_core.training.couplings.paired import seeded
from tests.gpu.small import SHAPE, architecture, go, start, with_
from tests.helpers import ROOT, spec_for

SECONDS = 300  # that anything here may take


def wait_for(path, process=None):
    """Waits until a file is there; the process that makes it must be alive."""
    end = time.monotonic() + SECONDS
    while not path.exists():
        assert time.monotonic() < end
        assert process is None or process.poll() is None
        time.sleep(0.01)


def training(device, folder, *hang):
    folder.mkdir(exist_ok=True)
    return subprocess.Popen(
        [sys.executable, "-m", "tests.gpu.one", device.type, str(folder), *hang], cwd=ROOT
    )


@pytest.fixture
def teacher(device, tmp_path):
    """A flow whose training was killed in its sixth update; one that was not has the same bits."""
    killed = training(device, tmp_path / "killed", "5")
    undisturbed = training(device, tmp_path / "undisturbed")
    wait_for(tmp_path / "killed" / "hangs", killed)
    killed.kill()
    assert killed.wait(SECONDS) == -signal.SIGKILL
    assert training(device, tmp_path / "killed").wait(SECONDS) == 0
    assert undisturbed.wait(SECONDS) == 0
    assert (tmp_path / "killed" / "began").read_text() == "3"  # the last report before
    one, other = (
        checkpoint.load(tmp_path / name / "weights.safetensors")
        for name in ("killed", "undisturbed")
    )
    assert one.weights == other.weights
    return save(tmp_path / "flow1.safetensors", one.tensors)


def save(path, weights):
    metadata = {
        "architecture": architecture("ncsnpp"),
        "provenance": {"stage": "train", "budget": 1, "budget_with_ancestors": 1},
    }
    checkpoint.save(path, weights, metadata)
    return path


def kill_while_it_works(pool, store, teacher, shard, flag):
    """Kills the worker after its second micro-batch of a shard."""
    pid, died = pool.call("os:getpid"), []

    def call():
        try:
            pool.call("tests.gpu.hanging:make_shard", str(store), str(teacher), shard, str(flag))
        except WorkerDied as error:
            died.append(str(error))

    thread = threading.Thread(target=call)
    thread.start()
    wait_for(flag)
    os.kill(pid, signal.SIGKILL)
    thread.join(SECONDS)
    assert not thread.is_alive()
    [line] = died
    assert "was killed" in line


def test_a_pipeline_of_which_everything_is_killed_once(device, teacher, tmp_path):
    digest = build.load_flow(teacher).digest
    spec = spec_for(digest, shape=SHAPE, micro_batch=2, shard=8)
    killed, undisturbed = (
        PairStore.create(tmp_path / f"{name}.zarr", spec, 24).path for name in "ab"
    )
    pool = ProcessPool(["cuda:0" if device.type == "cuda" else "cpu"])
    try:
        make = ("pipeline.workers.tasks:make_shard", str(killed), str(teacher))
        pool.call(*make, 0)
        kill_while_it_works(pool, killed, teacher, 1, tmp_path / "hangs")
        left = PairStore.open(killed)
        assert left.committed() == [0]
        for shard in left.missing():
            pool.call(*make, shard)
        again = pool.call("pipeline.workers.tasks:regenerate", str(killed), str(teacher), 2)
        assert (again.share, again.same_machine) == (0.0, True)
        for shard in (2, 0, 1):
            pool.call("pipeline.workers.tasks:make_shard", str(undisturbed), str(teacher), shard)
        assert pool.call("os:getpid") != os.getpid()
    finally:
        pool.close(kill=True)
    one, other = PairStore.open(killed), PairStore.open(undisturbed)
    assert verify(one) == verify(other) == []
    assert one.digest() == other.digest()

    recipe, pairs = with_(steps=6), torch.from_numpy(one.read_all().images)
    second = start("ncsnpp", recipe, device)
    second.net.load_state_dict(checkpoint.load(teacher).tensors)
    go(second, recipe, coupling=seeded(spec.seed), data=pairs)
    student = save(tmp_path / "flow2.safetensors", second.average.state_dict())
    drawn = build.load_flow(student, device).sample(5, 1)
    assert torch.isfinite(drawn).all()
    assert drawn.shape == (5, *SHAPE)
