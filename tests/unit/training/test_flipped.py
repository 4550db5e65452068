"""Paired flips: what they mirror, and that a flip-equivariant network cannot tell."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from rfpp_core.config import objective
from rfpp_core.config.recipe import Recipe
from rfpp_core.images.loader import Batch
from rfpp_core.rng import StepRNG
from rfpp_core.training.couplings import Coupled
from rfpp_core.training.couplings.flipped import flipped
from rfpp_core.training.couplings.independent import independent
from rfpp_core.training.couplings.paired import seeded

N, PAIRS = 400, seeded(7)
GENERATOR = torch.Generator().manual_seed(0)
BATCH = Batch(torch.randn(N, 2, 6, 6, generator=GENERATOR), torch.arange(N), torch.arange(N))
KERNEL = torch.randn(2, 2, 3, 3, generator=GENERATOR)


def test_image_and_noise_are_mirrored_together_or_not_at_all():
    draws = StepRNG(0, 3, N)
    x, z, y = flipped(PAIRS)(BATCH, draws)
    plain = PAIRS(BATCH, draws)
    mirrored = (x == plain.x.flip(-1)).flatten(1).all(1)
    kept = (x == plain.x).flatten(1).all(1)
    assert bool((mirrored ^ kept).all())
    assert torch.equal(z[mirrored], plain.z[mirrored].flip(-1))
    assert torch.equal(z[kept], plain.z[kept])
    assert torch.equal(y, BATCH.y)
    assert int(mirrored.sum()) == pytest.approx(N / 2, abs=40)  # 4 standard deviations
    later = (flipped(PAIRS)(BATCH, StepRNG(0, 4, N)).x == x).flatten(1).all(1)
    assert int(later.sum()) == pytest.approx(N / 2, abs=40)  # coins anew at every step


def test_real_images_are_mirrored_with_fresh_noise():
    x, z, _ = flipped(independent)(BATCH, StepRNG(0, 3, N))
    assert not torch.equal(x, BATCH.x)
    assert float(z.var()) == pytest.approx(1, abs=0.05)


def one_side(coupling):
    """A wrong flip, of the image alone."""

    def pair(batch, draws):
        both, plain = flipped(coupling)(batch, draws), coupling(batch, draws)
        return Coupled(both.x, plain.z, plain.y)

    return pair


def losses_of(coupling, kernel: torch.Tensor) -> torch.Tensor:
    def net(x, t, y=None):
        return torch.tanh(F.conv2d(x, kernel, padding=1)) * t[:, None, None, None]

    recipe = Recipe.model_validate({"loss": {"name": "l2"}})
    return objective.loss(recipe, coupling)(net, BATCH, 3, StepRNG(0, 3, N))["l2"]


def test_the_loss_of_a_flip_equivariant_network_stays_unless_one_side_is_mirrored():
    symmetric = KERNEL + KERNEL.flip(-1)
    plain = losses_of(PAIRS, symmetric)
    torch.testing.assert_close(losses_of(flipped(PAIRS), symmetric), plain)
    changed = (losses_of(one_side(PAIRS), symmetric) - plain).abs() > 1e-3
    assert int(changed.sum()) > N / 3
    assert not torch.allclose(losses_of(flipped(PAIRS), KERNEL), losses_of(PAIRS, KERNEL))
