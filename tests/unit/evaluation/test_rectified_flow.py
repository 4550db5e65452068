"""The theory of rectified flow (Liu et al., arXiv 2209.03003) on fields known in closed form.

Numbers of the two examples were measured elsewhere with other samples; costs are sums over values.
"""

from __future__ import annotations

from functools import cache

import pytest
import torch
from torch import Tensor

from rfpp_core.evaluation import flow_metrics
from rfpp_core.model.path import interpolate, velocity
from rfpp_core.sampling import grids
from rfpp_core.sampling.solvers import solve, trajectory
from tests.unit.evaluation.mixtures import Between, gaussian, ring, two

N, STEPS = 4000, 100
RING = Between(ring(), gaussian())
SIDES = Between(two(15.0), two(0.0))  # from (0, +-7.5) at t = 1 to (15, +-7.5) at t = 0


@cache
def exact(field: Between) -> Tensor:
    """Where the flow carries N noise samples."""
    return decoded(field, field.z.sample(N, 1), 2 * STEPS)


def cost(x: Tensor, z: Tensor) -> Tensor:
    """``||x - z||^2`` of each pair."""
    return (x - z).square().sum(1)


def decoded(field: Between, z: Tensor, steps: int = STEPS, solver: str = "heun") -> Tensor:
    return solve(field, z, grids.uniform(steps), solver, "full").x


def crossing(field: Between, x: Tensor, z: Tensor) -> float:
    """V: mean over t of ``E||z - x - E[z - x | x_t]||^2``, by the midpoint rule in t."""
    total = 0.0
    for i in range(STEPS):
        t = torch.full((len(x),), (i + 0.5) / STEPS, dtype=torch.float64)
        total += float(cost(velocity(x, z), field(interpolate(x, z, t), t)).mean())
    return total / STEPS


def bend(field: Between, z: Tensor) -> float:
    """S: mean over t of ``E||velocity - chord||^2`` along exact paths."""
    states = torch.stack(list(trajectory(field, z, grids.uniform(STEPS), "heun", "full")))
    chord = states[0] - states[-1]
    steps = (states[:-1] - states[1:]) * STEPS
    return float((steps - chord).square().sum(2).mean())


@pytest.mark.parametrize(("field", "dropped"), [(RING, 7.474), (SIDES, 113.4)])
def test_the_transport_cost_falls_by_straightness_and_crossing(field, dropped):
    """``E||x - z||^2 - E||G(z) - z||^2 = S + V``, exactly, for any coupling of x and z."""
    x, z = field.x.sample(N, 0), field.z.sample(N, 1)
    before, after = float(cost(x, z).mean()), float(cost(exact(field), z).mean())
    s, v = bend(field, z), crossing(field, x, z)
    assert before - after == pytest.approx(s + v, rel=0.03)
    assert before - after == pytest.approx(dropped, rel=0.03)


def test_the_first_example_in_numbers():
    x, z = RING.x.sample(N, 0), RING.z.sample(N, 1)
    assert float(cost(x, z).mean()) == pytest.approx(11.19, rel=0.03)
    assert float(cost(exact(RING), z).mean()) == pytest.approx(3.716, rel=0.03)
    assert crossing(RING, x, z) == pytest.approx(5.229, rel=0.03)
    assert bend(RING, z) == pytest.approx(2.240, rel=0.03)


def test_straightness_is_measured_along_eulers_hundred_steps():
    """The project's metric is a mean over the two values: 2.30 / 2 by Euler's rule."""
    z = RING.z.sample(N, 1)
    assert 2 * flow_metrics.straightness(RING, z) == pytest.approx(2.30, rel=0.03)


@pytest.mark.parametrize(
    ("steps", "error"), [(1, 3.03), (2, 1.008), (4, 0.328), (8, 0.166), (16, 0.084)]
)
def test_eulers_error_by_its_steps(steps, error):
    z = RING.z.sample(N, 1)
    apart = cost(decoded(RING, z, steps, "euler"), exact(RING)).mean().sqrt()
    assert float(apart) == pytest.approx(error, rel=0.05)


def test_the_marginals_of_the_flow_are_those_of_the_path():
    """At t = 1/2: mean and covariance of the flow's states and of (x + z) / 2."""
    x, z = RING.x.sample(N, 0), RING.z.sample(N, 1)
    half = list(trajectory(RING, z, grids.uniform(STEPS), "heun", "full"))[STEPS // 2]
    path = (x + z) / 2
    torch.testing.assert_close(half.mean(0), path.mean(0), rtol=0, atol=0.1)
    torch.testing.assert_close(torch.cov(half.T), torch.cov(path.T), rtol=0, atol=0.1)


def test_transfer_between_two_domains_keeps_sides_at_the_least_cost():
    """Independent pairs change sides half of the time; the flow never does, at a cost of 15^2."""
    x, z = SIDES.x.sample(N, 0), SIDES.z.sample(N, 1)
    found = exact(SIDES)
    same = lambda a: float((a[:, 1].sign() == z[:, 1].sign()).double().mean())  # noqa: E731
    assert float(cost(x, z).mean()) == pytest.approx(338.4, rel=0.03)
    assert same(x) == pytest.approx(0.5, abs=0.03)
    assert float(cost(found, z).mean()) == pytest.approx(225.0, rel=0.005)
    assert same(found) > 0.999
    assert float((found[:, 1].abs() - 7.5).std()) == pytest.approx(0.5, abs=0.03)


def test_transfer_and_back_is_the_identity():
    z = SIDES.z.sample(200, 1)
    grid = grids.uniform(1000)
    found = solve(SIDES, z, grid, "heun", "full").x
    back = solve(SIDES, found, grid.flip(0), "heun", "full").x
    assert float(cost(back, z).mean().sqrt()) == pytest.approx(2.7e-5, rel=0.15)


@pytest.mark.parametrize(("steps", "error"), [(1, 7.53), (100, 0.56)])
def test_eulers_error_in_the_transfer(steps, error):
    z = SIDES.z.sample(N, 1)
    apart = cost(decoded(SIDES, z, steps, "euler"), exact(SIDES)).mean().sqrt()
    assert float(apart) == pytest.approx(error, rel=0.15)


def test_the_metric_of_the_transport_is_a_mean_over_values():
    z = RING.z.sample(N, 1)
    x = exact(RING)
    assert flow_metrics.transport_cost(x, z) == pytest.approx(float(cost(x, z).mean()) / 2)
