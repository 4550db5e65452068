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
