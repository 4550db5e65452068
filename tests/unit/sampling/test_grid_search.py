"""BOSS: costs against their definition and closed forms, grids against all grids there are."""

import itertools

import pytest
import torch

from rfpp_core.sampling import grid_search, grids
from rfpp_core.sampling.solvers import solve, trajectory
from tests.unit.sampling.test_solvers import mixture, ring

M = 12
GRID = grids.uniform(M)
UPPER = [(i, j) for i in range(M) for j in range(i + 1, M + 1)]


def costs_of(field, x, grid=GRID):
    return grid_search.costs(grid_search.gram(field, x, grid) / len(x), grid)


def noise(n=40, d=3):
    return torch.randn(n, d, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def eights():
    return mixture(torch.cat((ring(8, 2.0), torch.zeros(8, 1)), 1).double(), 0.15)


def random_matrix():
    given = torch.rand(M + 1, M + 1, dtype=torch.float64)
    return given.masked_fill(torch.ones_like(given).tril().bool(), torch.inf)


def test_a_coarse_step_costs_its_distance_from_the_fine_path():
    """Against the definition, from the states themselves."""
    field, x = eights(), noise()
    found = costs_of(field, x)
    states = list(trajectory(field, x, GRID, "euler", "full"))
    for i, j in UPPER:
        v = field(states[i], GRID[i].expand(len(x)))
        jump = states[j] - states[i] - (GRID[j] - GRID[i]) * v
        assert float(found[i, j]) == pytest.approx(float(jump.square().mean()), abs=1e-13)
    assert float(found[torch.arange(M), torch.arange(1, M + 1)].max()) < 1e-12
    assert torch.isinf(found.tril()[torch.ones_like(found).tril().bool()]).all()


def test_float32_paths_give_the_same_costs():
    field, x = eights(), noise()
    exact, found = costs_of(field, x), costs_of(field, x.float())
    torch.testing.assert_close(found.triu(1), exact.triu(1), rtol=1e-3, atol=1e-9)
    assert float(found[torch.arange(M), torch.arange(1, M + 1)].max()) < 1e-12


def test_batches_add_up_to_the_whole():
    field, x = eights(), noise()
    parts = sum(grid_search.gram(field, part, GRID) for part in x.split(7))
    torch.testing.assert_close(parts, grid_search.gram(field, x, GRID), rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("grid", [GRID, 80 / 81 * GRID, GRID**2])
def test_constant_acceleration_costs_the_fourth_power_of_the_steps(grid):
    """v = t: a coarse step misses the sum of D_k - (its share at t_i), whatever the anchors."""
    found = costs_of(lambda x, t, y=None: t[:, None].expand_as(x), noise(), grid)
    for i, j in UPPER:
        missed = sum(float((grid[k + 1] - grid[k]) * (grid[k] - grid[i])) for k in range(i, j))
        assert float(found[i, j]) == pytest.approx(missed**2, abs=1e-12)


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 6, 12])
def test_where_acceleration_is_constant_the_uniform_grid_is_the_best(steps):
    matrix = costs_of(lambda x, t, y=None: t[:, None].expand_as(x), noise())
    found = grid_search.cheapest(matrix, M)[steps - 1]
    assert found.anchors == tuple(range(0, M + 1, M // steps))
    size = M // steps
    closed = steps * (size * (size - 1) / 2 / M**2) ** 2
    assert found.cost == pytest.approx(closed, abs=1e-13)
    even = grid_search.uniform(matrix, steps)
    assert even.anchors == found.anchors
    assert even.cost == pytest.approx(found.cost, abs=1e-15)


def test_straight_paths_cost_nothing():
    x = noise()
    matrix = costs_of(lambda state, t, y=None: torch.full_like(state, 1.7), x)
    assert float(matrix.triu(1).max()) < 1e-13


def test_a_path_that_bends_late_has_short_steps_late():
    matrix = costs_of(lambda x, t, y=None: (t[:, None] < 0.26) * t[:, None].expand_as(x), noise())
    steps = torch.tensor(grid_search.cheapest(matrix, 4)[3].anchors).diff()
    assert steps[0] == steps.max() > 2 * steps[-1]


def test_the_programme_by_hand():
    """Five anchors, c_ij = (j - i - 1)^2."""
    gap = torch.arange(5)[None] - torch.arange(5)[:, None]
    matrix = (gap - 1.0).square().masked_fill(gap < 1, torch.inf)
    assert [path.cost for path in grid_search.cheapest(matrix, 4)] == [9, 2, 1, 0]


def test_the_programme_finds_the_best_of_all_grids():
    matrix = random_matrix()
    found = grid_search.cheapest(matrix, M)
    for steps, path in enumerate(found, 1):
        every = [(0, *inner, M) for inner in itertools.combinations(range(1, M), steps - 1)]
        best = min(every, key=lambda anchors: grid_search.cost(matrix, anchors))
        assert path.anchors == best
        assert path.cost == pytest.approx(grid_search.cost(matrix, best), rel=1e-12)
        assert path.cost <= grid_search.uniform(matrix, steps).cost


def test_a_grid_is_as_long_as_asked():
    matrix = costs_of(eights(), noise())
    for steps, (anchors, _) in enumerate(grid_search.cheapest(matrix, M), 1):
        assert len(anchors) == steps + 1
        assert (anchors[0], anchors[-1]) == (0, M)
        assert all(a < b for a, b in itertools.pairwise(anchors))
    with pytest.raises(ValueError, match="1 to 12 steps"):
        grid_search.cheapest(matrix, 13)


def test_all_anchors_are_the_fine_solution():
    field, x = eights(), noise()
    matrix = costs_of(field, x)
    whole = grid_search.cheapest(matrix, M)[-1]
    assert whole.anchors == tuple(range(M + 1))
    assert whole.cost < 1e-12
    fine = solve(field, x, GRID, "euler", "full").x
    assert torch.equal(solve(field, x, GRID[list(whole.anchors)], "euler", "full").x, fine)


def test_the_cost_of_one_step_is_its_error():
    """With one step nothing is left for errors to grow in: the sum is the distance itself."""
    field, x = eights(), noise()
    one = grid_search.cheapest(costs_of(field, x), 1)[0]
    fine, coarse = (solve(field, x, grid, "euler", "full").x for grid in (GRID, GRID[[0, M]]))
    assert one.cost == pytest.approx(float((coarse - fine).square().mean()), abs=1e-12)


def test_two_steps_err_by_the_first_and_what_grows_of_it():
    """The error at the end telescopes: that of the middle, the growth of it, and the miss of the
    second step from the fine path.  The sum of costs leaves out the growth."""
    field, x, i = eights(), noise(), 5
    states = list(trajectory(field, x, GRID, "euler", "full"))
    coarse = list(trajectory(field, x, GRID[[0, i, M]], "euler", "full"))
    h = GRID[M] - GRID[i]
    at = GRID[i].expand(len(x))
    own = states[M] - states[i] - h * field(states[i], at)
    grown = h * (field(coarse[1], at) - field(states[i], at))
    torch.testing.assert_close(
        coarse[2] - states[M], coarse[1] - states[i] + grown - own, rtol=0, atol=1e-12
    )
    misses = float(own.square().mean() + (coarse[1] - states[i]).square().mean())
    assert grid_search.cost(costs_of(field, x), (0, i, M)) == pytest.approx(misses, abs=1e-12)


ENDPOINTS = {4: (0.180, 0.217), 6: (0.102, 0.152), 8: (0.074, 0.082)}


def test_the_measured_distances_on_8_gaussians():
    """Root mean square (of the sum over values) to the fine end, uniform and searched: the grid of
    lower cost ends farther away."""
    field, grid = mixture(ring(8, 2.0), 0.15), grids.uniform(100)
    x, others = noise(1000, 2), torch.randn(2000, 2, dtype=torch.float64)
    matrix = costs_of(field, x, grid)
    fine = solve(field, others, grid, "euler", "full").x
    best = grid_search.cheapest(matrix, 8)
    for steps, expected in ENDPOINTS.items():
        even, found = grid_search.uniform(matrix, steps), best[steps - 1]
        assert found.cost < even.cost
        for (anchors, _), value in zip((even, found), expected, strict=True):
            end = solve(field, others, grid[list(anchors)], "euler", "full").x
            assert float((end - fine).square().sum(1).mean().sqrt()) == pytest.approx(
                value, rel=0.1
            )
    assert 2 * grid_search.uniform(matrix, 4).cost == pytest.approx(0.0736, rel=0.12)
    assert 2 * best[3].cost == pytest.approx(0.0631, rel=0.12)
