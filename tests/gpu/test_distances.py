"""Metrics of features on a device are those of the CPU, in float64."""

import pytest
import torch

from rfpp_core.evaluation.reference import compare, real_of


def test_metrics_on_a_device(device):
    draws = torch.Generator().manual_seed(0)
    train, held_out, fake = (torch.randn(600, 24, generator=draws) for _ in range(3))
    here = compare(real_of(train, held_out), fake, 3)
    there = compare(real_of(train.to(device), held_out.to(device)), fake.to(device), 3)
    assert there == pytest.approx(here, rel=1e-9, abs=1e-12)
