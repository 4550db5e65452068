"""A trained flow: images of noise, noise of images."""

import pytest
import torch

from rfpp_core import SamplerConfig, load_flow, rng
from rfpp_core.errors import UserError
from rfpp_core.sampling.flow import slerp
from tests.helpers import save_tiny


@pytest.fixture(scope="module")
def flow(tmp_path_factory):
    return load_flow(save_tiny(tmp_path_factory.mktemp("m") / "m.safetensors"))


@pytest.fixture(scope="module")
def conditional(tmp_path_factory):
    return load_flow(save_tiny(tmp_path_factory.mktemp("m") / "m.safetensors", classes=10))


def test_a_seed_is_a_set_of_images(flow):
    a = flow.sample(300, nfe=1, seed=4)
    assert torch.equal(flow.sample(300, nfe=1, seed=4), a)
    assert not torch.equal(flow.sample(300, nfe=1, seed=5), a)


def test_threads_do_not_matter(flow, monkeypatch):
    images = []
    for threads in ("1", "2", "3"):
        monkeypatch.setenv("RFPP_THREADS", threads)
        images.append(flow.sample(600, nfe=3, seed=4))
    assert torch.equal(images[0], images[1])
    assert torch.equal(images[0], images[2])


def test_one_call_is_x_hat_at_pure_noise(flow):
    z = rng.normal(rng.subkey(4, "sample"), torch.arange(5), flow.shape)
    with torch.inference_mode():
        expected = z - flow.field(z, torch.ones(5))
    torch.testing.assert_close(flow.sample(5, nfe=1, seed=4), expected)


def test_labels(conditional):
    three = conditional.sample(6, seed=1, labels=[3])
    assert torch.equal(conditional.sample(6, seed=1, labels=[3] * 6), three)
    assert not torch.equal(conditional.sample(6, seed=1, labels=[4]), three)
    assert conditional.sample(6).shape == (6, 1, 8, 8)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"n": 0}, "n and nfe must be at least 1"),
        ({"n": 4, "nfe": 0}, "n and nfe must be at least 1"),
        ({"n": 4, "labels": [10]}, "out of range 0..9"),
        ({"n": 4, "labels": [-1]}, "out of range 0..9"),
        ({"n": 4, "labels": [1, 2]}, "give 1 label or 4"),
    ],
)
def test_wrong_arguments_are_refused(conditional, kwargs, message):
    with pytest.raises(UserError, match=message):
        conditional.sample(**kwargs)


def test_labels_for_an_unconditional_flow_are_refused(flow):
    with pytest.raises(UserError, match="without labels"):
        flow.sample(2, labels=[1])


def test_inversion_and_decoding_are_inverse(flow):
    x = torch.tanh(flow.sample(5, nfe=4, seed=2))
    sampler = SamplerConfig("midpoint", 64)
    z = flow.invert(x, sampler)
    torch.testing.assert_close(flow.decode(z, sampler), x, rtol=0, atol=1e-3)
    assert not torch.allclose(z, x)
    assert torch.equal(flow.invert(x, sampler), z)  # nothing random
    alone = flow.invert(x[2:3], sampler)
    torch.testing.assert_close(alone, z[2:3], rtol=1e-4, atol=1e-5)


def test_decoding_the_noise_of_a_seed_is_sampling_it(flow):
    z = rng.normal(rng.subkey(4, "sample"), torch.arange(5), flow.shape)
    sampler = SamplerConfig("euler", 3)
    torch.testing.assert_close(flow.decode(z, sampler), flow.sample(5, seed=4, sampler=sampler))


def test_rk45_is_the_ode_and_its_own_inverse(flow):
    sampler = SamplerConfig("rk45")
    fine = flow.sample(6, seed=3, sampler=SamplerConfig("midpoint", 400))
    torch.testing.assert_close(flow.sample(6, seed=3, sampler=sampler), fine, rtol=0, atol=1e-3)
    back = flow.decode(flow.invert(fine, sampler), sampler)
    torch.testing.assert_close(back, fine, rtol=0, atol=3e-3)


def test_inversion_needs_a_label_and_an_inverse(flow, conditional):
    x = torch.zeros(2, 1, 8, 8)
    with pytest.raises(UserError, match=r"give a label in 0..9"):
        conditional.invert(x, SamplerConfig("euler", 2))
    assert conditional.invert(x, SamplerConfig("euler", 2), [3]).shape == x.shape
    with pytest.raises(UserError, match="has no inverse"):
        flow.invert(x, SamplerConfig("anchored", 2))


def test_slerp():
    a, b = torch.tensor([[[3.0, 0.0]]]), torch.tensor([[[0.0, 3.0]]])
    path = slerp(a, b, torch.tensor([0.0, 0.5, 1.0]))
    root = 3 / 2**0.5
    torch.testing.assert_close(path.reshape(3, 2), torch.tensor([[3, 0], [root, root], [0, 3]]))
    for same in (a, 2 * a, -a, torch.zeros_like(a)):
        assert torch.isfinite(slerp(a, same, torch.linspace(0, 1, 5))).all()
    torch.testing.assert_close(slerp(a, a, torch.tensor([0.3])), a[None])
    torch.testing.assert_close(slerp(a, 2 * a, torch.tensor([0.5])), 1.5 * a[None])
