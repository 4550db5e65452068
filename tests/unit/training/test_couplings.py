import pytest
import torch

from rfpp_core import rng
from rfpp_core.images.loader import Batch
from rfpp_core.images.pixels import to_float
from rfpp_core.rng import StepRNG
from rfpp_core.training.couplings.independent import independent
from rfpp_core.training.couplings.mixed import mixed
from rfpp_core.training.couplings.paired import seeded, stored

GENERATOR = torch.Generator().manual_seed(0)
NOISE = torch.randn(50, 1, 4, 4, generator=GENERATOR)
AT = torch.randperm(50, generator=GENERATOR)[:40]
BATCH = Batch(torch.full((40, 1, 4, 4), 9.0), AT, torch.full((40,), 7))


def test_independent_noise_is_fresh_at_every_step():
    x, z, y = independent(BATCH, StepRNG(0, 3, 40))
    assert torch.equal(x, BATCH.x)
    assert torch.equal(y, BATCH.y)
    assert torch.equal(independent(BATCH, StepRNG(0, 3, 40)).z, z)
    assert not torch.equal(independent(BATCH, StepRNG(0, 4, 40)).z, z)


def test_seeded_noise_is_that_of_the_pair_at_every_step():
    for step in (3, 4):
        x, z, y = seeded(5)(BATCH, StepRNG(0, step, 40))
        assert torch.equal(z, rng.normal(5, AT, (1, 4, 4)))
        assert torch.equal(x, BATCH.x)
        assert torch.equal(y, BATCH.y)


def test_stored_noise_is_that_of_the_pair():
    x, z, y = stored(NOISE)(BATCH, StepRNG(0, 3, 40))
    assert torch.equal(z, NOISE[AT])
    assert torch.equal(x, BATCH.x)
    assert torch.equal(y, BATCH.y)


def test_a_share_of_the_samples_are_pairs_of_the_second_set():
    """Image, noise and label together."""
    images = torch.arange(30, dtype=torch.uint8)[:, None, None, None].expand(30, 1, 4, 4)
    real = stored(NOISE)
    pair = mixed(real, images, torch.arange(30), 0.3, seeded(5))
    counts = []
    for step in range(60):
        x, z, y = pair(BATCH, StepRNG(0, step, 40))
        made = x[:, 0, 0, 0] != 9
        counts.append(int(made.sum()))
        assert torch.equal(z[~made], NOISE[AT][~made])
        assert (y[~made] == 7).all()
        assert torch.equal(x[made], to_float(images[y[made]]))
        assert torch.equal(z[made], rng.normal(5, y[made], (1, 4, 4)))
    share = sum(counts) / (60 * 40)
    assert share == pytest.approx(0.3, abs=4 * (0.21 / 2400) ** 0.5)


def test_a_share_of_0_leaves_the_first_set_as_it_is():
    real = stored(NOISE)
    assert mixed(real, torch.zeros(30, 1, 4, 4), None, 0.0, real) is real
