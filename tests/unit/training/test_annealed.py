"""Annealed noise against its definition: ends, variance, correlation, and the two losses."""

from __future__ import annotations

import math

import pytest
import torch

from rfpp_core.config import objective
from rfpp_core.config.recipe import Anneal, Recipe
from rfpp_core.images.loader import Batch
from rfpp_core.rng import StepRNG
from rfpp_core.training.couplings.independent import independent
from rfpp_core.training.couplings.mixed import mixed
from rfpp_core.training.couplings.paired import seeded, stored

PAIRS = seeded(7)
N = 200
BATCH = Batch(torch.randn(N, 1, 8, 8, generator=torch.Generator().manual_seed(0)),
              torch.arange(N), torch.arange(N) % 10)  # fmt: skip


def beta(schedule: str, steps: int = 300_000):
    return objective.SCHEDULES[schedule](Anneal(schedule=schedule, steps=steps))


@pytest.mark.parametrize("schedule", ["linear", "cos"])
@pytest.mark.parametrize("steps", [1, 2, 1000, 300_000])
def test_the_share_falls_from_one_to_zero_exactly(schedule, steps):
    at = beta(schedule, steps)
    assert (at(0), at(steps), at(steps + 1), at(10 * steps)) == (1, 0, 0, 0)
    if steps % 2 == 0:
        assert at(steps // 2) == pytest.approx(0.5)
    shares = [at(k * steps // 20) for k in range(21)]
    assert shares == sorted(shares, reverse=True)


def test_the_published_schedule():
    """SlimFlow's default is 1 - min(1, k / (6 K)) with K = 50,000."""
    for k in (0, 50_000, 125_000, 300_000, 800_000):
        assert beta("linear")(k) == pytest.approx(1 - min(1, k / (6 * 50_000)))


def test_the_other_schedules():
    assert [beta("exp", 100)(k) for k in (0, 100, 300)] == pytest.approx(
        [1, math.exp(-1), math.exp(-3)]
    )
    assert beta("cos", 300)(100) == pytest.approx(0.75)  # (1 + cos(60 degrees)) / 2
    assert objective.SCHEDULES["fixed"](Anneal(schedule="fixed", beta=0.3))(12345) == 0.3


@pytest.mark.parametrize(
    ("share", "correlation"), [(0.833, 0.553), (0.667, 0.745), (0.5, 0.866), (0.333, 0.943)]
)
def test_annealed_noise_is_standard_normal_and_correlated_with_that_of_the_pair(
    share, correlation
):
    pair = objective.annealing(Anneal(schedule="fixed", beta=share), PAIRS)
    draws = StepRNG(0, 3, N)
    x, z, y = pair(BATCH, draws)
    assert torch.equal(x, BATCH.x)
    assert torch.equal(y, BATCH.y)
    assert float(z.var()) == pytest.approx(1, abs=0.04)  # 12,800 values: 3 standard errors
    both = torch.stack((z.flatten(), PAIRS(BATCH, draws).z.flatten()))
    assert float(torch.corrcoef(both)[0, 1]) == pytest.approx(correlation, abs=0.02)
    assert not torch.equal(pair(BATCH, StepRNG(0, 4, N)).z, z)  # fresh at every step


def losses_of(coupling, step: int) -> torch.Tensor:
    def net(x, t, y=None):
        return torch.sin(3 * x) + t[:, None, None, None]

    recipe = Recipe.model_validate({"loss": {"name": "l2"}})
    return objective.loss(recipe, coupling)(net, BATCH, step, StepRNG(0, step, N))["l2"]


def test_the_loss_goes_from_that_of_independent_noise_to_that_of_the_pairs():
    pair = objective.annealing(Anneal(schedule="linear", steps=100), PAIRS)
    assert torch.equal(losses_of(pair, 0), losses_of(independent, 0))
    assert torch.equal(losses_of(pair, 100), losses_of(PAIRS, 100))
    for other in (independent, PAIRS):
        assert not torch.allclose(losses_of(pair, 50), losses_of(other, 50))


def test_each_set_of_a_mix_keeps_noise_of_variance_one():
    """The fresh noise of annealed pairs and that of real images are the same numbers."""
    noise = torch.randn(N, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    pair = objective.annealing(Anneal(schedule="fixed", beta=0.7), stored(noise))
    images = torch.zeros(N, 1, 8, 8, dtype=torch.uint8)
    both = mixed(pair, images, BATCH.y, 0.5, independent)
    x, z, _ = both(BATCH, StepRNG(0, 3, N))
    for chosen in (x.flatten(1).std(1) == 0, x.flatten(1).std(1) > 0):
        assert 60 < int(chosen.sum()) < 140
        assert float(z[chosen].var()) == pytest.approx(1, abs=0.06)
