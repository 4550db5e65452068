import pytest
import torch

from rfpp_core.config import objective
from rfpp_core.config.recipe import Loss, Recipe, Times
from rfpp_core.images.loader import Batch
from rfpp_core.rng import StepRNG
from rfpp_core.training import losses
from rfpp_core.training.couplings.independent import independent
from rfpp_core.training.couplings.paired import seeded


def normals(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_l2_and_pseudo_huber_are_their_formulas():
    v, target = normals(4, 3, 32, 32).double(), normals(4, 3, 32, 32, seed=1).double()
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


def test_the_root_of_l2_has_finite_gradients_at_no_error():
    a = normals(4, 3, 5, 5)
    b = torch.zeros_like(a).requires_grad_()
    found = objective.distance(Loss(name="l2_root"))(b, a)
    torch.testing.assert_close(found, a.flatten(1).norm(dim=1) / 75**0.5)
    losses.l2_root(b, torch.zeros_like(a)).sum().backward()
    assert torch.isfinite(b.grad).all()


def test_the_control_arm_sees_noise_at_time_1_alone():
    """With fixed times the network sees (z, t = 1) and nothing else."""
    seen = []

    def net(x, t, y=None):
        seen.append((x, t))
        return x * 0

    batch, draws = Batch(normals(8, 1, 8, 8), torch.arange(8), None), StepRNG(0, 0, 8)
    recipe = Recipe(times=Times(distribution="fixed"))
    objective.loss(recipe, seeded(7))(net, batch, 0, draws)
    z = seeded(7)(batch, draws).z
    torch.testing.assert_close(seen[0][0], z)
    assert torch.equal(seen[0][1], torch.ones(8))


def test_labels_are_dropped_at_the_given_rate():
    seen = []

    def net(x, t, y=None):
        seen.append(y)
        return x * 0

    images = torch.zeros(2000, 1, 2, 2)
    batch = Batch(images, torch.arange(2000), torch.ones(2000, dtype=torch.int64))
    recipe = Recipe(label_dropout=0.3)
    objective.loss(recipe, independent)(net, batch, 0, StepRNG(0, 0, 2000))
    assert float((seen[0] == -1).double().mean()) == pytest.approx(0.3, abs=0.04)
    assert set(seen[0].tolist()) == {-1, 1}
