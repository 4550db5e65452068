"""Solvers against closed forms.  The published table runs time the other way (t = 1 is data)."""

import itertools
import math

import numpy as np
import pytest
import torch

from rfpp_core.model.precond import EDMVelocity
from rfpp_core.sampling import grids, solvers
from rfpp_core.sampling.solver_table import steps_for
from rfpp_core.sampling.solvers import CallCounter, rk2, solve, trajectory
from tests.unit.model.test_precond import Raw, edm_denoiser

S, M = 0.5, 1.3


def affine(s=S, m=M):
    """Exact velocity of N(m, s^2) data: v = -(m + k (x - u m)), u = 1 - t."""

    def field(x, t, y=None):
        u = (1 - t)[:, None]
        k = (u * s**2 - (1 - u)) / ((1 - u) ** 2 + u**2 * s**2)
        return -(m + k * (x - u * m))

    return field


def gain(solver, steps, s=S):
    """A of output = m + A z, full last step."""
    z = torch.tensor([[0.0], [1.0]], dtype=torch.float64)
    x = solve(affine(s), z, grids.uniform(steps), solver, "full").x
    assert float(x[0]) == pytest.approx(M, abs=1e-9)  # the mean is exact
    return float(x[1] - x[0])


TABLE = {  # N: Euler, midpoint, Heun
    1: (0.0, 0.4, 0.5),
    2: (0.2, 0.494387, 0.48),
    4: (0.340541, 0.498291, 0.504835),
    8: (0.414785, 0.499776, 0.502441),
    16: (0.455683, 0.499972, 0.500764),
}
INVERSE = {1: 1.6, 2: 1.977547, 4: 1.993165, 8: 1.999106, 16: 1.999887}
ROUND_TRIP = {1: 0.64, 2: 0.977673, 4: 0.993177, 8: 0.999106, 16: 0.999887}


@pytest.mark.parametrize("steps", TABLE)
def test_closed_form_table(steps):
    for solver, expected in zip(("euler", "midpoint", "heun"), TABLE[steps], strict=True):
        assert gain(solver, steps) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("steps", TABLE)
def test_inverse_and_round_trip(steps):
    grid = grids.uniform(steps)
    x = torch.tensor([[M], [M + 1]], dtype=torch.float64)
    z = solve(affine(), x, grid.flip(0), "midpoint", "full").x
    assert float(z[1] - z[0]) == pytest.approx(INVERSE[steps], abs=1e-6)
    back = solve(affine(), z, grid, "midpoint", "full").x
    assert float(back[1] - back[0]) == pytest.approx(ROUND_TRIP[steps], abs=1e-6)


def test_other_published_values():
    assert gain("midpoint", 4, 0.2) == pytest.approx(0.194662, abs=1e-6)
    assert gain("midpoint", 8, 0.2) == pytest.approx(0.199407, abs=1e-6)
    assert gain("euler", 4, 0.2) == pytest.approx(0.095864, abs=1e-6)
    assert gain("euler", 8, 0.2) == pytest.approx(0.143768, abs=1e-6)


def mixture(points, s):
    """Exact velocity of a mixture of Gaussians: v = (x - E[x | x_t]) / t."""

    def field(x, t, y=None):
        t = t[:, None].clamp_min(1e-9)
        var = (1 - t) ** 2 * s**2 + t**2
        gap = x[:, None, :] - (1 - t)[:, None] * points
        weight = torch.softmax(-gap.square().sum(-1) / (2 * var), dim=1)
        mean = points + ((1 - t) * s**2 / var)[:, None] * gap
        return (x - (weight[..., None] * mean).sum(1)) / t

    return field


def ring(n, radius, offset=0.0):
    angle = torch.arange(n, dtype=torch.float64) * 2 * np.pi / n + offset
    return radius * torch.stack((angle.cos(), angle.sin()), 1)


@pytest.mark.parametrize(
    ("solver", "low", "high"), [("euler", 0.9, 1.1), ("midpoint", 1.9, 2.1), ("heun", 1.8, 2.1)]
)
def test_order_of_convergence(solver, low, high):
    field = mixture(ring(8, 3.0), 0.5)
    z = torch.randn(256, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    exact = solve(field, z, grids.uniform(1024), "midpoint", "full").x
    errors = [
        float((solve(field, z, grids.uniform(n), solver, "full").x - exact).square().mean())
        for n in (32, 128)
    ]
    slope = np.log2(errors[0] / errors[1]) / 4  # rms falls 4^slope
    assert low < slope < high


def test_identity_of_cost_straightness_and_crossing():
    """E|z - x|^2 - E|Z_1 - Z_0|^2 = S + V (Liu et al.), to 1 %, with the published values."""
    generator = torch.Generator().manual_seed(1)
    n, steps, points = 20_000, 100, ring(4, 3.0, 0.3)
    field = mixture(points, 0.3)

    def draw():
        z = torch.randn(n, 2, dtype=torch.float64, generator=generator)
        which = torch.randint(4, (n,), generator=generator)
        return points[which] + 0.3 * torch.randn(n, 2, dtype=torch.float64, generator=generator), z

    x, z = draw()
    independent = float((z - x).square().sum(1).mean())
    crossing = straight = 0.0
    states = list(trajectory(field, z, grids.uniform(2 * steps), "midpoint", "full"))
    chord = states[0] - states[-1]
    for i in range(steps):
        t = torch.full((n,), 1 - (i + 0.5) / steps, dtype=torch.float64)
        x_t = (1 - t[:, None]) * x + t[:, None] * z
        crossing += float((z - x - field(x_t, t)).square().sum(1).mean()) / steps
        v = field(states[2 * i + 1], t)
        straight += float((chord - v).square().sum(1).mean()) / steps
    paired = float(chord.square().sum(1).mean())
    assert independent - paired == pytest.approx(straight + crossing, rel=0.01)
    assert independent == pytest.approx(11.19, rel=0.02)
    assert paired == pytest.approx(3.716, rel=0.02)
    assert straight == pytest.approx(2.240, rel=0.02)
    assert crossing == pytest.approx(5.229, rel=0.02)


def test_rk2_family():
    """Heun, midpoint and Ralston written out by their textbook formulas."""
    field = mixture(ring(3, 2.0), 0.4)
    x, t, s = torch.randn(5, 2).double(), torch.tensor(0.7).double(), torch.tensor(0.5).double()
    h, at = s - t, lambda u: u.expand(5)
    v = field(x, at(t))
    heun = x + h / 2 * (v + field(x + h * v, at(s)))
    midpoint = x + h * field(x + h / 2 * v, at(t + h / 2))
    ralston = x + h * (v / 4 + 3 / 4 * field(x + 2 / 3 * h * v, at(t + 2 / 3 * h)))
    for delta, expected in ((1.0, heun), (0.5, midpoint), (2 / 3, ralston)):
        torch.testing.assert_close(rk2(delta)(field, x, t, s, None), expected, rtol=0, atol=1e-12)


def test_anchored_update():
    field, z = mixture(ring(3, 2.0), 0.4), torch.randn(6, 2).double()
    for steps in (1, 2):  # equal to Euler's
        euler = solve(field, z, grids.uniform(steps), "euler").x
        anchored = solve(field, z, grids.uniform(steps), "anchored").x
        torch.testing.assert_close(anchored, euler, rtol=0, atol=1e-12)
    x = z
    for t, s in ((1.0, 2 / 3), (2 / 3, 1 / 3), (1 / 3, 0.0)):
        x = (1 - s) * (x - t * field(x, torch.full((6,), t, dtype=torch.float64))) + s * z
    got = solve(field, z, grids.uniform(3), "anchored").x
    torch.testing.assert_close(got, x, rtol=0, atol=1e-12)
    assert not torch.allclose(got, solve(field, z, grids.uniform(3), "euler").x)
    one, half = torch.ones(6, dtype=torch.float64), torch.full((6,), 0.5, dtype=torch.float64)
    v = field(z, one)
    mean = (v + field(0.5 * (z - v) + 0.5 * z, half)) / 2
    x = 0.5 * (z - mean) + 0.5 * z
    got = solve(field, z, grids.uniform(2), "anchored-heun").x  # its last step is cut
    torch.testing.assert_close(got, x - 0.5 * field(x, half), rtol=0, atol=1e-12)


@pytest.mark.parametrize("solver", ["euler", "heun", "midpoint", "anchored", "rk2:0.7"])
@pytest.mark.parametrize("nfe", [1, 2, 3, 8, 35])
def test_a_solver_spends_the_nfe_it_is_given(solver, nfe):
    calls = []
    field = CallCounter(lambda x, t, y=None: calls.append(len(x)) or torch.zeros_like(x))
    steps, last = steps_for(solver, nfe)
    result = solve(field, torch.zeros(3, 2), grids.uniform(steps), solver, last)
    assert result.nfe == field.calls == len(calls) == nfe


def test_wrong_solver_names_the_right_ones():
    with pytest.raises(ValueError, match="euler, heun"):
        solve(affine(), torch.zeros(1, 1), grids.uniform(1), "rk9")
    with pytest.raises(ValueError, match="at least 1"):
        steps_for("euler", 0)


def test_rk45_against_the_closed_form():
    """v = -x and x' = t^3 x, both ways, within the tolerance."""
    x = torch.randn(5, 3, dtype=torch.float64)
    found = solvers.adaptive(lambda x, t, y=None: -x, x, 1.0, 0.0)
    torch.testing.assert_close(found.x, x * math.e, rtol=5e-5, atol=0)
    cubic = lambda x, t, y=None: t[:, None] ** 3 * x  # noqa: E731
    up = solvers.adaptive(cubic, x, 0.0, 1.0).x
    torch.testing.assert_close(up, x * math.exp(0.25), rtol=5e-5, atol=0)
    fewer = solvers.adaptive(cubic, x, 0.0, 1.0, rtol=1e-2, atol=1e-2).nfe
    assert fewer < solvers.adaptive(cubic, x, 0.0, 1.0, rtol=1e-9, atol=1e-9).nfe


def test_rk45_holds_its_tolerance_for_every_sample_of_a_batch():
    """One stiff sample among 255 easy ones: an error averaged over the batch would be 16 times
    the tolerance; and the others move a sample by no more than about the tolerance."""
    rate = torch.ones(256, dtype=torch.float64)
    rate[0] = 12.0
    field = lambda x, t, y=None: torch.cos(rate[y] * t)[:, None] * rate[y][:, None]  # noqa: E731
    x, every = torch.zeros(256, 1, dtype=torch.float64), torch.arange(256)
    together = solvers.adaptive(field, x, 1.0, 0.0, every).x
    exact = -torch.sin(rate)[:, None]
    assert float((together - exact).abs().max()) < 1e-4  # 5e-4 if averaged over the batch
    alone = torch.cat([solvers.adaptive(field, x[:1], 1.0, 0.0, i[None]).x for i in every[:3]])
    assert float((together[:3] - alone).abs().max()) < 2e-4


@pytest.mark.parametrize(("steps", "last"), [(6, "euler"), (5, "full")])
def test_edm_heun_is_edm_s_sampler(steps, last):
    """Against alg. 1 of EDM (arXiv 2206.00364) in its own variables, with a denoiser."""
    field = EDMVelocity(Raw(), 0.5).double()
    z = torch.randn(4, 1, 4, 4, dtype=torch.float64)
    grid = grids.karras(steps)
    grid[0] = 80 / 81
    roots = torch.linspace(80 ** (1 / 7), 0.002 ** (1 / 7), steps, dtype=torch.float64)
    sigmas = torch.cat((roots**7, roots.new_zeros(1)))
    x = 80 * z
    for now, then in itertools.pairwise(sigmas):
        slope = (x - edm_denoiser(Raw(), x, now.expand(4), 0.5)) / now
        end = x + (then - now) * slope
        if then > 0:
            other = (end - edm_denoiser(Raw(), end, then.expand(4), 0.5)) / then
            end = x + (then - now) * (slope + other) / 2
        x = end
    found = solve(field, 80 / 81 * z, grid, "edm-heun", last)
    assert found.nfe == 2 * steps - (last == "euler")
    if last == "euler":  # EDM drops the last correction; "full" would evaluate at sigma 0
        torch.testing.assert_close(found.x, x, rtol=0, atol=1e-10)


def test_edm_heun_and_heun_in_t_meet_at_second_order():
    """One ODE in two variables: both converge to the same end, four times closer a doubling."""
    field = EDMVelocity(Raw(), 0.5).double()
    z = torch.randn(8, 1, 4, 4, dtype=torch.float64) * (80 / 81)

    def end(solver, steps):
        grid = grids.karras(steps, sigma_min=0.02)
        grid[0] = 80 / 81
        return solve(field, z, grid, solver, "full").x

    fine = end("edm-heun", 1600)
    torch.testing.assert_close(end("heun", 1600), fine, rtol=0, atol=1e-3)
    errors = [float((end("edm-heun", n) - fine).square().mean().sqrt()) for n in (50, 100, 200)]
    orders = [math.log2(a / b) for a, b in itertools.pairwise(errors)]
    assert all(1.6 < order < 2.6 for order in orders), orders


@pytest.mark.parametrize("steps", [1, 3, 6])
def test_the_anchor_of_a_flow_that_starts_late_is_its_noise(steps):
    """From start z with the field of one image: every state is (1 - t) x + t z, the last x."""
    start, x = 80 / 81, torch.randn(4, 3, dtype=torch.float64)
    z = torch.randn(4, 3, dtype=torch.float64)
    field = lambda state, t, y=None: (state - x) / t[:, None]  # noqa: E731
    grid = grids.uniform(steps)
    grid[0] = start
    states = list(trajectory(field, start * z, grid, "anchored", "full"))
    for state, t in zip(states[1:], grid[1:], strict=True):
        torch.testing.assert_close(state, (1 - t) * x + t * z)
