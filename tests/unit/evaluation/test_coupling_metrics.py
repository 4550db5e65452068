"""Lengths of paths and distances between them, against scans and identities."""

from __future__ import annotations

import pytest
import torch

from rfpp_core.evaluation.coupling_metrics import between, least_distances
from rfpp_core.evaluation.flow_metrics import transport_cost
from rfpp_core.images.loader import Batch
from rfpp_core.training.couplings.dansm import dansm
from rfpp_core.training.couplings.ot import assignment


def paths(n=5, shape=(1, 2, 3)):
    return torch.randn(n, *shape, dtype=torch.float64), torch.randn(n, *shape, dtype=torch.float64)


def at(t, x, z):
    """Distances of each two paths at a time."""
    points = ((1 - t) * x + t * z).flatten(1)
    return (points[:, None] - points).norm(dim=2)


def test_the_least_distance_is_that_of_a_scan():
    """Of 10^5 times; pairs nearest within their paths and at an end of them."""
    x, z = paths()
    x[1] *= 0.1
    found = least_distances(x, z)
    times = torch.linspace(0, 1, 100_001, dtype=torch.float64)
    ends = set()
    for i in range(5):
        for j in range(i):
            v, u = (x[i] - x[j]).flatten(), (z[i] - z[j]).flatten()
            scan = (v + times[:, None] * (u - v)).norm(dim=1)
            assert float(found[i, j]) == pytest.approx(float(scan.min()), rel=1e-8)
            ends.add("end" if int(scan.argmin()) in (0, 100_000) else "within")
    assert ends == {"end", "within"}
    torch.testing.assert_close(found, found.T)


def test_paths_that_meet_and_paths_that_are_parallel():
    x = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 3.0]])
    z = torch.tensor([[1.0, 1.0], [0.0, 1.0], [1.0, 4.0]])  # 0 and 1 cross, 2 is parallel to 0
    found = least_distances(x, z)
    torch.testing.assert_close(found[0], torch.tensor([0.0, 0.0, 3.0], dtype=torch.float64))
    assert between(x, z).nearest == pytest.approx(float(found[2, 1]) / 3)
    assert between(x, z).mean == pytest.approx(float(found[0, 1] + found[0, 2] + found[1, 2]) / 3)


@pytest.mark.parametrize("t", [0.0, 0.3, 0.5, 1.0])
def test_shorter_paths_are_farther_apart_at_every_time(t):
    """Sum over pairs of D^2 = const(t) - t (1 - t) N sum of ||x - z||^2, over permutations."""
    x, z = paths(20)
    constants = []
    for _ in range(3):
        z = z[torch.randperm(20)]
        total = float(at(t, x, z).square().sum()) / 2
        constants.append(total + t * (1 - t) * 20 * float((x - z).square().sum()))
    assert constants[1:] == pytest.approx(constants[:1] * 2, abs=1e-8)


def test_a_swap_changes_the_length_by_minus_two_u_v():
    x, z = paths(2)
    u, v = z[0] - z[1], x[0] - x[1]
    swapped = (x - z.flip(0)).square().sum()
    assert float((x - z).square().sum() - swapped) == pytest.approx(-2 * float((u * v).sum()))
    kept, other = (least_distances(x, noise)[0, 1] for noise in (z, z.flip(0)))
    assert (kept > other) == ((u * v).sum() > 0)


def test_matching_shortens_paths_and_parts_them():
    x, z = torch.randn(64, 1, 8, 8).clamp(-1, 1), torch.randn(64, 1, 8, 8)
    greedy = z[next(dansm([Batch(x, torch.arange(64), None)], z, None))]
    best = z[assignment(x, z)]
    lengths = [transport_cost(x, noise) for noise in (z, greedy, best)]
    assert lengths == sorted(lengths, reverse=True)
    apart = [between(x, noise).mean for noise in (z, greedy, best)]
    assert apart == sorted(apart)
    assert transport_cost(x, z) == pytest.approx(float((x - z).square().mean()))
