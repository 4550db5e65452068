"""Solvers of dx/dt = v(x, t) along a grid, in either direction.

A *step* maps ``(field, x, t, s, y)`` to the state at the next time s.  All two-stage rules of
second order are one family (Butcher's theta-family): with h = s - t and v_d the velocity after an
Euler step of length delta h,

    x_s = x + h ((1 - 1/(2 delta)) v + v_d / (2 delta)),

Heun's trapezoid at delta = 1, the midpoint rule at 1/2, Ralston's at 2/3.

RF-Solver (arXiv 2411.04746) is ``x + h v + h^2 v' / 2``, with v' by a forward difference over a
time d, ``v' = (v(x + d v, t + d) - v) / d``: the family above with delta = d / h.  As released,
with d = h / 2, it is the midpoint rule; a fixed d, the paper's 0.01, is another member of the
family at every length of step.  FireFlow (arXiv 2412.07517) is the midpoint rule whose half step
takes the velocity at the midpoint of the step before.

The anchored update of RF++ (arXiv 2405.20320, app. D) goes back to the initial noise z:
``x_s = (1 - s) x_hat + s z``.

EDM integrates over sigma = t / (1 - t) the state X = x / (1 - t) (arXiv 2206.00364, alg. 1): its
``dX/dsigma = (X - D) / sigma`` is z_hat, so its Heun step needs no other field than v.

A flow map (``model.flow_map``) gives the average velocity u of a step: ``x_s = x - (t - s) u``.

The cost is the number of network evaluations (NFE), counted by a wrapper of the field.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from rfpp_core.choices import Choices
from rfpp_core.errors import UserError
from rfpp_core.model.flow_map import interval, lacks_end_time
from rfpp_core.model.path import Field, interpolate, x_hat, z_hat
from rfpp_core.sampling.solver_table import Last, properties_of

Step = Callable[[Field, Tensor, Tensor, Tensor, "Tensor | None"], Tensor]


NO_END_TIME = (
    "flow-map takes the steps of a flow map, which is trained with objective: flow_map; this flow "
    "has no end time: take euler, midpoint or heun"
)


class Solution(NamedTuple):
    """The final state (B, *) and the network evaluations spent per sample."""

    x: Tensor
    nfe: int


class CallCounter:
    """A field that counts its calls: one is a network evaluation of each sample."""

    def __init__(self, field: Field) -> None:
        self.field, self.calls = field, 0

    def __call__(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        self.calls += 1
        return self.field(x, t, y)


def euler(field: Field, x: Tensor, t: Tensor, s: Tensor, y: Tensor | None) -> Tensor:
    """``x + (s - t) v``: order 1, 1 evaluation."""
    return x + (s - t).to(x) * field(x, _batch(t, x), y)


def rk2(delta: float = 1.0) -> Step:
    """The two-stage rule with its second stage at ``t + delta (s - t)``: order 2, 2 evaluations.

    Raises:
        ValueError: unless 0 < delta <= 1.
    """
    if not 0 < delta <= 1:
        raise ValueError(f"delta must lie in (0, 1]; got {delta}")

    def step(field: Field, x: Tensor, t: Tensor, s: Tensor, y: Tensor | None) -> Tensor:
        h, weight = (s - t).to(x), 1 / (2 * delta)
        v = field(x, _batch(t, x), y)
        v_d = field(x + delta * h * v, _batch(t + delta * (s - t), x), y)
        return x + h * ((1 - weight) * v + weight * v_d)

    return step


def taylor(d: float = 0.01) -> Step:
    """RF-Solver's second-order step: ``x + h v + h^2 v' / 2``; order 2, 2 evaluations.

    v' is the difference quotient of the velocity along the path, over a time d in the direction of
    the step; a d beyond the step's end is cut to the step, where the rule is Heun's.

    Raises:
        ValueError: unless d > 0.
    """
    if not d > 0:
        raise ValueError(f"d must be above 0; got {d}")

    def step(field: Field, x: Tensor, t: Tensor, s: Tensor, y: Tensor | None) -> Tensor:
        h = (s - t).to(x)
        ahead = (s - t).clamp(-d, d)
        v = field(x, _batch(t, x), y)
        probed = field(x + ahead.to(x) * v, _batch(t + ahead, x), y)
        return x + h * v + h * (h / (2 * ahead).to(x)) * (probed - v)

    return step


def fireflow() -> Step:
    """FireFlow's step ``x + h v(x + h v_before / 2, t + h / 2)``: order 2, 1 evaluation.

    v_before is the velocity at the midpoint of the step before, so the rule belongs to one
    trajectory.  The first step evaluates v at its own start: 1 evaluation more.
    """
    before: Tensor | None = None

    def step(field: Field, x: Tensor, t: Tensor, s: Tensor, y: Tensor | None) -> Tensor:
        nonlocal before
        h = (s - t).to(x)
        v = field(x, _batch(t, x), y) if before is None else before
        before = field(x + 0.5 * h * v, _batch(t + 0.5 * (s - t), x), y)
        return x + h * before

    return step


def anchored(z: Tensor, heun: bool = False) -> Step:
    """RF++'s update from the initial noise z (B, *); with ``heun`` x_hat uses the mean velocity.

    It equals Euler's rule for the first two steps from t = 1, and has no inverse.
    """

    def step(field: Field, x: Tensor, t: Tensor, s: Tensor, y: Tensor | None) -> Tensor:
        t_b, s_b = _batch(t, x), _batch(s, x)
        v = field(x, t_b, y)
        x_s = interpolate(x_hat(x, v, t_b), z, s_b)
        if not heun:
            return x_s
        return interpolate(x_hat(x, (v + field(x_s, s_b, y)) / 2, t_b), z, s_b)

    return step


def edm(heun: bool = True) -> Step:
    """EDM's step in sigma, from t < 1: Heun's rule, or Euler's with one evaluation."""

    def step(field: Field, x: Tensor, t: Tensor, s: Tensor, y: Tensor | None) -> Tensor:
        t_b, s_b = _batch(t, x), _batch(s, x)
        h, scale = (s / (1 - s) - t / (1 - t)).to(x), (1 - s).to(x)
        big, slope = x / (1 - t).to(x), z_hat(x, field(x, t_b, y), t_b)
        end = (big + h * slope) * scale
        if not heun:
            return end
        return (big + h * (slope + z_hat(end, field(end, s_b, y), s_b)) / 2) * scale

    return step


def flow_map(field: Field, x: Tensor, t: Tensor, s: Tensor, y: Tensor | None) -> Tensor:
    """``x - (t - s) u(x, t, s)``, s <= t: exact for an exact flow map, 1 evaluation.

    Raises:
        UserError: if the field is a network without end time.
    """
    if lacks_end_time(field):
        raise UserError(NO_END_TIME)
    return x + (s - t).to(x) * field(x, interval(_batch(t, x), _batch(s, x)), y)


def trajectory(
    field: Field,
    x: Tensor,
    grid: Tensor,
    solver: str = "heun",
    last: Last = "euler",
    y: Tensor | None = None,
) -> Iterator[Tensor]:
    """Yields the state at every time of the grid, the first included.

    Args:
        field: the velocity field.
        x: state at ``grid[0]``, (B, *).
        grid: times (N + 1,), monotone; increasing times integrate towards noise.
        solver: a name of ``solver_table``.
        last: ``"euler"`` drops the second stage of the last step, as EDM does: 2N - 1 evaluations.
        y: labels (B,) or None.

    Raises:
        ValueError: if there is no such solver.
    """
    times = grid.to(device=x.device, dtype=torch.float64)
    step, final = rules_of(solver, x / times[0].to(x))  # a start at t < 1 is t z
    yield x
    for i, (t, s) in enumerate(pairwise(times)):
        rule = final if last == "euler" and i == len(times) - 2 else step
        x = rule(field, x, t, s, y)
        yield x


def solve(
    field: Field,
    x: Tensor,
    grid: Tensor,
    solver: str = "heun",
    last: Last = "euler",
    y: Tensor | None = None,
) -> Solution:
    """The last state of :func:`trajectory` (same arguments) and the evaluations it took."""
    counter = CallCounter(field)
    end = x
    for state in trajectory(counter, x, grid, solver, last, y):
        end = state
    return Solution(end, counter.calls)


def adaptive(
    field: Field,
    x: Tensor,
    t: float,
    s: float,
    y: Tensor | None = None,
    rtol: float = 1e-5,
    atol: float = 1e-5,
) -> Solution:
    """Dormand-Prince 5(4), "RK45", from time t to s, by torchdiffeq.

    A batch shares its step sizes, and every sample meets the tolerance: the error of a step is
    the largest over samples of the rms over a sample's values.  So the other samples of a batch
    change a result by about the tolerance, and make none less accurate.

    Args:
        field: the velocity field.
        x: state at time t, (B, *).
        t: first time.
        s: last time, before or after t.
        y: labels (B,) or None.
        rtol: relative tolerance of a step.
        atol: absolute tolerance of a step.
    """
    from torchdiffeq import odeint

    counter = CallCounter(field)
    end = odeint(
        lambda time, state: counter(state, _batch(time, state), y),
        x,
        torch.tensor([t, s], dtype=torch.float64, device=x.device),
        method="dopri5",
        rtol=rtol,
        atol=atol,
        options={"norm": lambda error: error.flatten(1).square().mean(1).sqrt().max()},
    )[-1]
    return Solution(end, counter.calls)


# By name, from the initial noise (B, *): the rule of a step, and a rule of one evaluation for a
# last step without a second stage.
RULES: Choices[Callable[[Tensor], tuple[Step, Step]]] = {
    "euler": lambda z: (euler, euler),
    "heun": lambda z: (rk2(1.0), euler),
    "midpoint": lambda z: (rk2(0.5), euler),
    "rf-solver": lambda z: (rk2(0.5), euler),
    "fireflow": lambda z: (fireflow(), euler),
    "anchored": lambda z: (anchored(z), anchored(z)),
    "anchored-heun": lambda z: (anchored(z, heun=True), anchored(z)),
    "edm-heun": lambda z: (edm(), edm(heun=False)),
    "flow-map": lambda z: (flow_map, flow_map),
}


def rules_of(solver: str, z: Tensor) -> tuple[Step, Step]:
    """The two rules of a named solver, see ``RULES``.

    Raises:
        ValueError: if there is no such solver, naming those there are.
    """
    properties_of(solver)
    if solver in RULES:
        return RULES[solver](z)
    family, _, delta = solver.partition(":")
    return (taylor if family == "taylor" else rk2)(float(delta)), euler


def _batch(t: Tensor, x: Tensor) -> Tensor:
    return t.to(x).expand(x.shape[0])
