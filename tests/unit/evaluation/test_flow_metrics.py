import math

import numpy as np
import pytest
import torch

from rfpp_core.evaluation import flow_metrics


def test_straightness():
    z = torch.randn(200, 3, dtype=torch.float64)
    straight = flow_metrics.straightness(lambda x, t, y=None: torch.ones_like(x) * 2, z)
    assert straight == pytest.approx(0, abs=1e-20)
    # v = 2 t: chord 1 (its Riemann sum 1.01), mean square of (2 t - chord) tends to 1 / 3
    curved = flow_metrics.straightness(lambda x, t, y=None: 2 * t[:, None].expand_as(x), z)
    t = 1 - np.arange(100) / 100
    assert curved == pytest.approx(np.mean((2 * t - np.mean(2 * t)) ** 2), rel=1e-9)
    assert curved == pytest.approx(1 / 3, rel=0.01)


def test_round_trip_and_statistics_of_inverted_noise():
    d, x = 3 * 8 * 8, torch.rand(4000, 3, 8, 8)
    z = torch.randn(4000, 3, 8, 8, dtype=torch.float64)
    prior = flow_metrics.inversion(x, z, x + 0.5)
    assert prior.round_trip == pytest.approx(0.25)
    assert prior.norm2 == pytest.approx(1, abs=5 * math.sqrt(2 / d / 4000))
    assert prior.norm2_std == pytest.approx(math.sqrt(2 / d), rel=0.05)
    assert abs(prior.correlation) < 0.01
    smooth = (z + z.roll(1, -1)) / math.sqrt(2)  # 1/2 between neighbours across, 0 down
    assert flow_metrics.inversion(x, smooth, x).correlation == pytest.approx(0.25, abs=0.02)


def test_a_straight_flow_has_constant_noise_and_no_gap_whatever_its_first_time():
    x, z = torch.randn(150, 3).double(), torch.randn(150, 3).double()
    for start in (1.0, 0.96):  # from start z, on the line to x
        found = flow_metrics.paths(
            lambda s, t, y=None: z[: len(s)] - x[: len(s)], z[:90], None, start
        )
        assert max(found) < 1e-20


def test_the_properties_of_paths_are_their_definitions():
    """Of a field that is v = a x_t, against a loop over samples."""
    z, a = torch.randn(7, 2).double(), 0.8

    def field(x, t, y=None):
        return a * x

    start = 0.9
    found = flow_metrics.paths(field, z, None, start)
    assert found.straightness == flow_metrics.straightness(field, z, None, start)
    h, variances, gaps = start / 100, [], []
    for row in (start * z).numpy():
        factors = (1 - h * a) ** np.arange(101)  # of each state
        t = start - h * np.arange(100)
        noise = row * (factors[:-1] * (1 + (1 - t) * a))[:, None]
        variances.append(noise.var(axis=0).mean())
        gaps.append(((row * (1 - start * a) - row * factors[-1]) ** 2).mean())
    assert found.eps_constancy == pytest.approx(np.mean(variances), rel=1e-9)
    assert found.step_gap == pytest.approx(np.mean(gaps), rel=1e-9)


def test_the_parts_of_a_batch_are_averaged():
    z = torch.randn(250, 2).double()
    whole = flow_metrics.paths(lambda x, t, y=None: torch.sin(x), z)
    parts = [flow_metrics.paths(lambda x, t, y=None: torch.sin(x), part) for part in z.split(125)]
    np.testing.assert_allclose(whole, np.mean(parts, axis=0), rtol=1e-12)
