"""Our group normalisation is torch's, and so are its gradients."""

import pytest
import torch
from torch import nn

from rfpp_core.model.nets.group_norm import GroupNorm, _suits
from rfpp_core.model.nets.small_unet import SmallUNet


def both(channels, groups, dtype=torch.float32):
    """Ours, and torch's with the same weights."""
    ours, theirs = GroupNorm(groups, channels), nn.GroupNorm(groups, channels)
    with torch.no_grad():
        ours.weight.uniform_(0.5, 2)
        ours.bias.normal_()
    theirs.load_state_dict(ours.state_dict())
    return ours.to(dtype), theirs.to(dtype)


@pytest.mark.parametrize(("channels", "groups", "side"), [(32, 8, 8), (96, 8, 5), (64, 16, 1)])
@pytest.mark.parametrize("offset", [0.0, 30.0])
def test_it_is_torch_s_with_its_gradients(channels, groups, side, offset):
    torch.manual_seed(0)
    ours, theirs = both(channels, groups)
    x = (torch.randn(6, channels, side, side) + offset).to(memory_format=torch.channels_last)
    g = torch.randn_like(x)
    assert _suits(x)
    found = []
    for module in (ours, theirs.double()):
        at = x.to(next(module.parameters()).dtype).clone().requires_grad_()
        out = module(at)
        out.backward(g.to(out.dtype))
        found.append((out, at.grad, module.weight.grad, module.bias.grad))
        assert out.is_contiguous(memory_format=torch.channels_last)
    for ours_, theirs_ in zip(*found, strict=True):
        gap = (ours_ - theirs_).detach().abs().max() / theirs_.detach().abs().max()
        assert gap < (1e-5 if offset == 0 else 1e-4)
    with torch.no_grad():
        assert torch.equal(ours(x), found[0][0])


def test_the_gradient_by_differences():
    """In float64, which the module itself leaves to torch."""
    from rfpp_core.model.nets.group_norm import _Normalised

    torch.manual_seed(1)
    x = torch.randn(2, 8, 3, 3, dtype=torch.float64).to(memory_format=torch.channels_last)
    weight, bias = torch.rand(8, dtype=torch.float64), torch.rand(8, dtype=torch.float64)
    given = [t.clone().requires_grad_() for t in (x, weight, bias)]
    assert torch.autograd.gradcheck(lambda x, w, b: _Normalised.apply(x, w, b, 2, 1e-5), given)


def test_what_it_leaves_to_torch():
    x = torch.randn(2, 8, 4, 4)
    assert not _suits(x)
    assert not _suits(x.to(memory_format=torch.channels_last).double())
    assert not _suits(x.to(memory_format=torch.channels_last).bfloat16())
    assert not _suits(torch.empty(2, 8, 4, 4, device="meta").to(memory_format=torch.channels_last))
    seen = []
    torch.func.jvp(lambda x: seen.append(_suits(x)) or x, (x,), (x,))
    assert seen == [False]


def test_a_network_s_derivative_by_forward_mode_is_that_of_differences():
    net = SmallUNet(1, 8, (1, 2), attention=0).to(memory_format=torch.channels_last)
    with torch.no_grad():
        for p in net.parameters():
            p.add_(0.05 * torch.randn_like(p))
    x, d = torch.randn(2, 2, 1, 8, 8).to(torch.float32)
    c = torch.zeros(2)
    _, tangent = torch.func.jvp(lambda x: net(x, c), (x,), (d,))
    gap = (net(x + 1e-2 * d, c) - net(x - 1e-2 * d, c)) / 2e-2
    torch.testing.assert_close(tangent, gap.detach(), rtol=2e-2, atol=2e-3)


def test_a_second_derivative_is_refused_and_not_wrong():
    ours, _ = both(8, 2)
    x = torch.randn(2, 8, 3, 3).to(memory_format=torch.channels_last).requires_grad_()
    [first] = torch.autograd.grad(ours(x).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.square().sum().backward()
