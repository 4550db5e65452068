"""``rfpp grid``: searches a model's own grids of Euler steps, and compares them with uniform
ones."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipeline.artifacts import DEFAULT_MODEL
from rfpp_core import runtime
from rfpp_core.errors import UserError

MOST_NOISES, MOST_ANCHORS = 100_000, 1000


@runtime.enough_memory("lower --anchors, free the device or set RFPP_DEVICE=cpu")
def grid(
    model: Annotated[Path, typer.Option(help="model file")] = DEFAULT_MODEL,
    steps: Annotated[int, typer.Option(help="largest number of steps; all below come too")] = 8,
    n: Annotated[int, typer.Option(help="noise samples of the search")] = 100,
    anchors: Annotated[
        int, typer.Option(help="steps of the fine solution, at whose times a grid may stop")
    ] = 100,
    seed: Annotated[int, typer.Option(help="seed of the noise")] = 0,
    out: Annotated[Path, typer.Option(help="file to write, for --grid of other commands")] = Path(
        "grid.json"
    ),
) -> None:
    """Searches a model's own grids of Euler steps (BOSS).

    Prints, for each number of steps, what the search minimised and the mean square distance of
    images from those of the fine solution, on a uniform grid and on the one found.  A smaller cost
    need not be a smaller distance.
    """
    from pipeline.work import evaluation_job, grid_job, workdir
    from pipeline.work.results import Results
    from rfpp_core.config import build
    from rfpp_core.sampling.sampler import SamplerConfig
    from rfpp_core.storage import files

    _check(steps, n, anchors, seed)
    runtime.exact()
    flow = build.load_flow(model, runtime.device())
    with workdir.staging(evaluation_job.KIND, {"flow": flow.digest}) as work:
        results = Results(work.path)
        found = grid_job.search(flow, n, anchors, steps, seed, results)
        every = range(1, steps + 1)
        even = [SamplerConfig("euler", k) for k in every]
        best = [grid_job.sampler(found, k) for k in every]
        errors = grid_job.errors(flow, found, [*even, *best], results)
    print("steps  cost: uniform      found   distance: uniform      found  times")
    for k, before, after in zip(every, errors[:steps], errors[steps:], strict=True):
        times = " ".join(f"{t:.3g}" for t in found.times[str(k)])
        print(f"{k:5}  {found.uniform_costs[str(k)]:13.4g} {found.costs[str(k)]:10.4g}   "
              f"{before:17.4g} {after:10.4g}  {times}")  # fmt: skip
    files.write_json(out, found.model_dump(mode="json"))
    print(f"grids of {model} -> {out}")


def _check(steps: int, n: int, anchors: int, seed: int) -> None:
    limits = {"--anchors": (anchors, 2, MOST_ANCHORS), "--steps": (steps, 1, anchors),
              "--n": (n, 1, MOST_NOISES), "--seed": (seed, 0, 2**63 - 1)}  # fmt: skip
    for name, (value, least, most) in limits.items():
        if not least <= value <= most:
            raise UserError(f"{name} is {value}; it must be from {least} to {most}")
