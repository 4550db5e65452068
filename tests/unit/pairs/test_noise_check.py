import numpy as np
import pytest

from rfpp_core.pairs.noise_check import NoiseCheck


def normals(seed=0, n=500):
    return np.random.default_rng(seed).normal(size=(n, 1, 8, 8)).astype(np.float32)


def checked(*parts):
    check = NoiseCheck()
    for part in parts:
        check.add(part)
    return check


def test_standard_normal_noise_passes_whatever_its_parts():
    z = normals()
    whole, parts = checked(z), checked(z[:100], z[100:])
    assert whole.normal
    assert parts.normal
    assert parts.repeats == whole.repeats == 0
    assert parts.mean == pytest.approx(float(z.mean()), abs=1e-7)
    assert parts.std == pytest.approx(float(np.sqrt(np.square(z.astype(float)).mean())))


@pytest.mark.parametrize("change", [lambda z: z + 0.1, lambda z: 1.1 * z, lambda z: 0.9 * z])
def test_another_mean_or_standard_deviation_is_found(change):
    assert not checked(change(normals())).normal


def test_a_sample_that_is_there_twice_is_found():
    z = normals()
    check = checked(z)
    assert not check.add(normals(seed=1))
    assert check.add(z[3:4])
    assert check.repeats == 1
    assert checked(np.concatenate((z, z[:2]))).repeats == 2
