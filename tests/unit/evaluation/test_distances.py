import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from scipy import linalg

from rfpp_core.evaluation import distances


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def gaussians(rng, n=4000, d=6):
    mix = rng.normal(size=(d, d))
    return rng.normal(size=(n, d)), rng.normal(size=(n, d)) @ mix + 0.3


def test_frechet_against_clean_fid(rng):
    from cleanfid.fid import frechet_distance

    a, b = gaussians(rng)
    theirs = frechet_distance(a.mean(0), np.cov(a.T), b.mean(0), np.cov(b.T))
    ours = distances.frechet(*(distances.gaussian(torch.from_numpy(x)) for x in (a, b)))
    assert ours == pytest.approx(theirs, rel=1e-8)


@pytest.mark.parametrize("n", [2, 256, 700])
def test_moments_against_numpy(rng, n):
    """Of float32 features far from 0, in blocks."""
    x = rng.normal(1000, 1, size=(n, 5)).astype(np.float32)
    found = distances.gaussian(torch.from_numpy(x))
    np.testing.assert_allclose(found.mean, x.mean(0, dtype=np.float64), rtol=1e-12)
    np.testing.assert_allclose(found.cov, np.cov(x.astype(np.float64).T), rtol=1e-8, atol=1e-12)


def test_frechet_closed_form_and_singular_covariances():
    mean = np.array([1.0, 2.0])

    def of(*moments):
        return distances.Gaussian(*(torch.from_numpy(x) for x in moments))

    got = distances.frechet(of(mean, np.diag([4.0, 9.0])), of(mean * 0, np.eye(2)))
    assert got == pytest.approx(1 + 4 + (2 - 1) ** 2 + (3 - 1) ** 2)
    rank_one = np.outer(mean, mean)
    root = linalg.sqrtm(rank_one + 1e-14 * np.eye(2)).real
    expected = np.trace(rank_one + np.eye(2) - 2 * root)
    got = distances.frechet(of(mean, rank_one), of(mean, np.eye(2)))
    assert got == pytest.approx(expected, abs=1e-6)


def test_kid_against_clean_fid(rng):
    from cleanfid.fid import kernel_distance

    a, b = gaussians(rng, 300, 5)
    ours = distances.kid(torch.from_numpy(a), torch.from_numpy(b))
    assert ours == pytest.approx(kernel_distance(a, b, 1, 300), rel=1e-8)


def test_kid_is_unbiased_for_equal_distributions(rng):
    values = [distances.kid(*torch.from_numpy(rng.normal(size=(2, 100, 4)))) for _ in range(200)]
    assert abs(np.mean(values)) < 3 * np.std(values) / math.sqrt(200)


def test_collapse_keeps_precision_and_loses_recall(rng):
    real, noise, other = torch.from_numpy(rng.normal(size=(3, 800, 4)))
    collapsed = real[0] + 0.01 * noise
    precision, recall = distances.precision_recall(real, collapsed)
    assert precision > 0.95
    assert recall < 0.05
    far = real + 100
    assert distances.precision_recall(real, far) == (0.0, 0.0)
    precision, recall = distances.precision_recall(real, other)
    assert min(precision, recall) > 0.6


def test_precision_against_scikit_learn(rng):
    from sklearn.neighbors import NearestNeighbors

    real, fake = rng.normal(size=(200, 3)), 1.5 * rng.normal(size=(150, 3))
    radius = NearestNeighbors(n_neighbors=4).fit(real).kneighbors(real)[0][:, 3]
    gaps = np.linalg.norm(fake[:, None] - real[None], axis=2)
    precision, _ = distances.precision_recall(torch.from_numpy(real), torch.from_numpy(fake), 3)
    assert precision == pytest.approx((gaps <= radius).any(1).mean())


def test_standardizer(rng):
    x = rng.normal(3, 2, size=(500, 3))
    x[:, 2] = 7
    features = torch.from_numpy(x)
    scaled = distances.standardizer(features)(features).numpy()
    np.testing.assert_allclose(scaled.mean(0), 0, atol=1e-12)
    np.testing.assert_allclose(scaled.std(0), [1, 1, 0], atol=1e-12)


PEAK = """
import resource, torch
from rfpp_core.evaluation import reference
from rfpp_core.evaluation.reference import compare, real_of

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

def features():
    return torch.randn(n, 64, generator=torch.Generator().manual_seed(0))

n, reference.MOST = 300, 4000
compare(real_of(features(), features()), features(), 3)
n = 50_000
real, fake = (features(), features()), features()
before = peak()
compare(real_of(*real), fake, 3)
print(peak() - before)
"""


def test_metrics_of_many_images_need_little_memory():
    """Of 50,000, and 4,000 for KID: no copy of the features (26 MB), and no matrix of all pairs
    (128 MB)."""
    done = subprocess.run([sys.executable, "-c", PEAK], check=True, capture_output=True, text=True)
    assert int(done.stdout) < 0.06e9
