import pytest
import torch

from rfpp_core.model import precond
from rfpp_core.model.path import like


class Raw(torch.nn.Module):
    """An arbitrary smooth network."""

    def forward(self, x, c, y=None):
        return torch.sin(3 * x + like(c, x)) + 0.3 * x.roll(1, -1)


def edm_denoiser(net, x, sigma, s):
    """EDM's D(x; sigma), eq. 7 of arXiv 2206.00364, in the form printed there."""
    sig = like(sigma, x)
    c_skip, c_out = s**2 / (sig**2 + s**2), sig * s / (sig**2 + s**2).sqrt()
    c_in = 1 / (sig**2 + s**2).sqrt()
    return c_skip * x + c_out * net(c_in * x, sigma.log() / 4)


def direct_velocity(net, x_t, t, s):
    d = edm_denoiser(net, x_t / like(1 - t, x_t), t / (1 - t), s)
    return (x_t - d) / like(t, x_t)


@pytest.mark.parametrize("s", [0.5, 0.75])
def test_closed_form_equals_edm(s):
    x, t = torch.randn(7, 1, 4, 4).double(), torch.linspace(0.02, 0.98, 7).double()
    field = precond.EDMVelocity(Raw(), s)
    torch.testing.assert_close(field(x, t), direct_velocity(Raw(), x, t, s), rtol=0, atol=1e-12)
    d = precond.EDMDenoiser(field)(x, t)
    expected = edm_denoiser(Raw(), x / like(1 - t, x), t / (1 - t), s)
    torch.testing.assert_close(d, expected, rtol=0, atol=1e-12)


def test_closed_form_keeps_float32_where_the_direct_one_loses_it():
    x, t = torch.randn(64, 1, 4, 4), torch.full((64,), 1e-5)
    exact = precond.EDMVelocity(Raw())(x.double(), t.double())
    ours = (precond.EDMVelocity(Raw())(x, t).double() - exact).abs().max()
    direct = (direct_velocity(Raw(), x, t, 0.5).double() - exact).abs().max()
    assert float(ours) < 1e-5
    assert float(direct) > 1e-3


def test_the_ends_are_regular():
    x = torch.randn(2, 1, 4, 4)
    field = precond.EDMVelocity(Raw())
    at_1 = x - 0.5 * Raw()(x, precond.c_noise(torch.ones(2)))
    at_0 = -x - Raw()(x / 0.5, precond.c_noise(torch.zeros(2)))
    torch.testing.assert_close(field(x, torch.ones(2)), at_1)
    torch.testing.assert_close(field(x, torch.zeros(2)), at_0)
