"""The figures of the report, legible on white and on black."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from pipeline.report.looks import NEUTRAL, looks
from pipeline.report.results import Results, Row, number
from rfpp_core.config import objective
from rfpp_core.config.params import Params
from rfpp_core.evaluation.distances import DISTANCES
from rfpp_core.sampling.solver_table import SEARCHED

WIDTH, DPI, LETTERS = 5.6, 200, 64  # inches; about as many letters as fit beside each other
COLOURED = ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color",
            "grid.color", "legend.labelcolor")  # fmt: skip
STYLE: Any = dict.fromkeys(COLOURED, NEUTRAL) | {
    "font.size": 10, "lines.markersize": 5, "axes.spines.top": False, "axes.spines.right": False,
    "axes.grid": True, "grid.alpha": 0.2, "legend.frameon": False,
}  # fmt: skip
NOT_TERMS = {"step", "loss", "lr", "grad_norm"}  # of a loss curve


class Figure(NamedTuple):
    """A file of the report's folder, with its size in pixels."""

    file: str
    width: int
    height: int


def distance(folder: Path, net: str, found: Results) -> Figure:
    """Distance by evaluations, a line a flow, with the real images."""
    file = "distance.png" if net == found.config.features.nets[0] else f"distance_{net}.png"
    figure, (axes,) = _axes(3.4 + 0.08 * len(found.flows))
    name, ticks = DISTANCES[net], set()
    for flow, look in looks(found.flows).items():
        rows = sorted(found.tables[flow], key=lambda row: int(row["nfe"]))
        points = _points(name, [row for row in rows if row["solver"] != SEARCHED])
        own = _points(name, [row for row in rows if row["solver"] == SEARCHED])
        ticks |= set(points[0])
        axes.plot(*points, color=look.colour, ls=look.dash, marker=look.marker, label=flow)
        if own[0]:
            axes.plot(*own, color=look.colour, ls="", marker=look.marker, mfc="none",
                      label=f"{flow}, own grid")  # fmt: skip
    held_out = float(found.real[f"{net}/held_out_row"][:, 0].mean())
    axes.axhline(held_out, ls="--", c=NEUTRAL, lw=1, label="held-out images")
    axes.axhline(found.floor(net), ls=":", c=NEUTRAL, lw=1, label="floor")
    axes.set(xscale="log", yscale="log", xlabel="network evaluations an image",
             ylabel=f"distance ({name})")  # fmt: skip
    axes.set_xticks(sorted(ticks), [str(tick) for tick in sorted(ticks)])
    axes.minorticks_off()
    _plain(axes)
    return _saved(figure, folder / file)


def _points(name: str, rows: list[Row]) -> tuple[list[int], list[float]]:
    """Evaluations, and distances above 0."""
    measured = [row for row in rows if number(row, name) > 0]
    return [int(row["nfe"]) for row in measured], [number(row, name) for row in measured]


def losses(folder: Path, found: Results) -> Figure | None:
    """A panel for each term of each kind of loss, since kinds have no common axis; None if no
    flow was trained."""
    panels = loss_panels(found)
    if not panels:
        return None
    figure, every = _axes(0.6 + 2.3 * len(panels) + 0.08 * len(found.flows), rows=len(panels))
    look = looks(found.flows)
    for axes, (title, (term, flows)) in zip(every, panels.items(), strict=True):
        for flow in flows:
            rows = found.losses[flow]
            steps = [int(r["step"]) for r in rows]
            axes.plot(steps, [number(r, term) for r in rows], color=look[flow].colour,
                      ls=look[flow].dash, lw=1.2, label=flow)  # fmt: skip
        axes.set_yscale("log")
        axes.set_title(title, fontsize=10, loc="left")
        _plain(axes)
    every[-1].set(xlabel="update")
    return _saved(figure, folder / "loss.png")


def loss_panels(found: Results) -> dict[str, tuple[str, list[str]]]:
    """Term and flows by title.  Losses are of one kind if they have the same terms."""
    kinds: dict[tuple[str, ...], list[str]] = {}
    for flow, rows in found.losses.items():
        if rows[0]["loss"]:  # else of zero steps
            kinds.setdefault(terms(rows[0]), []).append(flow)
    return {term if len(kind) == 1 else f"{term}, of {' + '.join(kind)}": (term, flows)
            for kind, flows in kinds.items() for term in kind}  # fmt: skip


def terms(row: Row) -> tuple[str, ...]:
    """The terms of a loss, of a line of its curve."""
    return tuple(name for name in row if name not in NOT_TERMS)


def training_times(folder: Path, config: Params) -> Figure | None:
    """Densities of the training time, a line a recipe; None if no flow was trained."""
    recipes: dict[str, list[str]] = {}
    for flow, row in config.flows.items():
        if config.recipe_of(flow).steps:
            recipes.setdefault(row.recipe, []).append(flow)
    if not recipes:
        return None
    figure, (axes,) = _axes(3 + 0.08 * len(recipes))
    u = (torch.arange(100_000, dtype=torch.float64) + 0.5) / 100_000
    for name, flows in recipes.items():
        section, look = config.recipes[name].times, looks(config.flows)[flows[0]]
        label = f"{_some(flows)}: {section.distribution}"
        if section.distribution == "fixed":
            axes.axvline(section.t, color=look.colour, ls=look.dash, lw=2, label=label)
            continue
        t = objective.time_distribution(section)(u).numpy()
        density, edges = np.histogram(t, bins=np.linspace(0, 1, 61), density=True)
        axes.plot(
            (edges[1:] + edges[:-1]) / 2, density, color=look.colour, ls=look.dash, label=label
        )
    axes.set(xlabel="t (0 is data, 1 is noise)", ylabel="density", xlim=(-0.02, 1.02))
    axes.set_ylim(bottom=0)
    return _saved(figure, folder / "times.png")


def _some(flows: list[str]) -> str:
    return ", ".join(flows[:3]) + (f" and {len(flows) - 3} more" if len(flows) > 3 else "")


def _axes(height: float, rows: int = 1) -> tuple[Any, Any]:
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams.update(STYLE)
    from matplotlib import pyplot

    size = (WIDTH, height)
    figure, axes = pyplot.subplots(rows, figsize=size, layout="constrained", squeeze=False)
    return figure, axes[:, 0]


def _plain(axes: Any) -> None:
    """Writes the numbers of a logarithmic axis in full: 0.6, not 6 x 10^-1."""
    from matplotlib import ticker

    least, most = axes.get_ylim()
    if least > 0 and most < 20 * least:  # too few powers of ten to read by
        axes.yaxis.set_major_locator(ticker.MaxNLocator(5))
        axes.yaxis.set_minor_locator(ticker.NullLocator())
    axes.yaxis.set_major_formatter(ticker.FuncFormatter(lambda value, _: f"{value:g}"))


def _saved(figure: Any, path: Path) -> Figure:
    """Writes a figure, with one legend for all of its axes below them."""
    from matplotlib import pyplot

    lines = {label: line for axes in figure.axes
             for line, label in zip(*axes.get_legend_handles_labels(), strict=True)}  # fmt: skip
    columns = min(4, len(lines), max(1, LETTERS // (max(map(len, lines)) + 7)))
    figure.legend(lines.values(), [shorten(label) for label in lines], ncols=columns,
                  loc="outside lower center", handlelength=2.6)  # fmt: skip
    figure.savefig(path, dpi=DPI, transparent=True)
    width, height = (round(side * DPI) for side in figure.get_size_inches())
    pyplot.close(figure)
    return Figure(path.name, width, height)


def shorten(label: str) -> str:
    """A label that fits the figure."""
    return label if len(label) < LETTERS - 8 else f"{label[: LETTERS - 11]}..."
