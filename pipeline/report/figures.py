"""The figures of the report."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipeline.report.tables import Row
from rfpp_core.config import build
from rfpp_core.config.params import Params


def plot_distance(
    path: Path, curves: dict[str, list[Row]], metrics: dict[str, Any], name: str
) -> None:
    figure, (axes,) = _axes((7, 4.2))
    for flow, rows in curves.items():
        rows = sorted(rows, key=lambda row: int(row["nfe"]))
        axes.plot([int(r["nfe"]) for r in rows], [float(r[name]) for r in rows], "o-", label=flow)
    real = metrics[name]
    axes.axhline(real["held_out"], ls="--", c="0.4", lw=1, label="held-out images")
    axes.axhline(real["floor"], ls=":", c="0.4", lw=1, label="floor (training images)")
    axes.set(xscale="log", yscale="log", xlabel="network evaluations (NFE)",
             ylabel=f"Frechet distance ({name})")  # fmt: skip
    ticks = sorted({int(r["nfe"]) for rows in curves.values() for r in rows})
    axes.set_xticks(ticks, [str(t) for t in ticks])
    axes.minorticks_off()
    axes.legend(frameon=False)
    figure.savefig(path, dpi=120)


def plot_losses(path: Path, curves: dict[str, list[Row]]) -> None:
    """One panel a kind of loss, since losses of different kinds have no common axis."""
    kinds: dict[str, list[str]] = {}
    for flow, rows in curves.items():
        if rows[0]["loss"]:  # else of zero steps
            kinds.setdefault(list(rows[0])[2], []).append(flow)  # after step and loss: the term
    figure, panels = _axes((6, 2.8 * max(1, len(kinds))), rows=max(1, len(kinds)))
    for axes, (kind, flows) in zip(panels, kinds.items(), strict=False):
        for flow in flows:
            rows = curves[flow]
            axes.plot([int(r["step"]) for r in rows], [float(r[kind]) for r in rows], label=flow)
        axes.set(xlabel="step", ylabel=kind, yscale="log")
        axes.legend(frameon=False)
    figure.savefig(path, dpi=120)


def plot_times(path: Path, config: Params) -> None:
    """Densities of the training time, by recipe."""
    figure, (axes,) = _axes((6, 3.4))
    u = (torch.arange(200_000, dtype=torch.float64) + 0.5) / 200_000
    for name in dict.fromkeys(row.recipe for row in config.flows.values()):
        recipe = config.recipes[name]
        if recipe.steps:
            t = build.time_distribution(recipe.times)(u).numpy()
            axes.hist(t, bins=np.linspace(0, 1, 61), density=True, histtype="step",
                      label=f"{name}: {recipe.times.distribution}")  # fmt: skip
    axes.set(xlabel="t (0 data, 1 noise)", ylabel="density")
    axes.legend(frameon=False)
    figure.savefig(path, dpi=120)


def _axes(size: tuple[float, float], rows: int = 1) -> tuple[Any, Any]:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(rows, figsize=size, layout="constrained", squeeze=False)
    return figure, axes[:, 0]
