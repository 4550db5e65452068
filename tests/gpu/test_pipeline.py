"""From images to a flow on pairs through worker processes, one of which is killed."""

import os
import signal

import pytest
import torch

from pipeline.workers.pool import ProcessPool, WorkerDied
from rfpp_core import load_flow
from rfpp_core.config import build
from rfpp_core.pairs.store import PairStore
from rfpp_core.storage import checkpoint
from rfpp_core.training.couplings.paired import seeded
from tests.gpu.small import SHAPE, architecture, go, images, start, with_
from tests.helpers import spec_for


def save(path, arch, state):
    metadata = {
        "architecture": architecture(arch),
        "provenance": {"stage": "train", "budget": 1, "budget_with_ancestors": 1},
    }
    checkpoint.save(path, state.average.state_dict(), metadata)
    return load_flow(path).digest


def test_pairs_through_workers_and_a_kill(device, tmp_path):
    arch, recipe = "ncsnpp", with_(steps=6)
    first = start(arch, recipe, device)
    go(first, recipe)
    teacher = tmp_path / "flow1.safetensors"
    spec = spec_for(save(teacher, arch, first), shape=SHAPE, micro_batch=4, shard=8)
    stores = [PairStore.create(tmp_path / f"{name}.zarr", spec, 24).path for name in "ab"]
    pool = ProcessPool(["cuda:0" if device.type == "cuda" else "cpu"])
    try:
        call = ("pipeline.workers.tasks:make_shard", str(stores[0]), str(teacher))
        pool.call(*call, 0)
        pid = pool.call("os:getpid")
        with pytest.raises(WorkerDied, match="was killed"):
            pool.call("os:kill", pid, signal.SIGKILL)
        kept = PairStore.open(stores[0])
        assert kept.committed() == [0]
        for shard in kept.missing():
            pool.call(*call, shard)
        again = pool.call("pipeline.workers.tasks:regenerate", str(stores[0]), str(teacher), 2)
        assert (again.share, again.same_machine) == (0.0, True)
        for shard in (2, 0, 1):
            pool.call("pipeline.workers.tasks:make_shard", str(stores[1]), str(teacher), shard)
        assert pool.call("os:getpid") != os.getpid()
    finally:
        pool.close(kill=True)
    one, other = (PairStore.open(path) for path in stores)
    assert one.verify() == other.verify() == []
    assert one.digest() == other.digest()

    pairs = torch.from_numpy(one.read_all().images)
    second = start(arch, recipe, device)
    second.net.load_state_dict(first.average.state_dict())
    go(second, recipe, coupling=seeded(spec.seed), data=pairs)
    save(tmp_path / "flow2.safetensors", arch, second)
    drawn = build.load_flow(tmp_path / "flow2.safetensors", device).sample(5, 1)
    assert torch.isfinite(drawn).all()
    assert images().shape[1:] == drawn.shape[1:]
