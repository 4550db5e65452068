import math

import numpy as np
import pytest
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

    a, b = (distances.gaussian(x) for x in gaussians(rng))
    theirs = frechet_distance(a.mean, a.cov, b.mean, b.cov)
    assert distances.frechet(a, b) == pytest.approx(theirs, rel=1e-8)


def test_frechet_closed_form_and_singular_covariances():
    mean, cov = np.array([1.0, 2.0]), np.diag([4.0, 9.0])
    other = np.diag([1.0, 1.0])
    got = distances.frechet(distances.Gaussian(mean, cov), distances.Gaussian(mean * 0, other))
    assert got == pytest.approx(1 + 4 + (2 - 1) ** 2 + (3 - 1) ** 2)
    rank_one = np.outer(mean, mean)
    root = linalg.sqrtm(rank_one + 1e-14 * np.eye(2)).real
    expected = np.trace(rank_one + np.eye(2) - 2 * root)
    got = distances.frechet(
        distances.Gaussian(mean, rank_one), distances.Gaussian(mean, np.eye(2))
    )
    assert got == pytest.approx(expected, abs=1e-6)


def test_kid_against_clean_fid(rng):
    from cleanfid.fid import kernel_distance

    a, b = gaussians(rng, 300, 5)
    assert distances.kid(a, b) == pytest.approx(kernel_distance(a, b, 1, 300), rel=1e-8)


def test_kid_is_unbiased_for_equal_distributions(rng):
    values = [distances.kid(*rng.normal(size=(2, 100, 4))) for _ in range(200)]
    assert abs(np.mean(values)) < 3 * np.std(values) / math.sqrt(200)


def test_collapse_keeps_precision_and_loses_recall(rng):
    real = rng.normal(size=(800, 4))
    collapsed = real[0] + 0.01 * rng.normal(size=(800, 4))
    precision, recall = distances.precision_recall(real, collapsed)
    assert precision > 0.95
    assert recall < 0.05
    far = real + 100
    assert distances.precision_recall(real, far) == (0.0, 0.0)
    precision, recall = distances.precision_recall(real, rng.normal(size=(800, 4)))
    assert min(precision, recall) > 0.6


def test_precision_against_scikit_learn(rng):
    from sklearn.neighbors import NearestNeighbors

    real, fake = rng.normal(size=(200, 3)), 1.5 * rng.normal(size=(150, 3))
    radius = NearestNeighbors(n_neighbors=4).fit(real).kneighbors(real)[0][:, 3]
    gaps = np.linalg.norm(fake[:, None] - real[None], axis=2)
    precision, _ = distances.precision_recall(real, fake, 3)
    assert precision == pytest.approx((gaps <= radius).any(1).mean())


def test_standardizer(rng):
    x = rng.normal(3, 2, size=(500, 3))
    x[:, 2] = 7
    scaled = distances.standardizer(x)(x)
    np.testing.assert_allclose(scaled.mean(0), 0, atol=1e-12)
    np.testing.assert_allclose(scaled.std(0), [1, 1, 0], atol=1e-12)
