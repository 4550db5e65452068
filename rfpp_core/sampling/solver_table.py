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
RK2 = re.compile(r"rk2:(0\.\d*[1-9]\d*|1(\.0+)?)")  # rk2:<delta>, 0 < delta <= 1


class Properties(NamedTuple):
    """Properties of a solver."""

    stages: int = 2  # network evaluations a step
    invertible: bool = True  # whether increasing times lead from images to noise
    starts_at_1: bool = True  # whether it can begin at pure noise, t = 1
    drops_last: bool = False  # whether its last step always has one evaluation
    float64: bool = False  # whether its state is in double precision


SOLVERS: Choices[Properties] = {
    "euler": Properties(stages=1),
    "heun": Properties(),
    "midpoint": Properties(),
    "anchored": Properties(stages=1, invertible=False),
    "anchored-heun": Properties(invertible=False),
    "edm-heun": Properties(starts_at_1=False, drops_last=True, float64=True),
}


def properties_of(solver: str) -> Properties:
    """The properties of a solver: one of ``SOLVERS``, or ``rk2:<delta>``.

    Raises:
        ValueError: if there is no such solver, naming those there are.
    """
    if RK2.fullmatch(solver):
        return Properties()
    if solver not in SOLVERS:
        raise ValueError(
            f"unknown solver '{quoted(solver)}'; there are {', '.join(SOLVERS)}, "
            f"{ADAPTIVE} where no NFE is given, and rk2:<delta>, "
            f"0 < delta <= 1"
        )
    return SOLVERS[solver]


def steps_for(solver: str, nfe: int) -> tuple[int, Last]:
    """The number of steps that take exactly ``nfe`` evaluations, and the rule of the last one.

    A two-stage solver takes an even NFE as N full steps, 2N, and an odd one as 2N - 1, where the
    last step has one evaluation.

    Raises:
        ValueError: if ``nfe`` is below 1 or there is no such solver.
    """
    stages = properties_of(solver).stages
    if nfe < 1:
        raise ValueError(f"nfe must be at least 1; got {nfe}")
    return -(-nfe // stages), "euler" if nfe % stages else "full"
