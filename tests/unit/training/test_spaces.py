"""Losses in the space of the noise and of the image against the predictions themselves."""

import pytest
import torch

from rfpp_core.config import objective
from rfpp_core.config.recipe import Loss, Recipe
from rfpp_core.images.loader import Batch
from rfpp_core.model.path import interpolate, x_hat, z_hat
from rfpp_core.rng import StepRNG
from rfpp_core.training.couplings.independent import independent

BATCH = Batch(torch.rand(64, 1, 4, 4) * 2 - 1, torch.arange(64), None)
DRAWS = StepRNG(3, 5, 64)


def net(x, t, y=None):
    return torch.sin(2 * x) + t[:, None, None, None]


def recipe(space, objective="diffusion", name="l2"):
    return Recipe(
        objective=objective, times={"distribution": "uniform"}, loss=Loss(name=name, space=space)
    )


def errors(made):
    return objective.loss(made, independent)(net, BATCH, 5, DRAWS)[made.loss.name]


@pytest.mark.parametrize("name", ["l2", "l2_root", "pseudo_huber"])
def test_the_loss_is_the_distance_of_what_is_predicted(name):
    x, z, _ = independent(BATCH, DRAWS)
    t = objective.training_times(recipe("v").times)(DRAWS).float()
    x_t = interpolate(x, z, t)
    v, distance = net(x_t, t), objective.distance(Loss(name=name))
    expected = {"v": distance(v, z - x), "eps": distance(z_hat(x_t, v, t), z),
                "x": distance(x_hat(x_t, v, t), x)}  # fmt: skip
    for space, value in expected.items():
        torch.testing.assert_close(errors(recipe(space, name=name)), value, rtol=1e-4, atol=1e-7)


def test_squares_of_errors_have_the_ratios_of_the_conversions():
    """``(1 - t)^2`` for the noise and ``t^2`` for the image."""
    t = objective.training_times(recipe("v").times)(DRAWS).float()
    of_v = errors(recipe("v", "flow_matching"))
    assert torch.equal(errors(recipe("v")), of_v)
    torch.testing.assert_close(errors(recipe("eps")), (1 - t) ** 2 * of_v)
    torch.testing.assert_close(errors(recipe("x")), t**2 * of_v)


def test_labels_are_dropped_as_in_flow_matching():
    seen = []

    def labelled(x, t, y=None):
        seen.append(y)
        return x

    batch = BATCH._replace(y=torch.ones(64, dtype=torch.int64))
    for name in ("flow_matching", "diffusion"):
        made = recipe("v", name).model_copy(update={"label_dropout": 0.5})
        objective.loss(made, independent)(labelled, batch, 5, DRAWS)
    assert torch.equal(*seen)
    assert set(seen[0].tolist()) == {-1, 1}
