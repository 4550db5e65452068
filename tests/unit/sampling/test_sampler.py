import pytest
import torch

from rfpp_core.config import build
from rfpp_core.errors import UserError
from rfpp_core.sampling.sampler import Guided, SamplerConfig
from rfpp_core.sampling.solvers import solve
from tests.helpers import randomised, tiny_arch


def test_samplers_spend_what_they_say():
    field = randomised(build.field(tiny_arch())).eval()
    for solver, nfe in (("euler", 1), ("heun", 8), ("heun", 35), ("midpoint", 18)):
        grid, last = SamplerConfig(solver, nfe).plan()
        z = torch.randn(2, 1, 8, 8)
        assert solve(field, z, grid, solver, last).nfe == nfe


def test_custom_times():
    grid, _ = SamplerConfig("euler", 2, times=(1.0, 0.8)).plan()
    assert grid.tolist() == [1, 0.8, 0]
    with pytest.raises(UserError, match="does not spend 3"):
        SamplerConfig("euler", 3, times=(1.0, 0.8)).plan()


@torch.inference_mode()
def test_guidance():
    field = randomised(build.field(tiny_arch(classes=10))).eval()
    x, t = torch.randn(4, 1, 8, 8), torch.rand(4)
    y = torch.tensor([1, 2, 3, 4])
    given, free = field(x, t, y), field(x, t, None)
    assert not torch.allclose(given, free)
    torch.testing.assert_close(Guided(field, 2.5)(x, t, y), free + 2.5 * (given - free))
    assert torch.equal(Guided(field, 1.0)(x, t, y), given)
    forwards = [SamplerConfig("euler", 4, guidance=scale).forwards for scale in (1.0, 2.5)]
    assert forwards == [4, 8]
    torch.testing.assert_close(field(x, t, torch.full((4,), -1)), free)
