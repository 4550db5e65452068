"""Flow maps against the closed form of Gaussian data, and against other ways to compute them."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from rfpp_core.config import build, objective
from rfpp_core.config.network import Network
from rfpp_core.config.recipe import Recipe
from rfpp_core.images import loader
from rfpp_core.images.loader import Batch
from rfpp_core.model.flow_map import interval, time_and_gap
from rfpp_core.model.path import interpolate, velocity
from rfpp_core.rng import StepRNG
from rfpp_core.storage import checkpoint
from rfpp_core.training import flow_map, losses
from rfpp_core.training.couplings.independent import independent
from rfpp_core.training.couplings.paired import seeded
from rfpp_core.training.trainer import TrainState, train
from tests.helpers import randomised, tiny_arch
from tests.unit.training import gaussian

N = 64
CPU = torch.device("cpu")


def recipe(**changes: Any) -> Recipe:
    """A recipe of flow maps; options of `flow_map` beside those of the recipe."""
    own = {
        name: changes.pop(name) for name in [*changes] if name in Recipe().flow_map.model_dump()
    }
    return Recipe.model_validate(
        {"objective": "flow_map", "flow_map": own, "times": {"distribution": "uniform"}, **changes}
    )


def points(dtype=torch.float64, n=N) -> Batch:
    """Gaussian data in two dimensions."""
    x = gaussian.M + gaussian.S * torch.randn(n, 2, generator=torch.Generator().manual_seed(3))
    return Batch(x.to(dtype), torch.arange(n), None)


def image_batch(labels=False, n=6) -> Batch:
    x = torch.randn(n, 1, 8, 8, generator=torch.Generator().manual_seed(4))
    return Batch(x, torch.arange(n), torch.arange(n) % 3 if labels else None)


def network(arch="small_unet", precond="velocity_map", classes=0):
    params = Network(
        arch=arch, channels=8, multipliers=(1, 2), blocks=1, attention=1, precond=precond,
        attention_resolutions=(4,), conditional=classes > 0,
    )  # fmt: skip
    return randomised(build.field(build.architecture(params, (1, 8, 8), classes)))


@pytest.mark.parametrize("end", ["drawn", "zero"])
@pytest.mark.parametrize(("derivative", "most"), [("jvp", 1e-24), ("difference", 1e-6)])
def test_the_exact_flow_map_has_no_loss_under_the_exact_velocity(end, derivative, most):
    """And another map has one: the identity singles it out."""
    params = recipe(end=end, derivative=derivative, velocity="teacher", same=0.25, p=0.0)
    loss = objective.loss(params, independent, frozen=gaussian.v)
    terms = loss(gaussian.u, points(), 0, StepRNG(0, 0, N))
    assert float(sum(terms.values()).max()) < most
    straight = loss(lambda x, t, y: gaussian.v(x, time_and_gap(t)[0]), points(), 0,
                    StepRNG(0, 0, N))  # fmt: skip
    assert float(straight["velocity"].max()) < 1e-24  # u = v is right where r = t
    assert float(straight["map"].mean()) > 1e-3


@pytest.mark.parametrize("derivative", ["jvp", "difference"])
def test_the_derivative_along_the_path_is_that_of_the_closed_form(derivative):
    """du/dt = (v - u) / (t - r), from the identity."""
    x, t = points().x, torch.linspace(0.3, 1, N, dtype=torch.float64)
    r = t * 0.3
    v = gaussian.v(x, t)
    found = flow_map.DERIVATIVES[derivative](1e-4)(gaussian.u, x, t, r, v)
    expected = (v - gaussian.u(x, interval(t, r))) / (t - r)[:, None]
    most = 1e-10 if derivative == "jvp" else 1e-3
    assert float((found - expected).abs().max()) < most


def test_differences_stay_between_the_end_time_and_one():
    seen = []

    def u(x, times):
        seen.append(times)
        return times[:, :1] * x

    x, t = torch.ones(3, 2, dtype=torch.float64), torch.tensor([1.0, 0.5, 0.201]).double()
    r = torch.tensor([0.0, 0.1, 0.2]).double()
    found = flow_map.difference(u, x, t, r, 0 * x, 0.01)
    torch.testing.assert_close(found, x)
    later, earlier = (times[:, 0] for times in seen)
    torch.testing.assert_close(later, torch.tensor([1.0, 0.51, 0.211]).double())
    torch.testing.assert_close(earlier, torch.tensor([0.99, 0.49, 0.2]).double())
    assert all(torch.equal(times[:, 1], r) for times in seen)


@pytest.mark.parametrize("arch", ["ddpmpp", "adm"])
def test_forward_mode_of_a_network_is_its_central_difference(arch):
    """In float64, through attention, normalisation, resampling and both embeddings."""
    net = network(arch, "edm_map").double().eval()
    x = image_batch().x.double()
    t = torch.linspace(0.4, 0.9, len(x)).double()
    v = torch.randn(x.shape, generator=torch.Generator().manual_seed(5)).double()
    with torch.no_grad():
        exact = flow_map.jvp(net, x, t, t / 2, v)
        other = flow_map.difference(net, x, t, t / 2, v, 1e-4)
    assert float((exact - other).abs().max()) < 1e-5 * float(exact.abs().max())
    assert float(exact.abs().max()) > 0.1


@pytest.mark.parametrize("precond", ["velocity_map", "edm_map"])
def test_forward_mode_of_the_small_network_too(precond):
    """Its time features are float32."""
    net, x = network(precond=precond).double().eval(), image_batch().x.double()
    t = torch.linspace(0.4, 0.9, len(x)).double()
    v = torch.randn(x.shape, generator=torch.Generator().manual_seed(5)).double()
    with torch.no_grad():
        exact = flow_map.jvp(net, x, t, t / 2, v)
        other = flow_map.difference(net, x, t, t / 2, v, 1e-3)
    assert float((exact - other).abs().max()) < 0.01 * float(exact.abs().max())


def test_with_r_equal_to_t_it_is_flow_matching():
    """To the last bit, with the recipe's own times."""
    times = objective.training_times(recipe(times={"distribution": "u_shape"}).times)
    net, batch, draws = network(classes=3), image_batch(labels=True), StepRNG(0, 0, 6)
    intervals = flow_map.intervals(times, times, flow_map.drawn, same=1.0)
    weight = flow_map.Weight(p=0.0, c=1.0)
    found = flow_map.flow_map(independent, intervals, flow_map.jvp, weight, 0.4)(
        net, batch, 0, draws
    )
    expected = losses.flow_matching(independent, times, losses.Term("l2", losses.l2), 0.4)(
        net, batch, 0, draws
    )
    assert torch.equal(found["velocity"], expected["l2"])
    assert not found["map"].any()


def test_the_target_is_held_fixed_and_the_weight_is_that_of_the_error():
    net, batch, draws = network(), image_batch(), StepRNG(0, 0, 6)
    params = recipe(same=0.0, p=0.5, c=0.1)
    terms = objective.loss(params, seeded(7))(net, batch, 0, draws)
    torch.stack([term.mean() for term in terms.values()]).sum().backward()
    found = [p.grad.clone() for p in net.parameters()]
    net.zero_grad()

    x, z, _ = seeded(7)(batch, draws)
    first, other = draws.uniform("t"), draws.uniform("end time")
    inside = objective.time_distribution(params.times)
    t = torch.maximum(inside(first), inside(other)).float()
    r = torch.minimum(inside(first), inside(other)).float()
    x_t, v = interpolate(x, z, t), velocity(x, z)
    with torch.no_grad():
        aim = v - (t - r)[:, None, None, None] * flow_map.jvp(net, x_t, t, r, v)
    error = (net(x_t, interval(t, r)) - aim).square().flatten(1).mean(1)
    (error / (error.detach() + 0.1) ** 0.5).mean().backward()
    for own, p in zip(found, net.parameters(), strict=True):
        torch.testing.assert_close(own, p.grad, rtol=1e-4, atol=1e-6)
    assert terms["map"].shape == (6,)


def test_the_velocity_is_the_chord_of_a_pair_or_the_teachers():
    """At r = t, where it is the target itself."""
    batch, draws, seen = points(), StepRNG(0, 0, N), []

    def teacher(x, t, y=None):
        seen.append((x, t))
        return x + 1

    x, z, _ = seeded(7)(batch, draws)
    times = objective.training_times(recipe().times)
    t = times(draws)
    x_t = interpolate(x, z, t)
    held = flow_map.intervals(times, times, flow_map.drawn, same=1.0)
    for given, v in ((None, z - x), (teacher, x_t + 1)):
        loss = flow_map.flow_map(
            seeded(7), held, flow_map.jvp, flow_map.Weight(0.0, 1.0), teacher=given
        )
        error = loss(lambda x, t, y: 0 * x, batch, 0, draws)["velocity"]
        torch.testing.assert_close(error, v.square().mean(1))
    torch.testing.assert_close(seen[0][0], x_t)
    assert torch.equal(seen[0][1], t)


def test_end_times():
    draws = StepRNG(0, 0, 20_000)
    times = objective.training_times(recipe().times)

    def other(draws):
        return draws.uniform("end time")

    t, r = flow_map.intervals(times, other, flow_map.drawn, 0.75)(draws)
    held = r == t
    assert (r <= t).all()
    assert float(held.double().mean()) == pytest.approx(0.75, abs=0.01)
    assert torch.equal(t[held], times(draws)[held])  # the recipe's own times
    assert float(t[held].mean()) == pytest.approx(1 / 2, abs=0.01)
    assert float(t[~held].mean()) == pytest.approx(2 / 3, abs=0.02)  # the later of two
    assert float(r[~held].mean()) == pytest.approx(1 / 3, abs=0.02)
    t, r = flow_map.intervals(times, other, flow_map.zero, 0.0)(draws)
    assert not r.any()
    assert torch.equal(t, times(draws))


def test_samples_with_r_equal_to_t_cost_no_derivative():
    calls = []

    def derivative(u, x, t, r, v):
        calls.append(len(x))
        return flow_map.jvp(u, x, t, r, v)

    x, t = points().x, torch.linspace(0, 1, N).double()
    r = torch.where(torch.arange(N) % 4 == 0, t / 2, t)  # 16, but for t = 0
    v = gaussian.v(x, t)
    found = flow_map.target(gaussian.u, derivative, x, t, r, v, None)
    assert calls == [15]
    torch.testing.assert_close(found, gaussian.u(x, interval(t, r)))
    assert flow_map.target(gaussian.u, derivative, x, t, t, v, None) is v
    assert calls == [15]


@pytest.mark.parametrize("derivative", ["jvp", "difference"])
def test_half_precision_keeps_every_gradient(derivative):
    """Autocast would keep weights that it converted without gradient; and the derivative is that
    of float32, so the loss hardly changes."""
    batch, draws, found = image_batch(), StepRNG(0, 0, 6), []
    loss = objective.loss(recipe(same=0.3, derivative=derivative, p=0.0), independent)
    for enabled in (False, True):
        net = network("ddpmpp", "edm_map")
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            terms = loss(net, batch, 0, draws)
        total = torch.stack([term.mean() for term in terms.values()]).sum()
        total.backward()
        assert all(p.grad is not None and p.grad.abs().max() > 0
                   for p in net.parameters() if p.requires_grad)  # fmt: skip
        found.append(total.detach())
    torch.testing.assert_close(*found, rtol=0.05, atol=0)


def test_the_derivative_goes_around_the_wrappers_of_several_processes_and_of_compilation(tmp_path):
    batch, draws = image_batch(), StepRNG(0, 0, 6)
    loss = objective.loss(recipe(same=0.3), independent)
    expected = loss(network(), batch, 0, draws)["map"]
    compiled = torch.compile(network(), backend="eager")
    torch.testing.assert_close(loss(compiled, batch, 0, draws)["map"], expected)
    dist.init_process_group("gloo", f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    try:
        parallel = DistributedDataParallel(torch.compile(network(), backend="eager"))
        calls = []
        parallel.register_forward_pre_hook(lambda *given: calls.append(given))
        terms = loss(parallel, batch, 0, draws)
        torch.testing.assert_close(terms["map"], expected)
        assert len(calls) == 1  # the regression's
        (terms["map"] + terms["velocity"]).mean().backward()
        assert all(p.grad is not None for p in parallel.parameters())
    finally:
        dist.destroy_process_group()


class Learner(nn.Module):
    """The exact velocity, as a flow has it, and a net of (x, t, t - r) that adds nothing at
    first: so the start is right where r = t, and a step of it is Euler's."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(4, 32), nn.SiLU(), nn.Linear(32, 32), nn.SiLU(), nn.Linear(32, 2)
        )
        nn.init.zeros_(self.net[-1].weight)
        nn.init.zeros_(self.net[-1].bias)

    def forward(self, x, t, y=None):
        t, gap = time_and_gap(t)
        return gaussian.v(x, t) + self.net(torch.cat((x, t[:, None], gap[:, None]), 1))


def one_step_error(net) -> float:
    """Mean square distance of ``z - u(z, 1, 0)`` to the exact image."""
    z = torch.randn(2000, 2, generator=torch.Generator().manual_seed(8))
    one = torch.ones(len(z))
    exact = gaussian.moved(z, one, 0 * one)
    with torch.no_grad():
        return float((z - net(z, interval(one, 0 * one)) - exact).square().mean())


@pytest.mark.parametrize(("options", "most"), [
    ({"velocity": "teacher", "derivative": "difference", "step": 0.01}, 0.3),
    ({"velocity": "data", "end": "zero"}, 0.2),
])  # fmt: skip
def test_training_leads_from_a_flow_to_its_map(options, most):
    """Euler's single step gives the mean of the data; the map's gives the data."""
    torch.set_num_threads(1)
    net, steps, n = Learner(), 200, 128
    params = recipe(p=0.0, same=0.25, **options)
    loss = objective.loss(params, independent, frozen=gaussian.v if params.from_teacher else None)
    optimizer = torch.optim.Adam(net.parameters())
    data, start = torch.Generator().manual_seed(6), one_step_error(net)
    assert start == pytest.approx(gaussian.S**2, rel=0.05)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 0.01 * (1 - step / steps)
        x = gaussian.M + gaussian.S * torch.randn(n, 2, generator=data)
        terms = loss(net, Batch(x, torch.arange(n), None), step, StepRNG(0, step, n))
        optimizer.zero_grad()
        torch.stack([term.mean() for term in terms.values()]).sum().backward()
        optimizer.step()
    assert one_step_error(net) < most * start


def test_the_trainer_trains_one_and_resumes_it_bit_for_bit(tmp_path):
    """From the weights of a flow."""
    torch.set_num_threads(1)
    params = recipe(steps=6, batch=8, warmup=0, log_every=3, threads=1, velocity="teacher",
                    same=0.5)  # fmt: skip
    images = torch.randint(0, 256, (20, 1, 8, 8), dtype=torch.uint8,
                           generator=torch.Generator().manual_seed(0))  # fmt: skip
    flow = randomised(build.field(tiny_arch()))
    config = build.train_config(params, 5)
    loss = objective.loss(params, independent, frozen=flow.requires_grad_(False))

    def begin():
        net = build.field(build.trained_architecture(params, tiny_arch()))
        checkpoint.load_into(net, flow.state_dict(), "flow")
        return TrainState(net, config, CPU)

    def go(state, until):
        source = loader.batches(images, None, 8, 1, CPU, state.step)
        config_until = dataclasses.replace(config, steps=until)
        assert list(train(state, source, loss, config_until))[-1].terms["map"] > 0

    whole, first = begin(), begin()
    weights = whole.net.model.fourier.end
    assert not weights.any()
    for state in (whole, first):
        go(state, 3)
    checkpoint.save_state(tmp_path, first.step, first.tensors(), first.metadata())
    saved, resumed = checkpoint.load_state(tmp_path, 6), begin()
    resumed.restore(saved.tensors, saved.metadata)
    for state in (whole, resumed):
        go(state, 6)
    assert weights.any()
    assert all(torch.equal(t, resumed.tensors()[name]) for name, t in whole.tensors().items())
