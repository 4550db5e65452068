"""RF-Solver's family and FireFlow against closed forms and the rules they coincide with."""

import itertools
import math

import pytest
import torch

from rfpp_core import load_flow
from rfpp_core.config.evaluate import Evaluate
from rfpp_core.config.pairs import PairSet
from rfpp_core.sampling import grids
from rfpp_core.sampling.sampler import SamplerConfig
from rfpp_core.sampling.solver_table import steps_for
from rfpp_core.sampling.solvers import CallCounter, Solution, solve, trajectory
from tests.helpers import save_tiny
from tests.unit.sampling.test_solvers import (
    INVERSE,
    ROUND_TRIP,
    TABLE,
    affine,
    gain,
    mixture,
    ring,
)

FIXED = {1: 0.127535, 2: 0.387070, 4: 0.479541, 8: 0.496062, 16: 0.499295}  # d = 0.01
NEW = ("rf-solver", "fireflow", "taylor:0.01", "taylor:0.3")


def noise(n=256):
    return torch.randn(n, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def end(solver, steps, field=None, z=None, flip=False):
    grid = grids.uniform(steps)
    field = field or mixture(ring(8, 3.0), 0.5)
    z = noise() if z is None else z
    return solve(field, z, grid.flip(0) if flip else grid, solver, "full").x


def curved(x, t, y=None):
    """Smooth up to t = 0, where the mixtures' fields divide by t."""
    return torch.cos(3 * x) + t[:, None] ** 2


@pytest.mark.parametrize("steps", TABLE)
def test_the_published_table(steps):
    assert gain("taylor:0.01", steps) == pytest.approx(FIXED[steps], abs=1e-6)
    assert gain("rf-solver", steps) == pytest.approx(TABLE[steps][1], abs=1e-6)
    x = torch.tensor([[0.0], [1.0]], dtype=torch.float64)
    z = end("rf-solver", steps, affine(), x, flip=True)
    back = end("rf-solver", steps, affine(), z)
    assert float(z[1] - z[0]) == pytest.approx(INVERSE[steps], abs=1e-6)
    assert float(back[1] - back[0]) == pytest.approx(ROUND_TRIP[steps], abs=1e-6)


@pytest.mark.parametrize("flip", [False, True])
def test_the_finite_difference_is_midpoint_at_half_a_step_and_heun_at_a_whole_one(flip):
    for solver, same in (("taylor:0.0625", "midpoint"), ("taylor:0.125", "heun"),
                         ("taylor:1", "heun"), ("rf-solver", "midpoint")):  # fmt: skip
        found, expected = (end(name, 8, curved, flip=flip) for name in (solver, same))
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    other = end("taylor:0.02", 8, curved, flip=flip)
    for same in ("midpoint", "heun", "euler"):
        assert float((other - end(same, 8, curved, flip=flip)).abs().max()) > 1e-3


def test_the_difference_tends_to_the_derivative_along_the_path():
    """Where v is linear in x and t, v' is known: x' = a x + b t has v' = a v + b."""
    a, b, t, s = -0.7, 1.9, 0.8, 0.3
    field = lambda x, time, y=None: a * x + b * time[:, None]  # noqa: E731
    x, h = noise(5), s - t
    v = a * x + b * t
    expected = x + h * v + h**2 / 2 * (a * v + b)
    grid = torch.tensor([t, s], dtype=torch.float64)
    for solver in ("taylor:0.01", "taylor:0.4", "rf-solver"):
        found = solve(field, x, grid, solver, "full").x
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("steps", [1, 2, 7])
@pytest.mark.parametrize("flip", [False, True])
def test_fireflow_is_midpoint_with_the_velocity_of_the_step_before(steps, flip):
    field = mixture(ring(8, 3.0), 0.5)
    times = grids.uniform(steps).tolist()[:: -1 if flip else 1]
    x, held = noise(), None
    for t, s in itertools.pairwise(times):
        start = field(x, torch.full((256,), t, dtype=torch.float64)) if held is None else held
        half = torch.full((256,), (t + s) / 2, dtype=torch.float64)
        held = field(x + (s - t) / 2 * start, half)
        x = x + (s - t) * held
    torch.testing.assert_close(end("fireflow", steps, flip=flip), x, rtol=0, atol=1e-12)


def test_fireflow_keeps_the_velocities_of_two_trajectories_apart():
    field, grid = mixture(ring(8, 3.0), 0.5), grids.uniform(6)
    one, two = (trajectory(field, z, grid, "fireflow", "full") for z in (noise(), -2 * noise()))
    for a, b in zip(one, two, strict=True):
        last = a, b
    assert torch.equal(last[0], end("fireflow", 6))
    assert torch.equal(last[1], end("fireflow", 6, z=-2 * noise()))


@pytest.mark.parametrize("solver", ["rf-solver", "fireflow", "taylor:0.0001"])
def test_they_converge_with_order_two(solver):
    exact = end("midpoint", 2048)
    errors = [float((end(solver, n) - exact).square().mean().sqrt()) for n in (32, 128)]
    assert 1.8 < math.log2(errors[0] / errors[1]) / 2 < 2.2


def round_trip(solver, nfe, points, s):
    """Root mean square error of data -> noise -> data at so many evaluations each way."""
    field, steps = mixture(points, s), steps_for(solver, nfe)[0]
    generator = torch.Generator().manual_seed(1)
    which = torch.randint(len(points), (2000,), generator=generator)
    x = points[which] + s * torch.randn(2000, 2, dtype=torch.float64, generator=generator)
    back = end(solver, steps, field, end(solver, steps, field, x, flip=True))
    return float((back - x).square().mean().sqrt())


def test_round_trips_at_64_evaluations_lose_less_than_half_of_eulers():
    points = ring(8, 2.0)
    euler = round_trip("euler", 64, points, 0.15)
    for solver in ("rf-solver", "midpoint", "fireflow"):
        assert round_trip(solver, 64, points, 0.15) < euler / 2


@pytest.mark.parametrize("solver", NEW)
@pytest.mark.parametrize("nfe", [1, 2, 3, 8, 35])
def test_they_spend_the_nfe_they_are_given(solver, nfe):
    net, calls = torch.nn.Linear(2, 2).double(), []
    net.register_forward_hook(lambda *_: calls.append(1))
    counter = CallCounter(lambda x, t, y=None: net(x))
    grid, last = SamplerConfig(solver, nfe).plan()
    found = solve(counter, noise(), grid, solver, last)
    assert isinstance(found, Solution)
    assert found.nfe == counter.calls == len(calls) == nfe


def test_fireflow_takes_one_evaluation_more_than_steps():
    assert [steps_for("fireflow", nfe) for nfe in (1, 2, 3, 9)] == [
        (1, "euler"), (1, "full"), (2, "full"), (8, "full"),
    ]  # fmt: skip
    torch.testing.assert_close(end("fireflow", 1), end("midpoint", 1), rtol=0, atol=0)


@pytest.mark.parametrize("solver", ["taylor", "taylor:0", "taylor:1.5", "taylor:-0.1", "rk2:nan"])
def test_a_delta_out_of_range_is_refused(solver):
    with pytest.raises(ValueError, match=r"taylor:<delta> and rk2:<delta>, 0 < delta <= 1"):
        steps_for(solver, 2)


@pytest.mark.parametrize("solver", NEW)
def test_they_make_pairs_evaluate_and_invert(solver):
    assert PairSet(teacher="flow1", source="images", solver=solver).solver == solver
    assert Evaluate(solver=solver, nfe=(9,)).solver == solver


def test_micro_batches_on_several_threads_do_not_share_fireflows_velocity(tmp_path, monkeypatch):
    flow = load_flow(save_tiny(tmp_path / "m.safetensors"))
    sampler, images = SamplerConfig("fireflow", 4), []
    for threads in ("1", "3"):
        monkeypatch.setenv("RFPP_THREADS", threads)
        images.append(flow.sample(600, sampler=sampler))
    assert torch.equal(*images)
