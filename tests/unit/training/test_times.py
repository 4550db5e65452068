import math

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from scipy import stats

from rfpp_core.config import objective
from rfpp_core.config.recipe import Recipe, Times
from rfpp_core.rng import StepRNG
from rfpp_core.training import times

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


def test_u_shape_tends_to_uniform():
    torch.testing.assert_close(times.u_shape(U, 1e-4), U, rtol=0, atol=1e-8)


def test_logit_normal_has_a_normal_logit():
    t = times.logit_normal(U, 0.3, 1.2).numpy()
    assert stats.kstest(np.log(t / (1 - t)), stats.norm(0.3, 1.2).cdf).statistic < 1e-4


def test_uniform_and_fixed_times():
    assert torch.equal(times.uniform(U), U)
    assert torch.equal(times.fixed(U, 1.0), torch.ones_like(U))


def test_a_share_of_the_times_is_one_exactly_and_the_rest_keeps_its_distribution():
    t = times.with_atom(U, times.u_shape, 0.9)
    assert float((t == 1).double().mean()) == pytest.approx(0.9, abs=1e-5)
    rest = t[t < 1]
    reference = times.u_shape((torch.arange(len(rest), dtype=torch.float64) + 0.5) / len(rest))
    torch.testing.assert_close(rest.sort().values, reference, rtol=0, atol=1e-4)
    assert torch.equal(times.with_atom(U, times.u_shape, 1.0), torch.ones_like(U))


@pytest.mark.parametrize("distribution", ["u_shape", "uniform", "logit_normal", "fixed"])
def test_every_distribution_takes_times_of_one(distribution):
    params = Times(distribution=distribution, t=0.5, at_one=0.25)
    t = objective.time_distribution(params)(U)
    assert float((t == 1).double().mean()) == pytest.approx(0.25, abs=1e-5)
    plain = objective.time_distribution(Times(distribution=distribution, t=0.5))(U)
    assert float(t[t < 1].mean()) == pytest.approx(float(plain.mean()), abs=1e-4)
    assert t.min() > 0
    assert t.isfinite().all()


def test_mirrored_times_have_no_share_at_one():
    with pytest.raises(ValidationError, match=r"times.at_one must be 0"):
        Recipe.model_validate({"times": {"antithetic": True, "at_one": 0.5}})


def test_random_times_stay_inside_the_interval():
    inside = times.inside(torch.tensor([0.0, 1.0], dtype=torch.float64))
    assert inside.tolist() == pytest.approx([1e-5, 1 - 1e-5], abs=1e-15)


def test_antithetic_times_come_with_their_mirror_images():
    """Still uniform; about half of a batch has 1 - u in it; and parts of it can be drawn apart."""
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
