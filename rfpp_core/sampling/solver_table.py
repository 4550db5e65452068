"""The solvers by name, with the properties of each; their rules are in ``solvers``.

This module does without torch: params are checked against its table before anything is loaded.
"""

from __future__ import annotations

import re
from typing import Literal, NamedTuple

from rfpp_core.choices import Choices
from rfpp_core.errors import quoted

Last = Literal["full", "euler"]
ADAPTIVE = "rk45"  # chooses its evaluations itself, so it takes no NFE
FLOW_MAP = "flow-map"  # the steps of a flow map, of a network with an end time
# rk2:<delta> and taylor:<delta>, 0 < delta <= 1
WITH_DELTA = re.compile(r"(rk2|taylor):(0\.\d*[1-9]\d*|1(\.0+)?)")
SEARCHED = "euler-boss"  # the name, in tables, of Euler's rule on a grid searched for the flow


class Properties(NamedTuple):
    """Properties of a solver."""

    stages: int = 2  # network evaluations a step
    invertible: bool = True  # whether increasing times lead from images to noise
    starts_at_1: bool = True  # whether it can begin at pure noise, t = 1
    drops_last: bool = False  # whether its last step always has one evaluation
    float64: bool = False  # whether its state is in double precision
    reuses: bool = False  # whether a step begins with the velocity that the last one ended with


SOLVERS: Choices[Properties] = {
    "euler": Properties(stages=1),
    "heun": Properties(),
    "midpoint": Properties(),
    "rf-solver": Properties(),  # the midpoint rule
    "fireflow": Properties(stages=1, reuses=True),
    "anchored": Properties(stages=1, invertible=False),
    "anchored-heun": Properties(invertible=False),
    "edm-heun": Properties(starts_at_1=False, drops_last=True, float64=True),
    "flow-map": Properties(stages=1, invertible=False),
}


def properties_of(solver: str) -> Properties:
    """The properties of a solver: one of ``SOLVERS``, ``rk2:<delta>`` or
    ``taylor:<delta>``.

    Raises:
        ValueError: if there is no such solver, naming those there are.
    """
    if WITH_DELTA.fullmatch(solver):
        return Properties()
    if solver not in SOLVERS:
        raise ValueError(
            f"unknown solver '{quoted(solver)}'; there are {', '.join(SOLVERS)}, "
            f"{ADAPTIVE} where no NFE is given, and taylor:<delta> and "
            f"rk2:<delta>, 0 < delta <= 1"
        )
    return SOLVERS[solver]


def steps_for(solver: str, nfe: int) -> tuple[int, Last]:
    """The number of steps that take exactly ``nfe`` evaluations, and the rule of the last one.

    A two-stage solver takes an even NFE as N full steps, 2N, and an odd one as 2N - 1, where the
    last step has one evaluation.  ``fireflow`` takes N + 1: one more in its first step, and one
    step of an NFE of 1 is Euler's.

    Raises:
        ValueError: if ``nfe`` is below 1 or there is no such solver.
    """
    properties = properties_of(solver)
    if nfe < 1:
        raise ValueError(f"nfe must be at least 1; got {nfe}")
    if properties.reuses:
        return max(1, nfe - 1), "full" if nfe > 1 else "euler"
    stages = properties.stages
    return -(-nfe // stages), "euler" if nfe % stages else "full"


def row_name(solver: str, nfe: int | str) -> str:
    """The name of what was measured of a sampler: ``nfe8``, ``nfe8_boss`` or ``rk45``."""
    if solver == ADAPTIVE:
        return ADAPTIVE
    return f"nfe{nfe}_boss" if solver == SEARCHED else f"nfe{nfe}"
