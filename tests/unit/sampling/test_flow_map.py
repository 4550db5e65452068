"""Steps of a flow map: exact ones compose; a trained one takes them by default."""

from __future__ import annotations

import pytest
import torch

from rfpp_core import SamplerConfig, load_flow, rng
from rfpp_core.config import build
from rfpp_core.errors import UserError
from rfpp_core.evaluation.flow_metrics import straightness
from rfpp_core.model.flow_map import interval
from rfpp_core.sampling import grids
from rfpp_core.sampling.flow import sampler_for
from rfpp_core.sampling.flow_map import MapFlow
from rfpp_core.sampling.solvers import solve, trajectory
from rfpp_core.storage import checkpoint
from tests.helpers import randomised, save_tiny, tiny_arch
from tests.unit.training import gaussian


@pytest.fixture(scope="module")
def flow(tmp_path_factory):
    """A flow map whose end time counts."""
    path = tmp_path_factory.mktemp("m") / "m.safetensors"
    arch = {**tiny_arch(10), "precond": "velocity_map"}
    checkpoint.save(path, randomised(build.field(arch)).state_dict(), {"architecture": arch})
    return load_flow(path)


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return load_flow(save_tiny(tmp_path_factory.mktemp("m") / "m.safetensors", classes=10))


@pytest.mark.parametrize("times", [(1.0,), (1.0, 0.5), (1.0, 0.83, 0.4, 0.11)])
def test_steps_of_an_exact_map_compose_to_its_flow(times):
    """On any grid, each for one evaluation; and they are on the path at its every time."""
    z = torch.randn(50, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    grid, one = grids.custom(times), torch.ones(50, dtype=torch.float64)
    found = solve(gaussian.u, z, grid, "flow-map", "full")
    assert found.nfe == len(times)
    torch.testing.assert_close(found.x, gaussian.M + gaussian.S * z)
    states = trajectory(gaussian.u, z, grid, "flow-map", "full")
    for t, x in zip(grid, states, strict=True):
        torch.testing.assert_close(x, gaussian.moved(z, one, t * one))


def test_without_an_end_time_it_is_the_velocity_that_other_solvers_integrate():
    z = torch.randn(50, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    x = solve(gaussian.u, z, grids.uniform(200), "heun", "full").x
    torch.testing.assert_close(x, gaussian.M + gaussian.S * z, atol=1e-4, rtol=0)
    euler = solve(gaussian.u, z, grids.uniform(1), "euler").x
    torch.testing.assert_close(euler, torch.full_like(z, gaussian.M))


def test_a_flow_map_is_sampled_by_its_own_steps(flow):
    assert isinstance(flow, MapFlow)
    key, labels = rng.subkey(4, "sample"), [3] * 5
    x, y = rng.normal(key, torch.arange(5), flow.shape), torch.tensor(labels)
    with torch.inference_mode():
        for t, s in ((1.0, 2 / 3), (2 / 3, 1 / 3), (1 / 3, 0.0)):
            times = interval(torch.full((5,), t), torch.full((5,), s))
            x = x - (t - s) * flow.field(x, times, y)
    found = flow.sample(5, nfe=3, seed=4, labels=labels)
    torch.testing.assert_close(found, x, atol=1e-5, rtol=1e-5)
    euler = flow.sample(5, seed=4, labels=labels, sampler=SamplerConfig("euler", 3))
    assert not torch.allclose(found, euler, atol=1e-3)
    torch.testing.assert_close(flow.decode(  # of the noise itself
        rng.normal(key, torch.arange(5), flow.shape), sampler_for(flow, 3, None), labels), found
    )  # fmt: skip


def test_the_default_solver_of_a_flow_map_and_of_a_flow(flow, plain):
    assert [sampler_for(flow, nfe, None).solver for nfe in (1, 35)] == ["flow-map"] * 2
    assert [sampler_for(plain, nfe, None).solver for nfe in (1, 35)] == ["euler", "heun"]
    assert sampler_for(flow, 8, "heun").solver == "heun"
    assert not isinstance(plain, MapFlow)


def test_its_steps_are_refused_for_a_flow_without_end_time(plain):
    for draw in (
        lambda: sampler_for(plain, 2, "flow-map"),
        lambda: plain.sample(3, sampler=SamplerConfig("flow-map", 2)),
        lambda: plain.sample(3, sampler=SamplerConfig("flow-map", 2, guidance=2.0)),
    ):
        with pytest.raises(UserError, match="this flow has no end time: take euler, m") as error:
            draw()
        assert "\n" not in str(error.value)


def test_it_is_inverted_by_its_velocity_alone(flow):
    x = flow.sample(4, seed=1, labels=[1])
    with pytest.raises(UserError, match="flow-map leads from noise to images alone; invert with"):
        flow.invert(x, SamplerConfig("flow-map", 2), [1])
    sampler = SamplerConfig("midpoint", 64)
    back = flow.decode(flow.invert(x, sampler, [1]), sampler, [1])
    torch.testing.assert_close(back, x, rtol=0, atol=1e-2)


def test_straightness_is_that_of_its_velocity(flow):
    z = rng.normal(3, torch.arange(4), flow.shape)
    y = torch.tensor([1, 2, 3, 4])

    def v(x, t, y=None):
        return flow.field(x, interval(t, t), y)

    assert straightness(flow.field, z, y) == straightness(v, z, y) > 0


def test_guidance_mixes_average_velocities(flow):
    labels = torch.tensor([2, 5])
    z = rng.normal(3, torch.arange(2), flow.shape)
    times = interval(torch.ones(2), torch.zeros(2))
    with torch.inference_mode():
        free, given = flow.field(z, times), flow.field(z, times, labels)
    found = flow.decode(z, SamplerConfig("flow-map", 1, guidance=3.0), [2, 5])
    torch.testing.assert_close(found, z - free - 3 * (given - free), atol=1e-5, rtol=1e-5)
