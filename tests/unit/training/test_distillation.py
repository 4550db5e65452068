"""Distillation by flow matching at fixed times: into k steps, into one, and into an encoder."""

from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from rfpp_core.config import build, objective
from rfpp_core.config.recipe import Recipe, Times
from rfpp_core.images.loader import Batch
from rfpp_core.model.path import interpolate, like, x_hat, z_hat
from rfpp_core.rng import StepRNG
from rfpp_core.sampling import grids
from rfpp_core.sampling.flow import Flow
from rfpp_core.sampling.sampler import SamplerConfig
from rfpp_core.training.couplings.paired import seeded
from rfpp_core.training.trainer import TrainState, train
from tests.unit.training.straight import straight, transported

U = (torch.arange(120_000, dtype=torch.float64) + 0.5) / 120_000
N, PAIRS = 64, seeded(7)
AT = torch.arange(N)


@pytest.mark.parametrize("k", [1, 2, 3, 4, 7, 10, 100, 1000])
def test_grid_times_are_those_of_k_euler_steps_each_as_often(k):
    t = objective.time_distribution(Times(distribution="grid", k=k))(U).float()
    found, counts = t.unique(return_counts=True)
    steps = grids.uniform(k)[:-1].flip(0)  # without 0, where no step begins
    assert torch.equal(found, (torch.arange(1, k + 1, dtype=torch.float64) / k).float())
    torch.testing.assert_close(found.double(), steps, rtol=0, atol=1e-7)
    assert counts.max() - counts.min() <= 1


def test_one_of_the_times_of_a_grid_is_one_exactly():
    for k in (1, 3, 49):
        assert (
            float(objective.time_distribution(Times(distribution="grid", k=k))(U).float()[-1]) == 1
        )
    ends = torch.tensor([2.0**-33, 1 - 2.0**-33], dtype=torch.float64)  # of a uniform draw
    found = objective.time_distribution(Times(distribution="grid", k=4))(ends).float()
    assert found.tolist() == [0.25, 1.0]


def test_a_grid_takes_a_share_of_times_at_one():
    t = objective.time_distribution(Times(distribution="grid", k=4, at_one=0.5))(U).float()
    assert float((t == 1).double().mean()) == pytest.approx(0.5 + 0.5 / 4, abs=1e-4)


def test_a_grid_has_no_mirror_image():
    with pytest.raises(ValidationError, match="symmetric about 1/2, which grid is not"):
        Recipe.model_validate({"times": {"distribution": "grid", "antithetic": True}})
    with pytest.raises(ValidationError, match="greater than or equal to 1"):
        Times(distribution="grid", k=0)


class Scaled(nn.Module):
    """A field with a weight and an offset for each of a few times: v = w x + b."""

    def __init__(self, k: int = 1) -> None:
        super().__init__()
        self.k = k
        self.weights = nn.Parameter(torch.zeros(k + 1, 2))

    def forward(self, x, t, y=None):
        w, b = self.weights[(t * self.k).round().long()].unbind(1)
        return like(w, x) * x + like(b, x)


def fitted(net: nn.Module, x: torch.Tensor, times: dict, steps: int = 150) -> nn.Module:
    """A field after a training on pairs of images x."""
    torch.set_num_threads(1)
    recipe = Recipe.model_validate({"steps": steps, "batch": N, "lr": 0.2, "warmup": 0,
                                    "log_every": steps, "ema": 0.9, "times": times,
                                    "loss": {"name": "l2"}})  # fmt: skip
    config = build.train_config(recipe, 0)
    state = TrainState(net, config, torch.device("cpu"))
    batches = iter(lambda: Batch(x, AT, None), None)
    for _ in train(state, batches, objective.loss(recipe, PAIRS), config):
        pass
    return state.average


def noise() -> torch.Tensor:
    return PAIRS(Batch(torch.zeros(N, 1, 4, 4), AT, None), StepRNG(0, 0, N)).z


def test_distillation_into_k_steps_is_exact_at_its_k_evaluations():
    """Pairs x = 0.3 z + 0.5 are on straight lines, which every k follows; other times were never
    trained."""
    k, z = 3, noise()
    x = 0.3 * z + 0.5
    net = fitted(Scaled(k), x, {"distribution": "grid", "k": k})
    flow = Flow(net, (1, 4, 4))
    torch.testing.assert_close(flow.decode(z, SamplerConfig("euler", k)), x, rtol=0, atol=0.02)
    assert not net.weights[0].any()  # t = 0 begins no step


def test_a_flow_trained_at_zero_alone_encodes_images_in_one_step():
    """The same pairs backwards: z = (x - 0.5) / 0.3, so at t = 0 v = z - x."""
    z = noise()
    x = 0.3 * z + 0.5
    net = fitted(Scaled(), x, {"distribution": "fixed", "t": 0.0})
    encoder = Flow(net, (1, 4, 4))
    found = encoder.invert(x, SamplerConfig("euler", 1))
    torch.testing.assert_close(found, z, rtol=0, atol=0.02)
    assert not net.weights[1].any()
    w, b = net.weights[0].tolist()
    assert (w, b) == pytest.approx((1 / 0.3 - 1, -0.5 / 0.3), abs=0.02)


def test_at_zero_the_network_sees_the_image_and_its_error_is_that_of_the_noise():
    seen = []

    def net(x, t, y=None):
        seen.append((x, t))
        return torch.sin(x)

    x, z = transported(noise()), noise()
    recipe = Recipe.model_validate(
        {"times": {"distribution": "fixed", "t": 0}, "loss": {"name": "l2"}}
    )
    found = objective.loss(recipe, PAIRS)(net, Batch(x, AT, None), 0, StepRNG(0, 0, N))["l2"]
    assert torch.equal(seen[0][0], x)
    assert not seen[0][1].any()
    estimate = z_hat(x, torch.sin(x), torch.zeros(N))
    torch.testing.assert_close(found, (estimate - z).square().flatten(1).mean(1))


def test_a_straight_flow_encodes_and_decodes_from_any_time_in_one_step():
    """x_hat and z_hat of a straight field are the ends of its path, at any t."""
    z = noise()
    x = transported(z)
    for t in (0.0, 0.3, 1.0):
        at = torch.full((N,), t)
        x_t = interpolate(x, z, at)
        v = straight(x_t, at)
        torch.testing.assert_close(x_hat(x_t, v, at), x, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(z_hat(x_t, v, at), z, rtol=1e-3, atol=1e-3)
