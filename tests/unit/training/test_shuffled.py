"""Shuffled pairs: the same images and the same noise, in another order."""

import torch

from rfpp_core.images.loader import Batch
from rfpp_core.rng import StepRNG, normal
from rfpp_core.training.couplings.paired import seeded, stored
from rfpp_core.training.couplings.shuffled import shuffled

N = 50
ALL = Batch(torch.rand(N, 1, 4, 4), torch.arange(N), torch.arange(N))


def test_every_noise_is_there_once_and_never_with_its_image():
    z = normal(5, torch.arange(N), (1, 4, 4))
    for pairs in (seeded(5), stored(z)):
        x, other, y = shuffled(pairs, N, 7)(ALL, StepRNG(0, 3, N))
        assert torch.equal(x, ALL.x)
        assert torch.equal(y, ALL.y)
        place = torch.tensor([int((z == row).flatten(1).all(1).nonzero()) for row in other])
        assert torch.equal(place.sort().values, torch.arange(N))
        assert (place != torch.arange(N)).all()


def test_the_order_stays_and_follows_from_the_seed():
    def noise(seed, step, batch=ALL):
        return shuffled(seeded(5), N, seed)(batch, StepRNG(0, step, len(batch.x))).z

    assert torch.equal(noise(7, 1), noise(7, 2))
    assert not torch.equal(noise(7, 1), noise(8, 1))
    some = torch.tensor([3, 30])
    part = Batch(ALL.x[some], some, None)
    assert torch.equal(noise(7, 1, part), noise(7, 1)[some])


def test_two_pairs_are_exchanged():
    batch = Batch(ALL.x[:2], torch.arange(2), None)
    z = normal(5, torch.arange(2), (1, 4, 4))
    assert torch.equal(shuffled(seeded(5), 2, 0)(batch, StepRNG(0, 0, 2)).z, z.flip(0))
