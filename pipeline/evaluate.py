"""Stage ``evaluate``: one flow against the real images.

models/<flow>.safetensors -> metrics/<flow>.json (means, for ``dvc exp show``),
curves/<flow>.csv (every number with its spread) and samples/<flow>/*.png.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline import reference, stage
from rfpp_core import (
    build,
    data,
    features,
    files,
    metrics,
    noise,
    params,
    pixels,
    runtime,
    schedules,
)
from rfpp_core.params import Evaluate
from rfpp_core.sampling import Flow, Recipe
from rfpp_core.solvers import steps_for, trajectory

METRICS = ("fd_classifier", "fd_classifier_held_out", "kid", "precision", "recall")
HEADLINES = ("fd_classifier", "agreement")  # what the metrics file shows; the rest is in the CSV
ROUND_TRIP_NFE = 8
SHOWN = 64

Row = dict[str, Any]


def run(name: str) -> None:
    config = params.load()
    section, device = config.evaluate, runtime.device()
    runtime.exact()
    net, real = reference.load_net(), dict(np.load(reference.REFERENCE))
    flow = build.load_flow(f"models/{name}.safetensors", device)
    rows: list[Row] = []
    first = flow.about["provenance"]["stage"] == "pretrain"
    for recipe, seeds in recipes(section, section.teacher_seeds if first else 1):
        found = [measure(flow, net, real, recipe, config, i) for i in range(seeds)]
        rows.append(row_of(recipe, section.n, found))
    means = {name: {f"nfe{row['nfe']}": row[name] for row in rows} for name in HEADLINES
             if name in rows[0]}  # fmt: skip
    stage.write_csv(Path(f"curves/{name}.csv"), rows)
    held_out = data.read(stage.IMAGES, "held_out")
    provenance = flow.about["provenance"]
    stage.write_json(Path(f"metrics/{name}.json"), {
        **means,
        "fd_classifier": {
            "floor": _round(real["floor"][:, 0].mean()),
            "held_out": _round(real["held_out_row"][:, 0].mean()),
            **means["fd_classifier"],
        },
        "straightness": _round(straightness(flow, config)),
        "round_trip": _round(round_trip(flow, held_out, section.solver)),
        "images_per_second_nfe1": round(speed(flow, section)),
        "budget": provenance["budget"],
        "budget_with_ancestors": provenance["budget_with_ancestors"],
    })  # fmt: skip
    pictures(flow, name, config)


def recipes(section: Evaluate, many_seeds: int = 1) -> list[tuple[Recipe, int]]:
    """Each (sampler, number of sampling seeds) of the table; the many-step row comes last."""
    few = [(Recipe(section.solver, nfe, times=section.grids.get(str(nfe), ())), section.seeds)
           for nfe in section.nfe if nfe != section.teacher_nfe]  # fmt: skip
    return [*few, (Recipe("heun", section.teacher_nfe), many_seeds)]


def measure(
    flow: Flow,
    net: features.Classifier,
    real: reference.Split,
    recipe: Recipe,
    config: params.Params,
    seed: int,
) -> dict[str, float]:
    """Every metric of one set of samples; for a conditional flow also how often the classifier
    sees the label that was asked for."""
    section, key = config.evaluate, noise.subkey(config.seed, f"evaluate {seed}")
    y = _y(flow, key, section.n)
    images = pixels.to_uint8(flow.from_noise_key(key, section.n, recipe, y))
    values = reference.distances(real, features.extract(net, images), section.neighbours)
    found = dict(zip(METRICS, values, strict=True))
    if y is not None:
        found["agreement"] = features.accuracy(net, data.Images(images.numpy(), y.numpy()))
    return found


def row_of(recipe: Recipe, n: int, found: list[dict[str, float]]) -> Row:
    """A line of the curves CSV: means and deviations over sampling seeds."""
    row: Row = {"nfe": recipe.nfe, "solver": recipe.solver, "n": n, "seeds": len(found)}
    for name in found[0]:
        values = np.array([sample[name] for sample in found])
        spread = values.std(ddof=1) if len(values) > 1 else np.nan
        row |= {name: _round(values.mean()), f"{name}_std": _round(spread)}
    return row


def straightness(flow: Flow, config: params.Params) -> float:
    key, n = noise.subkey(config.seed, "straightness"), config.evaluate.straightness_n
    z = noise.normal(key, torch.arange(n), flow.shape).to(flow.device)
    y = _y(flow, key, n)
    return metrics.straightness(flow.field, z, None if y is None else y.to(flow.device))


def round_trip(flow: Flow, held_out: data.Images, solver: str) -> float:
    """Mean square error of image -> noise -> image at 8 evaluations each way."""
    solver = "euler" if solver.startswith("anchored") else solver
    steps, _ = steps_for(solver, ROUND_TRIP_NFE)
    x = pixels.to_float(torch.from_numpy(held_out.images)).to(flow.device)
    y = torch.from_numpy(held_out.labels).long().to(flow.device) if flow.classes else None
    return metrics.round_trip(flow.field, x, solver, schedules.uniform(steps), y)


def speed(flow: Flow, section: Evaluate) -> float:
    """Images per second at one evaluation, noise included, on this machine."""
    flow.from_noise_key(0, section.n, Recipe("euler", 1))
    start = time.perf_counter()
    flow.from_noise_key(0, section.n, Recipe("euler", 1))
    return section.n / (time.perf_counter() - start)


def pictures(flow: Flow, name: str, config: params.Params) -> None:
    """Sample grids per NFE and trajectories as PNG, from the same noise for every flow.

    Those of a conditional flow show a class a row.
    """
    key = noise.subkey(config.seed, "pictures")
    shown = max(SHOWN, 8 * min(flow.classes, 16))
    labels = torch.arange(shown) // 8 % flow.classes if flow.classes else None
    for recipe, _ in recipes(config.evaluate):
        images = flow.from_noise_key(key, shown, recipe, labels)
        save_grid(images, Path(f"samples/{name}/nfe{recipe.nfe}.png"), 8)
    z = noise.normal(key, torch.arange(8), flow.shape).to(flow.device)
    y = None if labels is None else (torch.arange(8) % flow.classes).to(flow.device)
    with torch.inference_mode():
        states = list(trajectory(flow.field, z, schedules.uniform(10), "euler", "full", y))
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


def _y(flow: Flow, key: int, n: int) -> Tensor | None:
    return noise.labels(key, torch.arange(n), flow.classes) if flow.classes else None


def _round(value: float) -> float | None:
    """Five significant digits; None (an empty cell) for what was not measured."""
    return float(f"{value:.5g}") if np.isfinite(value) else None


if __name__ == "__main__":
    stage.main(run, "flow")
