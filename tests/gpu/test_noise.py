"""Draws have the same bits on every device, and a shard drawn on any of them can be committed."""

import numpy as np
import torch

from rfpp_core import rng
from rfpp_core.pairs.spec import Pairs
from rfpp_core.pairs.store import PairStore
from rfpp_core.rng import StepRNG
from tests.helpers import spec_for

INDEX = torch.tensor([0, 1, 2, 1000, 2**20 + 1, 2**40 + 7])


def test_noise_is_that_of_the_cpu(device):
    many = torch.arange(3000)
    for index in (INDEX, many):
        there = index.to(device)
        for key in (0, 7, 2**63 + 11):
            assert torch.equal(
                rng.normal(key, there, (3, 5, 7)).cpu(), rng.normal(key, index, (3, 5, 7))
            )
            assert torch.equal(rng.uniform(key, there).cpu(), rng.uniform(key, index))
            assert torch.equal(rng.labels(key, there, 10).cpu(), rng.labels(key, index, 10))


def test_the_draws_of_a_step_are_those_of_the_cpu(device):
    here, there = StepRNG(3, 9, 32, 8, 24), StepRNG(3, 9, 32, 8, 24, device)
    assert torch.equal(
        there.normal("coupling", (3, 4, 4)).cpu(), here.normal("coupling", (3, 4, 4))
    )
    assert torch.equal(there.uniform("t").cpu(), here.uniform("t"))
    assert torch.equal(there.antithetic("t").cpu(), here.antithetic("t"))


def test_a_shard_of_the_device_s_noise_is_committed(device, tmp_path):
    spec = spec_for()
    store = PairStore.create(tmp_path / "p.zarr", spec, 20)
    z = spec.z(spec.index(0, 5).to(device))[0].cpu().numpy()
    pairs = Pairs(np.zeros((20, 1, 8, 8), np.uint8), np.full(20, -1, np.int16), None)
    store.commit(0, pairs, z)
    assert PairStore.open(store.path).committed() == [0]
