"""Stage ``evaluate``: one flow against the real images.

models/<flow>.safetensors -> metrics/<flow>.json (means, for ``dvc exp show``),
curves/<flow>.csv (every number with its spread) and samples/<flow>/*.png.
"""

from __future__ import annotations

import time
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from pipeline import console
from pipeline.stages import reference
from pipeline.work import identity, workdir
from pipeline.work.results import Results
from rfpp_core import rng, runtime
from rfpp_core.config import build, params
from rfpp_core.config.params import Evaluate
from rfpp_core.evaluation import classifier, distances
from rfpp_core.images import pixels
from rfpp_core.images import store as image_store
from rfpp_core.sampling.sampler import MICRO_BATCH, Flow, Recipe, draw
from rfpp_core.sampling.solvers import ADAPTIVE, trajectory
from rfpp_core.storage import files

ROUND_TRIP_NFE = 8
MOST = 1000  # held-out images that are sent to noise and back
SHOWN = 64

Row = dict[str, Any]


def run(name: str) -> None:
    config = params.load()
    section, device = config.evaluate, runtime.device()
    runtime.exact()
    real = reference.Reference(config)
    flow = build.load_flow(f"models/{name}.safetensors", device)
    with workdir.staging("evaluate", {"flow": flow.digest, "code": code_of(flow)}) as work:
        found = Results(work.path)
        rows = table(flow, real, config, found, name)
        paths = found.once(
            {"straightness": section.straightness_n, "seed": config.seed},
            lambda: straightness(flow, config),
        )
        images = image_store.about(workdir.IMAGES)["digest"]
        inverted = distances.Inversion(*found.once(
            {"inversion": section.solver, "nfe": ROUND_TRIP_NFE, "images": images},
            lambda: inversion(flow, image_store.read(workdir.IMAGES, "held_out"), section.solver),
        ))  # fmt: skip
    workdir.write_csv(Path(f"curves/{name}.csv"), rows)
    provenance = flow.about["provenance"]
    workdir.write_json(Path(f"metrics/{name}.json"), {
        **headlines(real, rows),
        "straightness": _round(paths),
        "round_trip": _round(inverted.round_trip),
        "noise": {name: _round(value) for name, value in inverted._asdict().items()
                  if name != "round_trip"},
        "images_per_second_nfe1": round(speed(flow, section)),
        "budget": provenance["budget"],
        "budget_with_ancestors": provenance["budget_with_ancestors"],
    })  # fmt: skip
    pictures(flow, name, config)


def code_of(flow: Flow) -> dict[str, str]:
    """Digests of the code that draws and measures, by module."""
    arch = build.architecture_of(flow.about["architecture"])
    roots = [identity.Name("rfpp_core.config.build", "field"), identity.Name("rfpp_core.sampling.sampler", "Flow"),
             *(identity.Name("pipeline.stages.evaluate", name)
               for name in ("drawn", "measures", "straightness", "inversion"))]  # fmt: skip
    return identity.digests(roots, {arch.arch, arch.precond})


def table(
    flow: Flow, real: reference.Reference, config: params.Params, found: Results, name: str
) -> list[Row]:
    """The rows of the curves CSV; what was measured before is not measured again."""
    section = config.evaluate
    first = flow.about["provenance"]["stage"] in ("pretrain", "import")
    samplers = recipes(section, flow.start, section.teacher_seeds if first else 1)
    rows: list[Row] = []
    with console.bar(name, sum(seeds for _, seeds in samplers) * section.n, "img") as bar:
        for recipe, seeds in samplers:
            values = []
            for i in range(seeds):
                values.append(measure(flow, real, recipe, config, i, found))
                bar.update(section.n)
            counted = {"evaluations of": asdict(recipe)}
            nfe = recipe.nfe or found.once(counted, partial(spent, flow, recipe))
            rows.append(row_of(Recipe(recipe.solver, nfe), section.n, values))
    return rows


def headlines(real: reference.Reference, rows: list[Row]) -> dict[str, dict[str, float | None]]:
    """What ``dvc exp show`` shows: the distances, and agreement; the rest is in the CSV."""
    found: dict[str, dict[str, float | None]] = {}
    for net, of_net in real.rows.items():
        floor, held_out = (_round(of_net[row][:, 0].mean()) for row in reference.ROWS)
        found[distances.DISTANCES[net]] = {"floor": floor, "held_out": held_out}
    for name in (*found, *(["agreement"] if "agreement" in rows[0] else [])):
        found.setdefault(name, {}).update({_name(row): row[name] for row in rows})
    return found


def recipes(section: Evaluate, start: float, many_seeds: int = 1) -> list[tuple[Recipe, int]]:
    """Each (sampler, number of sampling seeds) of the table; the many-step rows come last.

    Those of an imported EDM, which starts below t = 1, are by its own sampler.
    """
    few = [(Recipe(section.solver, nfe, times=section.grids.get(str(nfe), ())), section.seeds)
           for nfe in section.nfe if nfe != section.teacher_nfe]  # fmt: skip
    solver, grid = ("heun", "uniform") if start == 1 else ("edm-heun", "karras")
    many = [(Recipe(solver, section.teacher_nfe, grid), many_seeds)]
    return few + many + ([(Recipe(ADAPTIVE), many_seeds)] if section.adaptive else [])


def measure(
    flow: Flow,
    real: reference.Reference,
    recipe: Recipe,
    config: params.Params,
    i: int,
    found: Results,
) -> dict[str, float]:
    """Every metric of sample set i of a sampler; for a conditional flow also how often the
    classifier sees the label that was asked for.

    Images are drawn only for feature nets that have not seen them.
    """
    section, values, agreement = config.evaluate, dict[str, float](), dict[str, float]()
    drawing = {"sampler": asdict(recipe), "seed": config.seed, "set": i, "n": section.n,
               "device": flow.device.type}  # fmt: skip
    sample: Sample | None = None
    for net in real.extractors:
        key = {**drawing, "net": real.digests[net], "neighbours": section.neighbours}
        of_net = found.find(key)
        if of_net is None:
            sample = sample or drawn(flow, recipe, config.seed, i, section.n)
            of_net = measures(real, net, sample, section.neighbours)
            found.keep(key, of_net)
        values |= dict(zip(distances.columns(net), of_net["distances"], strict=True))
        agreement |= {k: v for k, v in of_net.items() if k == "agreement"}
    return values | agreement


class Sample(NamedTuple):
    """Drawn images, uint8 (N, C, H, W), and the labels that were asked for, if any."""

    images: Tensor
    y: Tensor | None


def drawn(flow: Flow, recipe: Recipe, seed: int, i: int, n: int) -> Sample:
    """Sample set i of a seed."""
    key = rng.subkey(seed, f"evaluate {i}")
    y = _y(flow, key, n)
    return Sample(pixels.to_uint8(flow.from_noise_key(key, n, recipe, y)), y)


def measures(
    real: reference.Reference, net: str, sample: Sample, neighbours: int
) -> dict[str, Any]:
    """What one feature net says of a sample set."""
    fake = classifier.extract(real.extractors[net], sample.images)
    found: dict[str, Any] = {"distances": reference.distances(real.real[net], fake, neighbours)}
    if net == "classifier" and sample.y is not None and real.classifier is not None:
        asked = image_store.Images(sample.images.numpy(), sample.y.numpy())
        found["agreement"] = classifier.accuracy(real.classifier, asked)
    return found


def row_of(recipe: Recipe, n: int, found: list[dict[str, float]]) -> Row:
    """A line of the curves CSV: means and deviations over sampling seeds; ``distance`` is that of
    the first feature net again, under one name for `dvc plots`."""
    row: Row = {"nfe": recipe.nfe, "solver": recipe.solver, "n": n, "seeds": len(found)}
    row["distance"] = _round(float(np.mean([next(iter(sample.values())) for sample in found])))
    for name in found[0]:
        values = np.array([sample[name] for sample in found])
        spread = values.std(ddof=1) if len(values) > 1 else np.nan
        row |= {name: _round(values.mean()), f"{name}_std": _round(spread)}
    return row


def straightness(flow: Flow, config: params.Params) -> float:
    key, n = rng.subkey(config.seed, "straightness"), config.evaluate.straightness_n
    z = rng.normal(key, torch.arange(n), flow.shape).to(flow.device)
    y = _y(flow, key, n)
    y = None if y is None else y.to(flow.device)
    return distances.straightness(flow.field, z, y, flow.start)


def inversion(flow: Flow, held_out: image_store.Images, solver: str) -> distances.Inversion:
    """Held-out images to noise and back at 8 evaluations each way."""
    recipe = Recipe("euler" if solver.startswith("anchored") else solver, ROUND_TRIP_NFE)
    which = np.linspace(0, len(held_out.images) - 1, min(MOST, len(held_out.images))).astype(int)
    x = pixels.to_float(torch.from_numpy(held_out.images[which]))
    y = held_out.labels[which].tolist() if flow.classes else None
    z = flow.invert(x, recipe, y)
    return distances.inversion(x, z, flow.decode(z, recipe, y))


def speed(flow: Flow, section: Evaluate) -> float:
    """Images per second at one evaluation, noise included, on this machine: the median of three
    after a warm-up."""
    seconds = []
    for _ in range(4):
        start = time.perf_counter()
        flow.from_noise_key(0, section.n, Recipe("euler", 1))
        seconds.append(time.perf_counter() - start)
    return section.n / float(np.median(seconds[1:]))


def pictures(flow: Flow, name: str, config: params.Params) -> None:
    """Sample grids per NFE and trajectories as PNG, from the same noise for every flow.

    Those of a conditional flow show a class a row.
    """
    key = rng.subkey(config.seed, "pictures")
    shown = max(SHOWN, 8 * min(flow.classes, 16))
    labels = torch.arange(shown) // 8 % flow.classes if flow.classes else None
    for recipe, _ in recipes(config.evaluate, flow.start):
        if recipe.solver == ADAPTIVE:
            continue
        images = flow.from_noise_key(key, shown, recipe, labels)
        save_grid(images, Path(f"samples/{name}/nfe{recipe.nfe}.png"), 8)
    z = rng.normal(key, torch.arange(8), flow.shape).to(flow.device)
    y = None if labels is None else (torch.arange(8) % flow.classes).to(flow.device)
    with torch.inference_mode():
        grid = Recipe("euler", 10).plan(flow.start)[0]
        states = list(trajectory(flow.field, flow.start * z, grid, "euler", "full", y))
    strip = torch.stack(states, dim=1).flatten(0, 1)
    save_grid(strip, Path(f"samples/{name}/trajectory.png"), len(states))


def save_grid(images: Tensor, path: Path, columns: int, side: int = 32) -> None:
    """Writes float images (N, C, H, W) in [-1, 1] as one PNG, enlarged to about ``side`` px."""
    from PIL import Image
    from torchvision.utils import make_grid

    scale = max(1, side // images.shape[-1])
    big = pixels.to_uint8(images.cpu()).repeat_interleave(scale, 2).repeat_interleave(scale, 3)
    grid = make_grid(big, columns, padding=2, pad_value=128)
    image = Image.fromarray(grid.permute(1, 2, 0).numpy())
    files.write_atomic(path, lambda part: image.save(part, "PNG"))


def spent(flow: Flow, recipe: Recipe) -> int:
    """Evaluations of an adaptive solver, counted over a micro-batch."""
    index = torch.arange(MICRO_BATCH)
    z = rng.normal(0, index, flow.shape).to(flow.device)
    y = _y(flow, 0, MICRO_BATCH)
    y = None if y is None else y.to(flow.device)
    return draw(flow.field, z, y, recipe, start=flow.start).nfe


def _name(row: Row) -> str:
    """The key of a row in the metrics file."""
    return ADAPTIVE if row["solver"] == ADAPTIVE else f"nfe{row['nfe']}"


def _y(flow: Flow, key: int, n: int) -> Tensor | None:
    return rng.labels(key, torch.arange(n), flow.classes) if flow.classes else None


def _round(value: float) -> float | None:
    """Five significant digits; None (an empty cell) for what was not measured."""
    return float(f"{value:.5g}") if np.isfinite(value) else None


if __name__ == "__main__":
    workdir.main(run, "flow")
