"""What is measured of a flow, each measurement cached by what determines it.

That is: the flow's digest, which names the folder, its first time, the sampler, the seed, n, the
kind of device, the feature net with its real features, and the code that draws and measures.  So a
killed evaluation resumes, and neither a moved file nor a renamed row measures anything again.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict
from functools import cache, partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from pipeline import console
from pipeline.work import identity
from pipeline.work.feature_nets import Reference
from pipeline.work.results import Results
from pipeline.workers.drawing import Draw
from rfpp_core import rng
from rfpp_core.config import build
from rfpp_core.config.evaluate import Evaluate
from rfpp_core.config.flow import FlowRow
from rfpp_core.config.params import Params
from rfpp_core.evaluation import classifier, distances, flow_metrics
from rfpp_core.evaluation.extractors import extract
from rfpp_core.evaluation.reference import ROWS, compare
from rfpp_core.images import pixels
from rfpp_core.images.store import Images
from rfpp_core.model.flow_map import takes_end_time
from rfpp_core.sampling.flow import MICRO_BATCH, Flow, own_grid
from rfpp_core.sampling.sampler import SamplerConfig, draw
from rfpp_core.sampling.solver_table import (
    ADAPTIVE,
    FLOW_MAP,
    SEARCHED,
    properties_of,
    row_name,
)
from rfpp_core.sampling.transfer import Transfer

KIND = "evaluate"  # of staged work
ROUND_TRIP_NFE = 8
ENDS = SamplerConfig("midpoint", 16)
MOST = 1000  # held-out images that are sent to noise and back

Row = dict[str, Any]  # of the table of a flow
Plan = Sequence[tuple[SamplerConfig, int]]  # samplers, each with its number of sampling seeds


def key_of(
    what: str,
    flow: Flow,
    sampler: SamplerConfig,
    functions: Sequence[str],
    module: str = "evaluation_job",
) -> dict[str, Any]:
    """What any measurement depends on, beside the flow's weights and architecture.

    Args:
        what: is measured.
        flow: of which flow.
        sampler: by which sampler.
        functions: those that measure it.
        module: of ``pipeline.work`` that they are in.
    """
    key = {
        "measured": what,
        "start": flow.start,
        "sampler": asdict(sampler),
        "device": flow.device.type,
        "code": code_of(flow, sampler, functions, module),
    }
    if isinstance(flow, Transfer):
        key["domains"] = {**flow.domains, "images": flow.source_digest}
    return key


def code_of(
    flow: Flow, sampler: SamplerConfig, functions: Sequence[str], module: str = "evaluation_job"
) -> dict[str, str]:
    """Digests of the code that builds a flow, draws with a sampler and measures, by module."""
    arch = build.architecture_of(flow.metadata["architecture"])
    grid = [] if sampler.times else [sampler.grid]
    names = tuple(identity.Name(f"pipeline.work.{module}", name) for name in functions)
    if isinstance(flow, Transfer):
        names += (identity.Name("rfpp_core.sampling.transfer", "Transfer"),)
    return dict(_code((*arch.names, sampler.solver, *grid), names))


@cache
def _code(chosen: tuple[str, ...], functions: tuple[identity.Name, ...]) -> dict[str, str]:
    """The same, of values of params: it does not change while a stage runs."""
    roots = [
        identity.Name("rfpp_core.config.build", "flow_of"),
        identity.Name("rfpp_core.runtime", "exact"),
        identity.Name("rfpp_core.sampling.flow", "Flow"),
        *functions,
    ]
    return identity.digests(roots, set(chosen))


def table(
    flow: Flow,
    real: Reference,
    config: Params,
    row: FlowRow,
    found: Results,
    name: str,
    more: Plan = (),
    draw: Draw | None = None,
) -> list[Row]:
    """The rows of a flow's table, a sampler each; those of ``more`` come last.  ``draw`` draws
    them instead of the flow itself."""
    section = config.evaluate
    planned = [*samplers(section, flow, row), *more]
    rows: list[Row] = []
    with console.bar(name, sum(seeds for _, seeds in planned) * section.n, "img") as bar:
        for sampler, seeds in planned:
            values = []
            for i in range(seeds):
                values.append(measure(flow, real, sampler, config, i, found, draw))
                bar.update(section.n)
            key = key_of("evaluations", flow, sampler, ["spent"])
            nfe = sampler.nfe or found.once(key, partial(spent, flow, sampler))
            rows.append(row_of(SamplerConfig(label_of(sampler), nfe), section.n, values))
    return rows


def primary_metrics(real: Reference, rows: list[Row]) -> dict[str, dict[str, float | None]]:
    """The metrics for ``dvc exp show``: distances and agreement; the rest is in the table."""
    found: dict[str, dict[str, float | None]] = {}
    for net, of_net in real.rows.items():
        floor, held_out = (rounded(of_net[row][:, 0].mean()) for row in ROWS)
        found[distances.DISTANCES[net]] = {"floor": floor, "held_out": held_out}
    for name in (*found, *(["agreement"] if "agreement" in rows[0] else [])):
        found.setdefault(name, {}).update({_key(row): row[name] for row in rows})
    return found


def samplers(section: Evaluate, flow: Flow, row: FlowRow) -> list[tuple[SamplerConfig, int]]:
    """Each (sampler, number of sampling seeds) of a flow's table; few evaluations first.

    The row of many evaluations of an imported EDM, which starts below t = 1, is by EDM's sampler.
    The rows of few of a flow map are by its own steps, on grids that were given for as many.
    """
    solver = FLOW_MAP if takes_end_time(flow.field) else section.solver
    stages = {properties_of(name).stages for name in (solver, section.solver)}
    grids, grid = section.grids if len(stages) == 1 else {}, own_grid(flow)
    few = [(SamplerConfig(solver, nfe, grid, grids.get(str(nfe), ())), row.seeds or section.seeds)
           for nfe in section.nfe if nfe != section.many_nfe]  # fmt: skip
    edm = flow.start < 1 and grid == "uniform"
    solver, grid = ("edm-heun", "karras") if edm else ("heun", grid)
    seeds = row.many_seeds or section.many_seeds
    many = [(SamplerConfig(solver, section.many_nfe, grid), seeds)]
    return few + many + ([(SamplerConfig(ADAPTIVE), seeds)] if section.adaptive else [])


def label_of(sampler: SamplerConfig) -> str:
    """The name of a sampler's rows: its solver, or that of a searched grid."""
    return sampler.grid if sampler.grid == SEARCHED else sampler.solver


def measure(
    flow: Flow,
    real: Reference,
    sampler: SamplerConfig,
    config: Params,
    i: int,
    found: Results,
    draw: Draw | None = None,
) -> dict[str, float]:
    """Every metric of sample set i of a sampler; for a conditional flow also how often the
    classifier finds the label that an image was drawn for.

    Images are drawn only if the metrics of a feature net are not cached.
    """
    section, values, agreement = config.evaluate, dict[str, float](), dict[str, float]()
    drawing = key_of("distances", flow, sampler, ["drawn", "measures"])
    drawing |= {"seed": config.seed, "set": i, "n": section.n}
    sample: Sample | None = None
    for net in real.extractors:
        key = {**drawing, "net": real.digests[net], "neighbours": section.neighbours}
        of_net = found.find(key)
        if of_net is None:
            sample = sample or drawn(flow, sampler, config.seed, i, section.n, draw)
            of_net = measures(real, net, sample, section.neighbours)
            found.save(key, of_net)
        values |= dict(zip(distances.columns(net), of_net["distances"], strict=True))
        agreement |= {k: v for k, v in of_net.items() if k == "agreement"}
    return values | agreement


class Sample(NamedTuple):
    """Drawn images, uint8 (N, C, H, W), and the labels they were drawn for, if any."""

    images: Tensor
    y: Tensor | None


def drawn(
    flow: Flow, sampler: SamplerConfig, seed: int, i: int, n: int, draw: Draw | None = None
) -> Sample:
    """Sample set i of a seed, by the flow itself or by ``draw``."""
    key = rng.subkey(seed, f"evaluate {i}")
    y = labels(flow, key, n)
    if draw is not None:
        return Sample(draw(key, n, sampler, y), y)
    return Sample(flow.from_noise_key(key, n, sampler, y, finish=pixels.to_uint8), y)


def measures(real: Reference, net: str, sample: Sample, neighbours: int) -> dict[str, Any]:
    """The metrics of a sample set in one feature net."""
    fake = extract(real.extractors[net], sample.images)
    found: dict[str, Any] = {"distances": compare(real.real[net], fake, neighbours)}
    if net == "classifier" and sample.y is not None and real.classifier is not None:
        requested = Images(sample.images.numpy(), sample.y.numpy())
        found["agreement"] = classifier.accuracy(real.classifier, requested)
    return found


def row_of(sampler: SamplerConfig, n: int, found: list[dict[str, float]]) -> Row:
    """A line of the table: means and standard deviations over sampling seeds.  ``distance``
    repeats that of the first feature net under one name, for `dvc plots`."""
    row: Row = {"nfe": sampler.nfe, "solver": sampler.solver, "n": n, "seeds": len(found)}
    row["distance"] = rounded(float(np.mean([next(iter(sample.values())) for sample in found])))
    for name in found[0]:
        values = np.array([sample[name] for sample in found])
        spread = values.std(ddof=1) if len(values) > 1 else np.nan
        row |= {name: rounded(values.mean()), f"{name}_std": rounded(spread)}
    return row


def properties(
    flow: Flow, config: Params, found: Results, held_out: Images, images: str
) -> dict[str, Any]:
    """Properties of a flow's paths, round trip and noise, for its metrics file.

    Args:
        flow: which is measured.
        config: params.
        found: measurements of the flow.
        held_out: real images that are inverted.
        images: digest of the set they are of.
    """
    key = key_of("straightness", flow, SamplerConfig("euler"), ["paths"])
    key |= {"n": config.evaluate.straightness_n, "seed": config.seed}
    of_paths = flow_metrics.Paths(*found.once(key, lambda: paths(flow, config)))
    sampler = inverting(config.evaluate.solver)
    key = key_of("inversion", flow, sampler, ["inversion"]) | {"images": images}
    values = found.once(key, lambda: inversion(flow, held_out, sampler))
    noise = flow_metrics.Inversion(*values)._asdict()
    if isinstance(flow, Transfer):  # at t = 1 it has images, which need not be normal
        noise = {name: value if name == "round_trip" else np.nan for name, value in noise.items()}
    return {
        **{name: rounded(value) for name, value in of_paths._asdict().items()},
        "round_trip": rounded(noise.pop("round_trip")),
        "noise": {name: rounded(value) for name, value in noise.items()},
    }


def paths(flow: Flow, config: Params) -> flow_metrics.Paths:
    """How straight the paths of a flow are."""
    key, n = rng.subkey(config.seed, "straightness"), config.evaluate.straightness_n
    z = flow.states(key, torch.arange(n)).to(flow.device)
    y = labels(flow, key, n)
    y = None if y is None else y.to(flow.device)
    return flow_metrics.paths(flow.field, z, y, flow.start)


def pairing(flow: Flow, config: Params, found: Results) -> dict[str, Any]:
    """Which image a flow pairs with which noise, for its metrics file: what the transport costs,
    and how far mirrored noise leads from the mirrored image."""
    key = key_of("pairing", flow, ENDS, ["ends"])
    key |= {"n": config.evaluate.straightness_n, "seed": config.seed}
    cost, apart = found.once(key, lambda: ends(flow, config))
    return {"transport": rounded(cost), "flip_error": rounded(apart)}


def ends(flow: Flow, config: Params) -> tuple[float, float]:
    key, n = rng.subkey(config.seed, "pairing"), config.evaluate.straightness_n
    z = flow.states(key, torch.arange(n))
    y = labels(flow, key, n)
    given = None if y is None else y.tolist()
    x, mirrored = (flow.decode(noise, ENDS, given) for noise in (z, z.flip(-1)))
    return flow_metrics.transport_cost(x, z), flow_metrics.flip_error(x, mirrored)


def inverting(solver: str) -> SamplerConfig:
    """The sampler of the round trip, 8 evaluations each way; Euler's for a solver without an
    inverse."""
    return SamplerConfig(solver if properties_of(solver).invertible else "euler", ROUND_TRIP_NFE)


def inversion(flow: Flow, held_out: Images, sampler: SamplerConfig) -> flow_metrics.Inversion:
    """Held-out images to noise and back."""
    which = np.linspace(0, len(held_out.images) - 1, min(MOST, len(held_out.images))).astype(int)
    x = pixels.to_float(torch.from_numpy(held_out.images[which]))
    y = held_out.labels[which].tolist() if flow.classes else None
    z = flow.invert(x, sampler, y)
    return flow_metrics.inversion(x, z, flow.decode(z, sampler, y))


def speed(flow: Flow, n: int) -> float:
    """Images per second at one evaluation, noise included, on this machine: the median of three
    after a warm-up."""
    seconds = []
    for _ in range(4):
        start = time.perf_counter()
        flow.from_noise_key(0, n, SamplerConfig("euler", 1))
        seconds.append(time.perf_counter() - start)
    return n / float(np.median(seconds[1:]))


def spent(flow: Flow, sampler: SamplerConfig) -> int:
    """Network evaluations of an adaptive solver, counted on a micro-batch."""
    index = torch.arange(MICRO_BATCH)
    z = flow.states(0, index).to(flow.device)
    y = labels(flow, 0, MICRO_BATCH)
    y = None if y is None else y.to(flow.device)
    return draw(flow.field, z, y, sampler, start=flow.start).nfe


def _key(row: Row) -> str:
    """The key of a row in the metrics file."""
    return row_name(row["solver"], row["nfe"])


def labels(flow: Flow, key: int, n: int) -> Tensor | None:
    """The labels of samples 0..n-1 of a key; None for a flow without classes."""
    return rng.labels(key, torch.arange(n), flow.classes) if flow.classes else None


def rounded(value: float) -> float | None:
    """Five significant digits; None (an empty cell) for a value that is not finite."""
    return float(f"{value:.5g}") if np.isfinite(value) else None
