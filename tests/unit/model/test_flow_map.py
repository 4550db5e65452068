"""Networks with an end time: what they are at first, and what they become."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from rfpp_core.config import build
from rfpp_core.config.network import WITH_END_TIME, Network
from rfpp_core.errors import UserError
from rfpp_core.model.flow_map import (
    PlainFlowMap,
    interval,
    lacks_end_time,
    takes_end_time,
    time_and_gap,
    waves,
)
from rfpp_core.sampling.sampler import Guided
from rfpp_core.sampling.solvers import CallCounter
from rfpp_core.storage import checkpoint
from tests.helpers import randomised

T, R = torch.tensor([1.0, 0.6, 0.3]), torch.tensor([0.0, 0.2, 0.3])
X = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(1))
Y = torch.tensor([0, 2, -1])


def document(arch: str, precond: str, classes: int = 3) -> dict:
    network = Network(arch=arch, channels=8, multipliers=(1, 2), blocks=1, attention=1,
                      attention_resolutions=(4,), precond=precond, conditional=True)  # fmt: skip
    return build.architecture(network, (1, 8, 8), classes)


def of_flow(arch: str = "small_unet", precond: str = "velocity"):
    """A flow with weights of its own, and the flow map that begins with them."""
    flow = randomised(build.field(document(arch, precond)))
    made = build.field(document(arch, WITH_END_TIME[precond]), seed=9)
    checkpoint.load_into(made, flow.state_dict(), "flow")
    return flow.eval(), made.eval()


NETS = [(arch, precond) for arch in ("small_unet", "ncsnpp", "ddpmpp", "adm")
        for precond in WITH_END_TIME]  # fmt: skip


@pytest.mark.parametrize(("arch", "precond"), NETS)
@torch.no_grad()
def test_with_the_weights_of_a_flow_it_is_its_velocity_whatever_the_end_time(arch, precond):
    flow, made = of_flow(arch, precond)
    v = flow(X, T, Y)
    assert torch.equal(made(X, T, Y), v)
    assert torch.equal(made(X, interval(T, R), Y), v)
    assert torch.equal(made(X, interval(T, T), Y), v)
    assert float(v.std()) > 0.1


@pytest.mark.parametrize(("arch", "precond"), NETS)
@torch.no_grad()
def test_then_the_end_time_counts_and_without_one_it_is_the_time_itself(arch, precond):
    _, made = of_flow(arch, precond)
    randomised(made, seed=2)
    v, u = made(X, T, Y), made(X, interval(T, R), Y)
    assert torch.equal(made(X, interval(T, T), Y), v)
    moved = (u - v).flatten(1).abs().amax(1)
    assert (moved[:2] > 1e-4).all()
    assert moved[2] == 0  # r = t


@pytest.mark.parametrize(("arch", "precond"), NETS)
def test_the_first_update_reaches_the_end_time(arch, precond):
    _, made = of_flow(arch, precond)
    made(X, interval(T, R), Y).square().sum().backward()
    added = [p for name, p in made.named_parameters() if name.endswith(".end")]
    assert len(added) == 1
    assert float(added[0].grad.abs().max()) > 0


def test_weights_of_a_flow_map_are_loaded_as_they_are():
    _, made = of_flow()
    tensors = {name: t.clone() for name, t in randomised(made, seed=3).state_dict().items()}
    other = build.field(document("small_unet", "velocity_map"))
    checkpoint.load_into(other, tensors, "map")
    assert all(torch.equal(t, tensors[name]) for name, t in other.state_dict().items())


def test_nothing_but_the_new_weights_may_be_missing():
    flow, made = of_flow()
    tensors = dict(flow.state_dict())
    tensors.pop("model.out.bias")
    with pytest.raises(
        UserError, match=r"^flow does not fit the network: model.out.bias missing$"
    ):
        checkpoint.load_into(made, tensors, "flow")
    with pytest.raises(UserError, match=r"model.other unknown"):
        checkpoint.load_into(made, {**flow.state_dict(), "model.other": X}, "flow")


def test_a_model_file_of_a_flow_map_must_have_them():
    flow, _ = of_flow()
    made = build.field(document("small_unet", "velocity_map"))
    with pytest.raises(UserError, match=r"model.fourier.end missing"):
        checkpoint.load_into(made, flow.state_dict(), "map", assign=True)


def test_building_one_draws_no_random_numbers_beyond_the_network():
    before = torch.get_rng_state()
    made = build.field(document("small_unet", "edm_map"), seed=4)
    assert torch.equal(torch.get_rng_state(), before)
    flow = build.field(document("small_unet", "edm"), seed=4)
    assert torch.equal(made(X, interval(T, R), Y), flow(X, T, Y))


def test_features_of_the_end_time_are_waves_of_the_gap():
    gap = torch.tensor([0.0, 0.25, 1.0], dtype=torch.float64)
    found = waves(gap, 6)
    assert torch.equal(found[0], torch.tensor([1, 1, 1, 0, 0, 0], dtype=torch.float64))
    k = torch.tensor([-2.0, 0.0, 2.0], dtype=torch.float64)
    torch.testing.assert_close(found[1, :3], torch.cos(torch.pi * 0.25 * 2**k))
    torch.testing.assert_close(found[2, 3:], torch.sin(torch.pi * 2**k), atol=1e-12, rtol=0)


def test_times_and_gaps():
    t, gap = time_and_gap(interval(T, R))
    assert torch.equal(t, T)
    assert torch.equal(gap, T - R)
    assert torch.equal(time_and_gap(T)[1], torch.zeros(3))


def test_whether_a_field_takes_an_end_time_is_seen_through_its_wrappers():
    flow, made = of_flow()
    for field, is_map in ((flow, False), (made, True)):
        for wrapped in (field, Guided(field, 2.0), CallCounter(Guided(field, 1.0))):
            assert takes_end_time(wrapped) is is_map
            assert lacks_end_time(wrapped) is not is_map
    assert not takes_end_time(lambda x, t, y=None: x)
    assert not lacks_end_time(lambda x, t, y=None: x)


def test_a_network_without_time_features_is_refused():
    with pytest.raises(ValueError, match="no time features among fourier, map_noise"):
        PlainFlowMap(nn.Identity())
