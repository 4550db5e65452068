import numpy as np
import pytest

from rfpp_core.sampling import grids


def test_karras_grid_is_edms():
    n = 18
    i = np.arange(n)
    sigma = (80 ** (1 / 7) + i / (n - 1) * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
    grid = grids.karras(n).numpy()
    np.testing.assert_allclose(grid[1:-1], (sigma / (1 + sigma))[1:], rtol=1e-12)
    assert grid[0] == 1
    assert grid[-1] == 0
    assert (np.diff(grid) < 0).all()


def test_grids():
    assert grids.uniform(4).tolist() == [1, 0.75, 0.5, 0.25, 0]
    assert grids.custom([1, 0.8]).tolist() == [1, 0.8, 0]
    for wrong in ([], [0.5, 0.8], [1.2, 0.4], [0.5, 0.5]):
        with pytest.raises(ValueError, match="strictly"):
            grids.custom(wrong)
    with pytest.raises(ValueError, match="at least 1"):
        grids.uniform(0)
