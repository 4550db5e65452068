"""Attention values are those that torch's attention is given, and are those that it then takes."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch.nn import functional as F

from rfpp_core.config import build
from rfpp_core.config.network import Network
from rfpp_core.model.attention_values import ValueTap
from tests.helpers import randomised

NETWORKS = {
    "small_unet": Network(channels=16, multipliers=(1, 2), attention=2, conditional=True),
    "ncsnpp": Network(arch="ncsnpp", channels=8, multipliers=(1, 2), blocks=1,
                      attention_resolutions=(8,), conditional=True),
    "adm": Network(arch="adm", channels=64, multipliers=(1, 2), blocks=1,
                   attention_resolutions=(8,), conditional=True),
}  # fmt: skip


@pytest.fixture(params=NETWORKS, scope="module")
def net(request):
    arch = build.architecture(NETWORKS[request.param], (1, 8, 8), 3)
    return randomised(build.field(arch)).requires_grad_(False).eval()


@pytest.fixture
def given(monkeypatch):
    """The values that torch's attention was given, as (B, C, pixels)."""
    found, attention = [], F.scaled_dot_product_attention

    def watched(q, k, v):
        found.append(v.transpose(-1, -2).flatten(1, 2))
        return attention(q, k, v)

    monkeypatch.setattr(F, "scaled_dot_product_attention", watched)
    return found


def state(n=2, seed=0):
    x = torch.randn(n, 1, 8, 8, generator=torch.Generator().manual_seed(seed))
    return x, torch.full((n,), 0.4), torch.arange(n)


def test_a_handler_sees_the_values_of_every_attention_once(net, given):
    seen = []
    with ValueTap(net) as tap, tap.handled(lambda block, v: seen.append((block, v.clone()))):
        net(*state())
    assert tap.blocks == len(given) > 1
    assert [block for block, _ in seen] == list(range(tap.blocks))
    for (_, values), expected in zip(seen, given, strict=True):
        assert torch.equal(values.flatten(2), expected)


def test_what_a_handler_returns_is_attended_to(net, given):
    with ValueTap(net) as tap, tap.handled(lambda block, v: torch.full_like(v, block + 0.5)):
        out = net(*state())
    for block, values in enumerate(given):
        assert torch.equal(values, torch.full_like(values, block + 0.5))
    assert not torch.allclose(out, net(*state()))


def test_its_own_values_change_no_bit(net):
    with ValueTap(net) as tap, tap.handled(lambda _, v: v.clone()):
        found = net(*state())
    assert torch.equal(found, net(*state()))


def test_a_tap_leaves_the_network_as_it_was(net):
    names, before = list(net.state_dict()), net(*state())
    tap = ValueTap(net)
    with pytest.raises(KeyError), tap, tap.handled(lambda block, _: {}[block]):
        net(*state())
    assert list(net.state_dict()) == names
    assert torch.equal(net(*state()), before)
    assert not any(module._forward_hooks for module in net.modules())


def test_threads_and_taps_do_not_see_each_other(net):
    alone = net(*state())
    other = ValueTap(net)
    with ValueTap(net) as tap, tap.handled(lambda _, v: 0 * v), other:
        with ThreadPoolExecutor(1) as pool:
            assert torch.equal(pool.submit(net, *state()).result(), alone)
        zeros = net(*state())
        assert not torch.equal(zeros, alone)
        with other.handled(lambda block, v: None):
            assert torch.equal(net(*state()), zeros)
        with tap.handled(None):
            assert torch.equal(net(*state()), alone)
