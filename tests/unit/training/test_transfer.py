"""The coupling of two sets of images: independent uniform draws, a function of seed and step."""

import torch

from rfpp_core.images.loader import Batch
from rfpp_core.images.pixels import to_float
from rfpp_core.rng import StepRNG
from rfpp_core.training.couplings.transfer import transfer

N = 5


def source() -> torch.Tensor:
    """Image i is i everywhere."""
    return torch.arange(N, dtype=torch.uint8).reshape(N, 1, 1, 1).expand(N, 1, 2, 2).contiguous()


def batch(size: int) -> Batch:
    return Batch(torch.linspace(-1, 1, size)[:, None, None, None].expand(-1, 1, 2, 2),
                 torch.arange(size), None)  # fmt: skip


def drawn(size: int, step: int = 0, seed: int = 0, **part) -> torch.Tensor:
    """Which source image each sample of a batch gets."""
    draws = StepRNG(seed, step, size, **part)
    given = batch(size)
    x, z, y = transfer(source())(given._replace(x=given.x[draws.start : draws.stop]), draws)
    assert y is None
    assert torch.equal(x, given.x[draws.start : draws.stop])
    return ((z + 1) * 127.5).round().long()[:, 0, 0, 0]


def test_noise_is_an_image_of_the_source_as_it_is():
    _, z, _ = transfer(source())(batch(64), StepRNG(0, 0, 64))
    images = to_float(source())
    assert all(any(torch.equal(one, image) for image in images) for one in z)


def test_each_image_is_drawn_as_often_as_another():
    """Counts of 6,000 uniform draws from five images: chi-squared with 4 degrees of freedom."""
    counts = sum(torch.bincount(drawn(600, step), minlength=N) for step in range(10))
    expected = 6000 / N
    assert float(((counts - expected) ** 2 / expected).sum()) < 18.5  # its 0.1 % point


def test_draws_do_not_follow_the_batch():
    """They are uncorrelated with the images' positions in it."""
    many = torch.stack([drawn(100, step) for step in range(60)]).double()
    position = torch.arange(100).double().expand_as(many)
    correlation = torch.corrcoef(torch.stack((many.flatten(), position.flatten())))[0, 1]
    assert abs(float(correlation)) < 4 / 6000**0.5


def test_a_batch_is_a_function_of_seed_and_step():
    assert torch.equal(drawn(64, 3), drawn(64, 3))
    assert not torch.equal(drawn(64, 3), drawn(64, 4))
    assert not torch.equal(drawn(64, 3), drawn(64, 3, seed=1))


def test_processes_draw_their_parts_of_the_same_batch():
    parts = [drawn(64, 3, start=first, stop=first + 32) for first in (0, 32)]
    assert torch.equal(torch.cat(parts), drawn(64, 3))
