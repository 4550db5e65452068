"""Grid files: a flow's own grids of Euler steps, as JSON (``rfpp_core.sampling.grid_search``)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

from pydantic import ValidationError

from rfpp_core.config.section import Positive, Section, Seed
from rfpp_core.errors import UserError, quoted
from rfpp_core.sampling.solver_table import steps_for


class GridFile(Section):
    """What was searched, of which flow, and what was found, by number of steps.

    Attributes:
        format: of this file.
        flow: digest of weights and architecture.
        start: the flow's first time, where grids begin; 1 is noise, 0 is data.
        anchors: steps of the fine Euler solution.
        n: noise samples.
        seed: of the noise.
        most: the largest number of steps.
        times: the cheapest grids, without the 0 that ends them.
        costs: what they cost.
        uniform_costs: what the anchors nearest to equal steps cost.
    """

    format: Literal[1] = 1
    flow: str
    start: float
    anchors: Positive
    n: Positive
    seed: Seed
    most: Positive
    times: dict[str, tuple[float, ...]]
    costs: dict[str, float]
    uniform_costs: dict[str, float]


def read(path: Path, flow: str) -> GridFile:
    """Reads a grid file, and checks that it belongs to a flow of a digest.

    Raises:
        UserError: if it is missing, is no grid file, or belongs to other weights.
    """
    try:
        found = GridFile.model_validate(json.loads(path.read_text()))
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; `rfpp grid` writes one") from None
    except (OSError, ValueError, RecursionError, ValidationError):
        raise UserError(f"{path} is not a grid file of this version; `rfpp grid` writes "
                        f"one") from None  # fmt: skip
    if found.flow != flow:
        raise UserError(f"{path} was searched for another model (digest {quoted(found.flow, 12)}, "
                        f"this one has {flow[:12]}), and a grid belongs to its model alone; "
                        f"`rfpp grid` searches one for this model")  # fmt: skip
    return found


def times_for(found: GridFile, solver: str, nfe: int) -> tuple[float, ...]:
    """The times that take ``nfe`` evaluations by a solver.

    Raises:
        UserError: if there is no such solver, or the file has no grid of so many steps.
    """
    try:
        steps, _ = steps_for(solver, nfe)
    except ValueError as error:
        raise UserError(str(error)) from None
    if str(steps) not in found.times:
        raise UserError(f"the grid file has grids of 1 to {found.most} steps, and {nfe} NFE by "
                        f"{solver} are {steps}; `rfpp grid --steps {steps}` searches one of so "
                        f"many")  # fmt: skip
    return found.times[str(steps)]
