"""Phases: their chords, times and targets, against formulas and a second implementation."""

import pytest
import torch

from rfpp_core.config import objective
from rfpp_core.config.recipe import Phased, Recipe, Times
from rfpp_core.images.loader import Batch
from rfpp_core.model import vp
from rfpp_core.model.path import interpolate, like
from rfpp_core.rng import StepRNG
from rfpp_core.sampling.solvers import solve
from rfpp_core.training.couplings.independent import independent
from rfpp_core.training.losses import Term
from rfpp_core.training.phased import chord, phased, solved

N = 32
BATCH = Batch(torch.rand(N, 1, 4, 4).double() * 2 - 1, torch.arange(N), None)
DRAWS = StepRNG(3, 5, N)
TIMES = torch.linspace(0, 1, 6, dtype=torch.float64)


def normals(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).double()


def curved(x, t, y=None):
    return torch.sin(2 * x) + like(t, x)


def target_of(times, phases, substeps, teacher=curved, batch=BATCH, drop=0.0):
    """What the network sees and what it is to give: x_t, t, y and the velocity."""
    seen = {}

    def net(x, t, y=None):
        seen.update(x=x, t=t, y=y)
        return torch.zeros_like(x)

    def distance(v, target):
        seen["v"] = target
        return target.flatten(1).sum(1)

    loss = phased(independent, times, Term("l2", distance), teacher, phases, substeps, drop)
    assert set(loss(net, batch, 5, DRAWS)) == {"l2"}
    return seen


def test_points_of_a_chord_hit_both_ends():
    x_start, x_end = normals(6, 1, 4, 4), normals(6, 1, 4, 4, seed=1)
    start, end = TIMES / 2 + 0.5, TIMES * 0.4
    line = chord(x_start, x_end, start, end)
    torch.testing.assert_close(line.at(start), x_start, rtol=0, atol=1e-10)
    torch.testing.assert_close(line.at(end), x_end, rtol=0, atol=1e-10)


def test_the_chord_is_that_of_the_papers_noise():
    """Over sigma / alpha, with alpha = 1 - t and sigma = t, where that is finite."""
    x_start, x_end = normals(6, 1, 4, 4), normals(6, 1, 4, 4, seed=1)
    start, end = 0 * TIMES + 0.9, 0 * TIMES + 0.6
    t = 0.6 + 0.3 * TIMES
    a_s, a_e, a = (like(1 - part, x_end) for part in (start, end, t))
    nsr_s, nsr_e, nsr = (like(part / (1 - part), x_end) for part in (start, end, t))
    eps = (x_end / a_e - x_start / a_s) / (nsr_e - nsr_s)
    interior = a * (x_start / a_s + (nsr - nsr_s) * eps)
    line = chord(x_start, x_end, start, end)
    torch.testing.assert_close(line.at(t), interior, rtol=0, atol=1e-10)
    v = line.v  # its noise is that of the line's end at t = 1
    torch.testing.assert_close(line.at(torch.ones_like(t)), eps, rtol=0, atol=1e-10)
    torch.testing.assert_close(a_e * (interior / a + (nsr_e - nsr) * eps), x_end)
    torch.testing.assert_close(interior + like(end - t, v) * v, x_end)


@pytest.mark.parametrize(("phases", "substeps"), [(1, 1), (1, 7), (4, 10), (3, 2)])
def test_targets_are_the_chords_of_the_teachers_solution(phases, substeps):
    """Sample by sample, by the solver of the pairs."""
    found = target_of(lambda u: u, phases, substeps)
    x, z, _ = independent(BATCH, DRAWS)
    u = DRAWS.uniform("t")
    assert torch.equal(found["t"], u)
    for i in range(N):
        m = next(m for m in range(1, phases + 1) if u[i] <= m / phases)
        grid = torch.linspace(m / phases, (m - 1) / phases, substeps + 1, dtype=torch.float64)
        first = interpolate(x[i : i + 1], z[i : i + 1].double(), grid[:1])
        last = solve(curved, first, grid, "euler", "full").x
        v = (first - last) * phases
        torch.testing.assert_close(found["v"][i : i + 1], v, rtol=0, atol=1e-10)
        expected = last + (u[i] - grid[-1]) * v
        torch.testing.assert_close(found["x"][i : i + 1], expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", vp.SCHEDULES)
def test_phases_of_a_vp_path_are_equal_in_its_own_time(name):
    schedule, phases, seen = vp.SCHEDULES[name], 4, []

    def teacher(x, t, y=None):
        seen.append(vp.tau_of_t(t, schedule))
        return curved(x, t)

    recipe = Recipe(objective="phased", times=Times(distribution=name))
    times = objective.TIMES[name](recipe.times)
    found = target_of(times, phases, 2, teacher)
    u = DRAWS.uniform("t")
    torch.testing.assert_close(vp.tau_of_t(found["t"], schedule), u, rtol=0, atol=1e-9)
    phase = (u * phases).ceil()
    torch.testing.assert_close(seen[0], phase / phases, rtol=0, atol=1e-9)
    torch.testing.assert_close(seen[1], (phase - 0.5) / phases, rtol=0, atol=1e-9)


def test_a_straight_teacher_is_learned_by_itself_and_a_curved_one_is_not():
    """All images at one point: ``v = (x_t - x) / t``, straight from everywhere."""
    point = normals(1, 1, 4, 4)

    def straight(x, t, y=None):
        return (x - point) / like(t, x)

    at_point = BATCH._replace(x=point.expand(N, 1, 4, 4))
    recipe = Recipe(objective="phased", times=Times(distribution="uniform"), loss={"name": "l2"})
    for teacher, batch, least, most in ((straight, at_point, 0, 1e-20), (curved, BATCH, 1e-4, 9)):
        loss = objective.loss(recipe, independent, frozen=teacher)
        value = float(loss(teacher, batch, 5, DRAWS)["l2"].mean())
        assert least <= value < most


def test_no_gradient_reaches_the_teacher_and_labels_reach_both():
    weight, seen = torch.ones((), requires_grad=True), []

    def teacher(x, t, y=None):
        seen.append(y)
        return weight * x

    batch = BATCH._replace(y=torch.ones(N, dtype=torch.int64))
    found = target_of(lambda u: u, 2, 3, teacher, batch, drop=0.5)
    assert not found["v"].requires_grad
    assert len(seen) == 3
    assert all(torch.equal(y, found["y"]) for y in seen)
    assert set(found["y"].tolist()) == {-1, 1}


def test_a_solution_without_steps_is_its_start():
    x = normals(2, 1, 4, 4)
    assert solved(curved, x, [torch.ones(2).double()]) is x


@pytest.mark.parametrize("substeps", [1, 10])
def test_the_budget_counts_every_evaluation_of_the_teacher(substeps):
    calls = []

    def teacher(x, t, y=None):
        calls.append(len(x))
        return curved(x, t)

    target_of(lambda u: u, 4, substeps, teacher)
    recipe = Recipe(
        objective="phased", times={"distribution": "uniform"}, phased=Phased(substeps=substeps)
    )
    assert sum(calls) == substeps * N
    assert recipe.forwards == 3 + substeps
    assert recipe.frozen_start
    assert Recipe().forwards == 3
    assert not Recipe().frozen_start
