"""The small U-Net; what every network has in common: weights are a function of the seed."""

import pytest
import torch

from rfpp_core.config import build
from rfpp_core.errors import UserError
from tests.helpers import randomised, tiny_arch


@pytest.mark.parametrize("precond", ["velocity", "edm"])
@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 16, 16), (3, 32, 32)])
def test_networks_of_several_sizes(precond, shape):
    arch = {
        **tiny_arch(0, precond),
        "shape": list(shape),
        "attention": 1,
        "multipliers": [1, 2, 2],
    }
    field = randomised(build.field(arch)).eval()
    x, t = torch.randn(3, *shape), torch.tensor([0.0, 0.5, 1.0])
    v = field(x, t)
    assert v.shape == x.shape
    assert torch.isfinite(v).all()
    torch.testing.assert_close(field(x[1:2], t[1:2]), v[1:2], rtol=1e-4, atol=1e-5)


def test_an_image_that_does_not_halve_is_refused():
    arch = {**tiny_arch(), "shape": [1, 9, 9]}
    with pytest.raises(UserError, match="a multiple of 2; they are 9x9"):
        build.field(arch)


def test_weights_depend_on_the_seed_alone():
    torch.manual_seed(1)
    a = build.field(tiny_arch(), seed=3).state_dict()
    torch.manual_seed(2)
    b = build.field(tiny_arch(), seed=3).state_dict()
    assert all(torch.equal(a[k], b[k]) for k in a)
    assert not torch.equal(
        build.field(tiny_arch(), seed=4).state_dict()["model.stem.weight"], a["model.stem.weight"]
    )
