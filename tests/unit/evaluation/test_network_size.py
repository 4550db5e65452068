"""Multiply-accumulates against counts by hand, and sizes against published ones."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from rfpp_core.config import build
from rfpp_core.config.network import Network
from rfpp_core.evaluation.network_size import macs, parameters
from rfpp_core.model.nets.layers import Attention


def field(shape: tuple[int, int, int] = (1, 8, 8), classes: int = 0, **network: Any) -> nn.Module:
    """A network whose weights take no memory."""
    params = Network(conditional=classes > 0, **network)
    with torch.device("meta"):
        return build.field(build.architecture(params, shape, classes))


def by_hooks(net: nn.Module, shape: tuple[int, int, int]) -> int:
    """Products of convolutions and linear layers by their shapes, and those of attention."""
    counts: list[int] = []

    def count(layer: nn.Module, given: Any, out: torch.Tensor) -> None:
        if isinstance(layer, nn.Conv2d):
            taps = layer.kernel_size[0] * layer.kernel_size[1]
            counts.append(out.numel() * layer.in_channels * taps)
        elif isinstance(layer, nn.Linear):
            counts.append(out.numel() * layer.in_features)
        elif isinstance(layer, Attention):
            _, c, h, w = out.shape
            counts.append(2 * (h * w) ** 2 * c)

    hooks = [layer.register_forward_hook(count) for layer in net.modules()]
    net(torch.zeros(1, *shape, device="meta"), torch.ones(1, device="meta"))
    for hook in hooks:
        hook.remove()
    return sum(counts)


@pytest.mark.parametrize("attention", [0, 1, 2])
@pytest.mark.parametrize("precond", ["velocity", "edm"])
def test_the_count_of_a_small_network_is_that_by_hand(attention, precond):
    net = field(channels=16, multipliers=(1, 2), blocks=2, attention=attention, precond=precond)
    assert macs(net, (1, 8, 8)) == by_hooks(net, (1, 8, 8)) > 0


def test_attention_is_counted():
    """Queries, keys, values and output are 4 c^2 a pixel, and the two products 2 c a pair."""
    plain, one = (field(channels=16, multipliers=(1, 2), attention=n) for n in (0, 1))
    pixels, c, blocks = 16, 32, 2  # the coarse level has a block down and one up
    added = blocks * (4 * c**2 * pixels + 2 * pixels**2 * c)
    assert macs(one, (1, 8, 8)) - macs(plain, (1, 8, 8)) == added


@pytest.mark.parametrize("network", [
    {"channels": 8}, {"channels": 8, "classes": 10}, {"arch": "ncsnpp", "channels": 32},
    {"arch": "ddpmpp", "channels": 32}, {"arch": "adm", "channels": 32, "classes": 10},
], ids=str)  # fmt: skip
def test_every_network_is_counted_alike_with_and_without_memory(network):
    shape, classes = (3, 16, 16), network.pop("classes", 0)
    net = field(shape, classes, **network)
    real = net.to_empty(device="cpu")
    for p in real.parameters():
        nn.init.zeros_(p)
    assert macs(real, shape) == macs(field(shape, classes, **network), shape) > 0


@pytest.mark.parametrize(("size", "millions", "billions"), [
    ({"channels": 128, "multipliers": (1, 2, 2), "blocks": 2}, 27.906, 6.90),
    ({"channels": 96, "multipliers": (1, 2, 2), "blocks": 2}, 15.707, 3.90),
    ({"channels": 64, "multipliers": (1, 2, 2), "blocks": 2}, 6.990, 1.75),
    ({"channels": 64, "multipliers": (1, 1, 2), "blocks": 1}, 3.437, 0.74),
], ids=str)  # fmt: skip
def test_slimflows_students_have_their_published_sizes(size, millions, billions):
    """Of 32x32 images: parameters, and MACs with attention, counted elsewhere."""
    net = field((3, 32, 32), arch="ddpmpp", augment=0, **size)
    assert parameters(net) / 1e6 == pytest.approx(millions, abs=5e-4)
    assert macs(net, (3, 32, 32)) / 1e9 == pytest.approx(billions, abs=5e-3)


def test_edms_network_has_its_published_size():
    net = field((3, 32, 32), arch="ddpmpp", channels=128, multipliers=(2, 2, 2), blocks=4)
    assert parameters(net) / 1e6 == pytest.approx(55.734, abs=5e-4)


def test_the_small_student_of_the_docs_has_a_seventh_of_the_parameters():
    teacher, student = (field(channels=c, precond="velocity") for c in (32, 12))
    assert 6.5 < parameters(teacher) / parameters(student) < 7.5


def test_counting_draws_no_random_number_and_leaves_no_gradient():
    net = build.field(build.architecture(Network(channels=8), (1, 8, 8), 0))
    before = torch.random.get_rng_state()
    macs(net, (1, 8, 8))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(p.grad is None for p in net.parameters())
