import math

import numpy as np
import pytest
import torch
from scipy import stats

from rfpp_core.training import losses, times

U = (torch.arange(200_000, dtype=torch.float64) + 0.5) / 200_000


def test_u_shape_has_the_density_of_the_method():
    t = times.u_shape(U, 4.0).numpy()

    def cdf(t):
        return 0.5 + np.sinh(4 * (t - 0.5)) / (2 * math.sinh(2))

    assert stats.kstest(t, cdf).statistic < 1e-4
    density = np.histogram(t, bins=1000, range=(0, 1), density=True)[0]
    assert density[0] == pytest.approx(2.0746, rel=0.01)  # a cosh(a / 2) / (2 sinh(a / 2))
    assert density[500] == pytest.approx(0.5514, rel=0.01)
    assert float(((t < 0.1) | (t > 0.9)).mean()) == pytest.approx(0.345, abs=1e-3)


def test_other_laws():
    t = times.logit_normal(U, 0.3, 1.2).numpy()
    assert stats.kstest(np.log(t / (1 - t)), stats.norm(0.3, 1.2).cdf).statistic < 1e-4
    assert torch.equal(times.uniform(U), U)
    assert torch.equal(times.fixed(U, 1.0), torch.ones_like(U))
    inside = times.inside(torch.tensor([0.0, 1.0], dtype=torch.float64))
    assert inside.tolist() == pytest.approx([1e-5, 1 - 1e-5], abs=1e-15)


def test_u_shape_tends_to_uniform():
    torch.testing.assert_close(times.u_shape(U, 1e-4), U, rtol=0, atol=1e-8)


def test_losses():
    v, target = torch.randn(4, 3, 32, 32).double(), torch.randn(4, 3, 32, 32).double()
    d = 3072
    square = ((v - target) ** 2).sum((1, 2, 3))
    torch.testing.assert_close(losses.l2(v, target), square / d)
    c = 1.65888  # the published constant at 32x32
    expected = (torch.sqrt(square + c**2) - c) / d
    torch.testing.assert_close(losses.pseudo_huber(v, target), expected)


def test_pseudo_huber_example_of_the_reference():
    """Per-value rms error 0.1 at d = 3072 gives about 0.0013."""
    zero = torch.zeros(1, 3, 32, 32)
    assert float(losses.pseudo_huber(zero + 0.1, zero)) == pytest.approx(0.00134, abs=5e-5)


def test_pseudo_huber_has_finite_gradients_at_no_error():
    v = torch.zeros(1, 1, 8, 8, requires_grad=True)
    losses.pseudo_huber(v, torch.zeros(1, 1, 8, 8)).sum().backward()
    assert torch.equal(v.grad, torch.zeros_like(v))


def test_stored_and_mixed_couplings():
    """A share p of the samples are pairs of a store, image, noise and label together."""
    from rfpp_core import rng
    from rfpp_core.images.loader import Batch
    from rfpp_core.images.pixels import to_float
    from rfpp_core.rng import StepRNG
    from rfpp_core.training import couplings

    noises = torch.randn(50, 1, 4, 4)
    images = torch.arange(30, dtype=torch.uint8)[:, None, None, None].expand(30, 1, 4, 4)
    at = torch.randperm(50)[:40]
    batch = Batch(torch.full((40, 1, 4, 4), 9.0), at, torch.full((40,), 7))
    real = couplings.stored(noises)
    x, z, y = real(batch, StepRNG(0, 3, 40))
    assert torch.equal(z, noises[at])
    assert couplings.mixed(real, images, None, 0.0, real) is real
    pair = couplings.mixed(real, images, torch.arange(30), 0.3, couplings.seeded(5))
    counts = []
    for step in range(60):
        x, z, y = pair(batch, StepRNG(0, step, 40))
        made = x[:, 0, 0, 0] != 9
        counts.append(int(made.sum()))
        assert torch.equal(z[~made], noises[at][~made])
        assert (y[~made] == 7).all()
        assert torch.equal(x[made], to_float(images[y[made]]))
        assert torch.equal(z[made], rng.normal(5, y[made], (1, 4, 4)))
    share = sum(counts) / (60 * 40)
    assert abs(share - 0.3) < 4 * (0.21 / 2400) ** 0.5


def test_antithetic_times_come_with_their_mirror_images():
    """Uniform still; about half of a batch has 1 - u in it; the same whoever draws which part."""
    from rfpp_core.rng import StepRNG

    batch = 2000
    u = StepRNG(3, 5, batch).antithetic("t")
    assert u.min() > 0
    assert u.max() < 1
    assert float(u.mean()) == pytest.approx(0.5, abs=0.01)
    assert float(u.var()) == pytest.approx(1 / 12, abs=0.004)
    mirrored = torch.isin((1 - u).round(decimals=9), u.round(decimals=9))
    assert float(mirrored.double().mean()) == pytest.approx(0.5, abs=0.05)
    parts = [StepRNG(3, 5, batch, at, at + 500).antithetic("t") for at in range(0, batch, 500)]
    assert torch.equal(torch.cat(parts), u)
    assert not torch.equal(StepRNG(3, 6, batch).antithetic("t"), u)
    plain = StepRNG(3, 5, batch).uniform("t")
    assert not torch.isin((1 - plain).round(decimals=9), plain.round(decimals=9)).any()


def test_the_root_of_l2():
    from rfpp_core.config import build
    from rfpp_core.config.params import Loss
    from rfpp_core.training import losses

    a = torch.randn(4, 3, 5, 5, generator=torch.Generator().manual_seed(0))
    b = torch.zeros_like(a).requires_grad_()
    found = build.distance(Loss(name="l2_root"))(b, a)
    torch.testing.assert_close(found, a.flatten(1).norm(dim=1) / 75**0.5)
    losses.l2_root(b, torch.zeros_like(a)).sum().backward()
    assert torch.isfinite(b.grad).all()
