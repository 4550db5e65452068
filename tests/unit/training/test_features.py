"""The feature-weighted loss against explicit Jacobians, and against flow matching."""

import pytest
import torch
from torch import nn

from rfpp_core.config import objective
from rfpp_core.config.recipe import Recipe
from rfpp_core.images.loader import Batch
from rfpp_core.rng import StepRNG
from rfpp_core.training.couplings import Coupled
from rfpp_core.training.features import feature_weighted, seen
from rfpp_core.training.perceptual import label_net

B, D = 4, 6


def linear() -> nn.Module:
    return nn.Linear(D, 3)


def bent() -> nn.Module:
    return nn.Sequential(nn.Linear(D, 8), nn.SiLU(), nn.Linear(8, 3), nn.Tanh())


@pytest.mark.parametrize("make", [linear, bent])
def test_it_is_the_squared_norm_of_jacobian_times_residual(make):
    net, x, r = make().requires_grad_(False), torch.randn(B, D), torch.randn(B, D)
    found = seen(lambda x: [net(x)], x, r)
    for i in range(B):
        jacobian = torch.autograd.functional.jacobian(net, x[i])  # (3, D)
        torch.testing.assert_close(found[i], (jacobian @ r[i]).square().mean())


def test_layers_are_summed_each_a_mean_over_its_values():
    a, b, x, r = linear(), bent(), torch.randn(B, D), torch.randn(B, D)
    both = seen(lambda x: [a(x), b(x)], x, r)
    torch.testing.assert_close(both, seen(lambda x: [a(x)], x, r) + seen(lambda x: [b(x)], x, r))


def test_the_gradient_reaches_the_residual_as_by_the_jacobian():
    """``d/dr mean (J r)^2 = 2 J^T J r / m``."""
    net, x = bent().requires_grad_(False), torch.randn(B, D)
    r = torch.randn(B, D, requires_grad=True)
    seen(lambda x: [net(x)], x, r).sum().backward()
    for i in range(B):
        jacobian = torch.autograd.functional.jacobian(net, x[i])
        torch.testing.assert_close(r.grad[i], 2 * jacobian.T @ (jacobian @ r[i].detach()) / 3)


def test_what_the_features_do_not_see_costs_nothing():
    r = torch.zeros(B, D)
    r[:, 3:] = torch.randn(B, D - 3)
    assert float(seen(lambda x: [x[:, :3].square()], torch.randn(B, D), r).abs().max()) == 0


def test_with_the_identity_it_is_flow_matching():
    """Features x -> x: the mean square of (z - x) - v, that of the l2 loss."""
    x, z = torch.randn(B, 1, 2, 2), torch.randn(B, 1, 2, 2)
    net = lambda x_t, t, y: 0.5 * x_t  # noqa: E731
    times = lambda draws: torch.full((B,), 0.25)  # noqa: E731
    loss = feature_weighted(lambda batch, draws: Coupled(x, z, None), times, lambda x: [x])
    found = loss(net, Batch(x, torch.arange(B), None), 0, StepRNG(0, 0, B))["features"]
    by_hand = (z - x - 0.5 * (0.75 * x + 0.25 * z)).square().flatten(1).mean(1)
    torch.testing.assert_close(found, by_hand)


def test_a_recipe_trains_by_a_classifiers_features():
    """The objective's gradient reaches the network's weights, not those of the classifier."""
    recipe = Recipe.model_validate({"objective": "features", "loss": {"perceptual": "classifier"},
                                    "times": {"distribution": "uniform"}})  # fmt: skip
    perceptual = label_net(1, 3, 0).requires_grad_(False).eval()
    coupling = objective.COUPLINGS["independent"](recipe)
    loss = objective.loss(recipe, coupling, perceptual)
    weight = torch.full((), 0.3, requires_grad=True)
    x = torch.randn(B, 1, 8, 8)
    terms = loss(lambda x_t, t, y: weight * x_t, Batch(x, torch.arange(B), None), 0,
                 StepRNG(0, 0, B))  # fmt: skip
    terms["features"].mean().backward()
    assert terms["features"].shape == (B,)
    assert weight.grad.abs() > 0


def test_the_objective_needs_a_net():
    with pytest.raises(ValueError, match=r"objective: features .*; set loss\.perceptual"):
        Recipe.model_validate({"objective": "features"})
