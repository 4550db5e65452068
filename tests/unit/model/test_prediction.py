"""Predictions and VP paths against DDIM, written in the paper's letters."""

import math
from itertools import pairwise

import pytest
import torch

from rfpp_core.model import path, prediction, vp
from rfpp_core.model.path import like
from rfpp_core.model.precond import EDMVelocity
from rfpp_core.sampling.sampler import SamplerConfig
from rfpp_core.sampling.solvers import solve
from tests.unit.model.test_precond import Raw

BETAS = {"vp": (0.1, 20.0), "vp_sd": (0.85, 12.0)}
STEPS = [1, 2, 4, 50]
TIMES = torch.linspace(0.01, 0.99, 7, dtype=torch.float64)


def noise_levels(tau, betas):
    """alpha and sigma of the schedule, from its formula."""
    low, high = betas
    alpha = torch.exp(-(high - low) * tau**2 / 4 - low * tau / 2)
    return alpha, torch.sqrt(1 - alpha**2)


def ddim(eps_of, u, taus, betas):
    """DDIM without noise (arXiv 2010.02502, eq. 12), of a network ``eps(u, tau)``."""
    for tau, after in pairwise(taus):
        (alpha, sigma), (alpha_s, sigma_s) = noise_levels(tau, betas), noise_levels(after, betas)
        eps = eps_of(u, tau)
        u = alpha_s * (u - sigma * eps) / alpha + sigma_s * eps
    return u


class Fixed(torch.nn.Module):
    """A network that predicts what it is told."""

    def __init__(self, value):
        super().__init__()
        self.value = value

    def forward(self, x, c, y=None):
        return self.value


def normals(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).double()


@pytest.mark.parametrize("name", BETAS)
def test_a_vp_path_is_the_straight_path_rescaled(name):
    tau, x, z = torch.linspace(0, 1, 9, dtype=torch.float64), normals(9, 3), normals(9, 3, seed=1)
    alpha, sigma = noise_levels(tau, BETAS[name])
    t = vp.t_of_tau(tau, vp.SCHEDULES[name])
    torch.testing.assert_close(t, sigma / (alpha + sigma), rtol=0, atol=1e-12)
    u = like(alpha, x) * x + like(sigma, x) * z
    torch.testing.assert_close(path.interpolate(x, z, t), u / like(alpha + sigma, x))
    q = prediction.variance(t)
    torch.testing.assert_close(q, 1 / (alpha + sigma) ** 2)
    torch.testing.assert_close(vp.tau_of_t(t, vp.SCHEDULES[name]), tau, rtol=0, atol=1e-12)
    assert float(t[-1]) == pytest.approx(vp.SCHEDULES[name].start, rel=1e-12)
    assert vp.tau_of_t(torch.ones(1), vp.SCHEDULES[name]).item() == pytest.approx(1, abs=1e-6)


def test_schedules_end_where_the_published_ones_do():
    """DDPM's in continuous time; the linear one of Rectified Diffusion's code in 1000 steps."""
    nsr = {name: s.start / (1 - s.start) for name, s in vp.SCHEDULES.items()}
    assert 1 / math.hypot(1, nsr["vp"]) == pytest.approx(math.exp(-5.025), rel=1e-9)
    betas = torch.linspace(0.00085, 0.012, 1000, dtype=torch.float64)
    discrete = math.sqrt(float(torch.prod(1 - betas)))
    assert discrete == pytest.approx(0.0397, abs=5e-5)  # measured for the reference
    assert 1 / math.hypot(1, nsr["vp_sd"]) == pytest.approx(discrete, rel=0.02)
    assert nsr["vp_sd"] == pytest.approx(25.1, rel=0.02)


@pytest.mark.parametrize("name", BETAS)
@pytest.mark.parametrize("steps", STEPS)
def test_ddim_is_eulers_rule_on_the_mapped_times(name, steps):
    """Of an arbitrary network that predicts the noise, from the same noise to the same image."""
    z, schedule = normals(5, 1, 4, 4), vp.SCHEDULES[name]
    start = schedule.start
    field = prediction.FIELDS[name](Raw(), "eps")
    grid, _ = SamplerConfig("euler", steps, name).plan(start)
    ours = solve(field, start * z, grid, "euler", "full").x
    taus = torch.linspace(1, 0, steps + 1, dtype=torch.float64)
    alpha, sigma = noise_levels(taus[0], BETAS[name])

    def eps_of(u, tau):
        return Raw()(u, (tau - 0.5).expand(5))

    theirs = ddim(eps_of, start * z * (alpha + sigma), taus, BETAS[name])
    scale = float(theirs.abs().max())  # up to sigma / alpha
    torch.testing.assert_close(ours / scale, theirs / scale, rtol=0, atol=1e-12)


def test_ddim_is_eulers_rule_on_the_straight_path():
    """With alpha = 1 - t and sigma = t, in the form that is finite at t = 1."""
    u, grid = normals(5, 1, 4, 4), torch.linspace(1, 0, 8, dtype=torch.float64)
    field = prediction.FIELDS["rf"](Raw(), "v")
    ours = solve(field, u, grid, "euler", "full").x
    for t, s in pairwise(grid):
        v = Raw()(u, (t - 0.5).expand(5))
        u = (1 - s) * (u - t * v) + s * (u + (1 - t) * v)
    torch.testing.assert_close(ours, u, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", BETAS)
def test_with_constant_noise_any_number_of_steps_gives_the_same_image(name):
    x, z = normals(6, 1, 4, 4), normals(6, 1, 4, 4, seed=1)
    start = vp.SCHEDULES[name].start
    first = path.interpolate(x, z, torch.full((6,), start, dtype=torch.float64))
    for predicted, value in (("eps", z), ("x", x)):
        field = prediction.FIELDS[name](Fixed(value), predicted)
        for steps in STEPS:
            grid, _ = SamplerConfig("euler", steps, name).plan(start)
            found = solve(field, first, grid, "euler", "full").x
            torch.testing.assert_close(found, x, rtol=0, atol=1e-10)


def test_with_constant_image_or_velocity_so_it_does_on_the_straight_path():
    x, z = normals(6, 1, 4, 4), normals(6, 1, 4, 4, seed=1)
    for predicted, value in (("v", z - x), ("x", x)):
        field = prediction.FIELDS["rf"](Fixed(value), predicted)
        for steps in STEPS:
            grid, _ = SamplerConfig("euler", steps).plan()
            found = solve(field, z, grid, "euler", "full").x
            torch.testing.assert_close(found, x, rtol=0, atol=1e-10)


def test_predictions_are_those_of_one_velocity():
    x, z, t = normals(7, 1, 4, 4), normals(7, 1, 4, 4, seed=1), TIMES
    x_t, v = path.interpolate(x, z, t), z - x
    alpha, sigma = (like(part / torch.sqrt(t**2 + (1 - t) ** 2), x) for part in (1 - t, t))
    torch.testing.assert_close(prediction.of_v(x_t, v, t), v)
    torch.testing.assert_close(prediction.of_eps(x_t, path.z_hat(x_t, v, t), t), v)
    torch.testing.assert_close(prediction.of_x(x_t, path.x_hat(x_t, v, t), t), v)
    torch.testing.assert_close(prediction.of_eps(x_t, z, t), v)
    torch.testing.assert_close(prediction.of_x(x_t, x, t), v)
    torch.testing.assert_close(prediction.of_vp_v(x_t, alpha * z - sigma * x, t), v)


def test_the_velocity_of_a_vp_path_is_edms_output_for_unit_variance():
    """EDM's preconditioning (arXiv 2206.00364) with sigma_data = 1 and the sign turned."""

    class Timeless(torch.nn.Module):
        sign = 1

        def forward(self, x, c, y=None):
            return self.sign * torch.sin(3 * x)

    other = Timeless()
    other.sign = -1
    x, t = normals(7, 1, 4, 4), TIMES
    ours = prediction.FIELDS["vp"](Timeless(), "v")(x, t)
    torch.testing.assert_close(ours, EDMVelocity(other, 1.0)(x, t))


@pytest.mark.parametrize(("name", "predicted"), [("rf", "x"), ("vp", "x"), ("vp", "eps"),
                                                 ("vp", "v"), ("vp_sd", "eps")])  # fmt: skip
def test_fields_are_finite_at_both_ends_in_single_precision(name, predicted):
    start = vp.SCHEDULES[name].start if name in vp.SCHEDULES else 1.0
    x, field = normals(2, 1, 4, 4).float(), prediction.FIELDS[name](Raw(), predicted)
    for t in (0.0, start):
        assert field(x, torch.full((2,), t)).isfinite().all()
