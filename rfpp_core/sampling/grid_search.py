"""BOSS: the grid of K Euler steps that departs least from fine paths (arXiv 2312.16414).

Fine Euler paths visit the anchors ``t_0 > ... > t_M = 0``.  A coarse step from anchor i to j costs
its distance from the fine path, squared, on average over paths and over values of a sample:

    c_ij = mean ((x_j - x_i - (t_j - t_i) v_i)^2),    v_i = (x_{i+1} - x_i) / (t_{i+1} - t_i).

A grid of K steps costs the sum of its steps' c_ij, and the cheapest path of exactly K edges from
anchor 0 to M is found by dynamic programming; one matrix serves every K.  Optimal is the grid for
this sum alone: the errors of a sampler amplify and cancel on their way, which the sum leaves out.

With the increments ``D_k = x_{k+1} - x_k`` of a path, ``x_j - x_i`` is a sum of increments, so all
costs follow from the Gram matrix ``E_kl = mean(D_k D_l)``, which is a mean over paths: it is
accumulated a batch at a time, in float64.  (The paper sums over values where this takes the mean.)
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from rfpp_core.model.path import Field
from rfpp_core.sampling.solvers import trajectory


class Path(NamedTuple):
    """Anchors 0 = k_0 < k_1 < ... < k_K = M of a grid, and its cost."""

    anchors: tuple[int, ...]
    cost: float


def gram(field: Field, x: Tensor, grid: Tensor, y: Tensor | None = None) -> Tensor:
    """``sum over samples and values of D_k D_l / d``, float64 (M, M), along Euler's fine paths.

    Divided by the number of samples of all batches, it is the E of the module's docstring.

    Args:
        field: the velocity field.
        x: states at ``grid[0]``, (B, *) with d values each.
        grid: the anchors (M + 1,), decreasing to 0.
        y: labels (B,) or None.
    """
    states = (x.flatten().double() for x in trajectory(field, x, grid, "euler", "full", y))
    steps = torch.stack([b - a for a, b in pairwise(states)])
    return steps @ steps.T / x[0].numel()


def costs(e: Tensor, grid: Tensor) -> Tensor:
    """The matrix c (M + 1, M + 1) of coarse steps; infinite where j <= i, which no step is.

    Args:
        e: mean products of increments, float64 (M, M).
        grid: the anchors (M + 1,).
    """
    m = len(e)
    to = torch.zeros(m + 1, m, dtype=e.dtype)  # (x_j - x_0) D_i
    to[1:] = e.cumsum(0)
    between = torch.zeros(m + 1, m + 1, dtype=e.dtype)  # (x_i - x_0) (x_j - x_0)
    between[:, 1:] = to.cumsum(1)
    square, own = between.diagonal(), e.diagonal()
    chord = square[:m, None] + square - 2 * between[:m]  # (x_j - x_i)^2, rows i
    along = (to - to.diagonal()).T  # (x_j - x_i) D_i
    ratio = (grid[None, :] - grid[:m, None]) / grid.diff()[:, None]  # of the coarse step to D_i
    found = torch.full((m + 1, m + 1), torch.inf, dtype=e.dtype)
    found[:m] = (chord - 2 * ratio * along + ratio**2 * own[:, None]).clamp_min(0)
    return found.masked_fill(torch.ones_like(found, dtype=torch.bool).tril(), torch.inf)


def cheapest(matrix: Tensor, most: int) -> list[Path]:
    """The cheapest paths of exactly 1, 2, ..., ``most`` steps from the first anchor to the last.

    ``W(i, 1) = c_iM`` and ``W(i, k) = min_j c_ij + W(j, k - 1)``; of equal ones the first j.

    Args:
        matrix: costs (M + 1, M + 1), infinite where j <= i.
        most: number of steps, 1 to M.

    Raises:
        ValueError: if ``most`` is out of range.
    """
    last = len(matrix) - 1
    if not 1 <= most <= last:
        raise ValueError(f"paths of 1 to {last} steps lead over {last + 1} anchors; got {most}")
    rest, following = matrix[:, last], [torch.full((last + 1,), last)]
    found = [Path((0, last), float(rest[0]))]
    for _ in range(1, most):
        total = matrix + rest
        following.append(total.argmin(1))
        rest = total.gather(1, following[-1][:, None])[:, 0]
        anchors = [0]
        for step in reversed(following):
            anchors.append(int(step[anchors[-1]]))
        found.append(Path(tuple(anchors), float(rest[0])))
    return found


def uniform(matrix: Tensor, steps: int) -> Path:
    """The anchors nearest to K equal steps, with their cost."""
    last = len(matrix) - 1
    anchors = tuple(round(k * last / steps) for k in range(steps + 1))
    return Path(anchors, cost(matrix, anchors))


def cost(matrix: Tensor, anchors: Sequence[int]) -> float:
    """The sum of the costs of a grid's steps."""
    return sum(float(matrix[i, j]) for i, j in pairwise(anchors))
