"""A flow's own grids of Euler steps (BOSS): searched, and compared with uniform ones.

Both are cached beside the other measurements of the flow, by the same rules.  A search takes
n x anchors network evaluations, for all numbers of steps at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from pipeline import artifacts
from pipeline.work import evaluation_job
from pipeline.work.evaluation_job import Plan, Row, code_of, key_of, label_of, labels, rounded
from pipeline.work.results import Results
from rfpp_core import rng
from rfpp_core.config.evaluate import Evaluate
from rfpp_core.config.flow import FlowRow
from rfpp_core.config.grid_file import GridFile
from rfpp_core.runtime import map_exact
from rfpp_core.sampling import grid_search, grids
from rfpp_core.sampling.flow import Flow
from rfpp_core.sampling.sampler import SamplerConfig, threads_for
from rfpp_core.sampling.solver_table import SEARCHED, row_name
from rfpp_core.storage import files

MODULE = "grid_job"
BYTES = 1 << 28  # of a batch's increments in float64


def search(flow: Flow, n: int, anchors: int, most: int, seed: int, found: Results) -> GridFile:
    """The cheapest grids of 1 to ``most`` steps for a flow.

    Args:
        flow: which flow.
        n: noise samples whose paths are followed.
        anchors: steps of the fine solution, at least ``most``.
        most: the largest number of steps.
        seed: of the noise.
        found: measurements of the flow.
    """
    asked: dict[str, Any] = {"n": n, "anchors": anchors, "most": most, "seed": seed}
    key = key_of("grids", flow, fine(flow, anchors), ["searched"], MODULE) | asked
    value = found.once(key, lambda: searched(flow, n, anchors, most, seed))
    return GridFile(flow=flow.digest, start=flow.start, **asked, **value)


def searched(flow: Flow, n: int, anchors: int, most: int, seed: int) -> dict[str, Any]:
    """Times and costs by number of steps, with the costs of uniform grids."""
    grid = flow.start * grids.uniform(anchors)
    key, size = rng.subkey(seed, "grid search"), batch_size(flow, anchors)
    y = labels(flow, key, n)

    def one(first: int) -> Tensor:
        part = slice(first, min(first + size, n))
        z = flow.states(key, torch.arange(n)[part].to(flow.device))
        label = None if y is None else y[part].to(flow.device)
        with torch.inference_mode():
            return grid_search.gram(flow.field, flow.start * z, grid, label).cpu()

    grams = map_exact(one, range(0, n, size), threads_for(flow.device))
    matrix = grid_search.costs(torch.stack(grams).sum(0) / n, grid)
    best = grid_search.cheapest(matrix, most)
    even = [grid_search.uniform(matrix, steps) for steps in range(1, most + 1)]
    return {
        "times": {str(k): [float(grid[i]) for i in path.anchors[:-1]]
                  for k, path in enumerate(best, 1)},
        "costs": {str(k): path.cost for k, path in enumerate(best, 1)},
        "uniform_costs": {str(k): path.cost for k, path in enumerate(even, 1)},
    }  # fmt: skip


def batch_size(flow: Flow, anchors: int) -> int:
    """Paths at a time, so that their increments fit into a quarter of a gigabyte."""
    return max(1, min(25, BYTES // (8 * anchors * torch.Size(flow.shape).numel())))


def fine(flow: Flow, anchors: int) -> SamplerConfig:
    """The fine solution: Euler's over all anchors."""
    times = (flow.start * grids.uniform(anchors))[:-1]
    return SamplerConfig("euler", anchors, times=tuple(times.tolist()))


def own(flow: Flow, section: Evaluate, seed: int, found: Results) -> GridFile | None:
    """The grids of a flow as ``evaluate.grid_search`` asks; None if it does not."""
    asked = section.grid_search
    if not asked.n:
        return None
    return search(flow, asked.n, asked.anchors, max(section.searched), seed, found)


def samplers(file: GridFile | None, section: Evaluate, row: FlowRow) -> Plan:
    """The rows of a flow's table on its own grids: each (sampler, number of sampling seeds)."""
    if file is None:
        return []
    seeds = row.seeds or section.seeds
    return [(sampler(file, nfe), seeds) for nfe in section.searched]


def sampler(file: GridFile, nfe: int) -> SamplerConfig:
    """Euler's rule on the grid of so many steps."""
    return SamplerConfig("euler", nfe, SEARCHED, file.times[str(nfe)])


def errors(
    flow: Flow, file: GridFile, samplers: Sequence[SamplerConfig], found: Results
) -> list[float]:
    """Mean square distance of each sampler's images from those of the fine solution.

    All begin with the same noise, which is not that of the search.
    """
    asked = {"n": file.n, "seed": file.seed, "samplers": [asdict(s) for s in samplers]}
    codes = [code_of(flow, s, ["distances"], MODULE) for s in samplers]
    key = key_of("endpoint errors", flow, fine(flow, file.anchors), ["distances"], MODULE)
    key |= {**asked, "codes": codes}
    measured: list[float] = found.once(key, lambda: distances(flow, file, samplers))
    return measured


def distances(flow: Flow, file: GridFile, samplers: Sequence[SamplerConfig]) -> list[float]:
    """What :func:`errors` caches."""
    key = rng.subkey(file.seed, "endpoint errors")
    y = labels(flow, key, file.n)
    exact = flow.from_noise_key(key, file.n, fine(flow, file.anchors), y).double()
    return [float((flow.from_noise_key(key, file.n, s, y) - exact).square().mean())
            for s in samplers]  # fmt: skip


def add_errors(
    rows: list[Row],
    flow: Flow,
    file: GridFile | None,
    section: Evaluate,
    row: FlowRow,
    found: Results,
) -> dict[str, dict[str, float | None]]:
    """Adds a column ``endpoint_error`` to the rows of a flow's table where grids were searched.

    Returns:
        The same by row, for the metrics file, with the uniform grid of an NFE that has a grid in
        ``evaluate.grids``; empty where nothing was searched.
    """
    if file is None:
        return {}
    planned = [*evaluation_job.samplers(section, flow, row), *samplers(file, section, row)]
    named = {row_name(label_of(s), s.nfe): s for s, _ in planned if s.nfe}
    for nfe in section.grids:
        named[f"nfe{nfe}_uniform"] = SamplerConfig(section.solver, int(nfe))
    values = map(rounded, errors(flow, file, [*named.values()], found))
    by_name = dict(zip(named, values, strict=True))
    for line in rows:
        line["endpoint_error"] = by_name.get(row_name(line["solver"], line["nfe"]))
    return {"endpoint_error": by_name}


def publish(file: GridFile | None, name: str) -> None:
    """Writes the grids of a flow beside its pictures, or removes those of an earlier search."""
    if file is None:
        artifacts.grid(name).unlink(missing_ok=True)
    else:
        files.write_json(artifacts.grid(name), file.model_dump(mode="json"))
