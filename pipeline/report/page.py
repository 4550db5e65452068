"""The page of the report: what the stages left of a run -> report/index.html.

A folder with its pictures that opens from disk without a network.  Names come from params and from
folders of strangers: the templates escape them all.
"""

from __future__ import annotations

import json
import shutil
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from pipeline import artifacts, stage_log
from pipeline.report import facts, figures, looks, numbers, pictures, provenance, results, tables
from pipeline.report.figures import Figure
from pipeline.report.pictures import Grid
from pipeline.report.results import Results
from pipeline.report.tables import Table
from rfpp_core.config.params import Params
from rfpp_core.evaluation.distances import DISTANCES
from rfpp_core.sampling.solver_table import SEARCHED
from rfpp_core.storage import files

WIDE = 520  # pixels of a grid, about as many as a panel of two has


class Panel(NamedTuple):
    """A grid of the samples, with the flow and the button that choose it."""

    flow: str
    label: str
    grid: Grid


class Net(NamedTuple):
    """What the page shows of a feature net."""

    name: str
    figure: Figure
    table: Table
    said: list[str]


def write(config: Params) -> None:
    """Writes the report, which appears complete by a rename."""
    found = results.read(config)
    building = artifacts.REPORT.with_name(".report.partial")
    shutil.rmtree(building, ignore_errors=True)
    building.mkdir()
    for flow in found.flows:
        shutil.copytree(artifacts.samples(flow), building / flow)
    _write_curves(building, found)
    text = rendered(found, building)
    (building / "index.html").write_text(text, encoding="utf-8")
    files.replace_tree(building, artifacts.REPORT)


def _write_curves(folder: Path, found: Results) -> None:
    """What `dvc plots` draws: the flows' curves in one file each."""
    rows = [{"flow": flow, "nfe": row["nfe"], "distance": row["distance"]}
            for flow, of_flow in found.tables.items() for row in of_flow
            if row["solver"] != SEARCHED]  # fmt: skip
    files.write_csv(folder / "distance.csv", rows)
    losses = [
        {"flow": flow, "step": row["step"], "loss": row["loss"]}
        for flow, of_flow in found.losses.items()
        for row in of_flow
        if row["loss"]
    ]
    none = [{"flow": found.flows[0], "step": 0, "loss": ""}]
    files.write_csv(folder / "loss.csv", losses or none)


def rendered(found: Results, folder: Path) -> str:
    """The page; its figures and the grid of real images are written to ``folder``."""
    config, runs, lead = found.config, stage_log.runs(), facts.lead(found)
    grids = {flow: pictures.of_flow(flow, found) for flow in found.flows}
    real = pictures.real(folder, found)
    return _environment().get_template("page.html").render(
        subject=facts.subject(config.dataset),
        version=_version(),
        found=found,
        looks=looks.looks(found.flows),
        lead=lead,
        nets=[_net(net, folder, found) for net in config.features.nets],
        rankings=tables.rankings(found),
        sets=_sets(grids, real),
        panels=_panels(lead, grids),
        grids_are_wide=max(grid.width for own in grids.values() for grid in own) > WIDE,
        real=real,
        images=facts.images(found),
        classes=facts.classes(found),
        losses=figures.losses(folder, found),
        times=figures.training_times(folder, config),
        properties=tables.properties(found),
        costs=tables.costs(found),
        stage_times=provenance.times(config, runs),
        machines=provenance.machines(config, runs),
        revision=provenance.revision(),
        params=yaml.safe_dump(config.model_dump(mode="json", exclude_defaults=True),
                              sort_keys=False, allow_unicode=True),
        provenance=json.dumps({flow: model.metadata["provenance"]
                               for flow, model in found.models.items()}, indent=1),
    )  # fmt: skip


def _net(net: str, folder: Path, found: Results) -> Net:
    figure, table = figures.distance(folder, net, found), tables.distances(net, found)
    return Net(DISTANCES[net], figure, table, facts.said_of(net, found))


def _sets(grids: dict[str, list[Grid]], real: Grid) -> list[dict[str, Any]]:
    """What a panel can show, for the script: the grids of each flow, and the training images."""
    flows = [{"name": flow, "look": f"f{i}", "grids": [grid._asdict() for grid in own]}
             for i, (flow, own) in enumerate(grids.items())]  # fmt: skip
    return [*flows, {"name": "training images", "look": "", "grids": [real._asdict()]}]


def _panels(lead: facts.Lead, grids: dict[str, list[Grid]]) -> list[Panel]:
    """What is shown first: the teacher at many evaluations, and the last flow at its fewest."""
    return [
        _panel(lead.teacher or lead.flow, lead.many, grids),
        _panel(lead.flow, lead.few, grids),
    ]


def _panel(flow: str, nfe: int, grids: dict[str, list[Grid]]) -> Panel:
    own = grids[flow]
    grid = next((grid for grid in own if grid.label == str(nfe)), own[0])
    return Panel(flow, grid.label, grid)


def _version() -> str:
    """Of the installed project, if it is installed."""
    try:
        return metadata.version("rfpp")
    except metadata.PackageNotFoundError:
        return ""


def _environment() -> Environment:
    templates = FileSystemLoader(Path(__file__).with_name("templates"))
    environment = Environment(
        loader=templates, autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    for name in ("short", "multiple", "evaluations", "plural"):
        environment.filters[name] = getattr(numbers, name)
    return environment
