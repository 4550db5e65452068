"""The tables of the report as plain data: the template alone knows HTML."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from pipeline.report.numbers import multiple, plural, short, spread
from pipeline.report.results import Results, Row, number
from rfpp_core.config.flow import IMAGES
from rfpp_core.config.params import Params
from rfpp_core.evaluation.distances import DISTANCES, columns
from rfpp_core.sampling.solver_table import ADAPTIVE, SEARCHED

NAMES = {ADAPTIVE: "rk45 (adaptive)", SEARCHED: "euler, own grid"}  # of solvers, in full
MORE = {"agreement": "agreement", "endpoint_error": "to fine solution"}  # heads of more columns


class Cell(NamedTuple):
    """A cell: text, a standard deviation beside it, the flow whose colour it has, and how many
    rows it spans."""

    text: str
    spread: str = ""
    flow: str = ""
    rows: int = 1


class Group(NamedTuple):
    """Rows that can be compared with each other, under a title; none for a table of one group."""

    title: str
    rows: list[list[Cell]]


class Table(NamedTuple):
    """Column heads, the first that of the row heads, and groups of rows."""

    head: list[str]
    groups: list[Group]


class Likes(NamedTuple):
    """What flows share that may be compared without more: their data, and their budget."""

    data: str
    budget: int


def distances(net: str, found: Results) -> Table:
    """By one feature net: the real images, then the flows by data and budget."""
    more = _more(net, found)
    head = ["", "NFE", "solver", DISTANCES[net], "excess", "to held-out", "KID × 1000",
            "precision", "recall", *(MORE[name] for name in more), "n × seeds"]  # fmt: skip
    groups = [Group("Real images", _real_rows(net, found, more))]
    for likes, flows in grouped(found).items():
        rows = [row for flow in flows for row in _rows_of(flow, net, found, more)]
        groups.append(Group(f"{likes.data}; budget {likes.budget:,}", rows))
    return Table(head, groups)


def grouped(found: Results) -> dict[Likes, list[str]]:
    """The flows by data, in the order of the params, and by budget."""
    keys = {flow: Likes(data_of(flow, found.config), found.metrics[flow]["budget"])
            for flow in found.flows}  # fmt: skip
    places = list(dict.fromkeys(key.data for key in keys.values()))
    order = sorted(set(keys.values()), key=lambda key: (places.index(key.data), key.budget))
    return {key: [flow for flow in found.flows if keys[flow] == key] for key in order}


def data_of(flow: str, config: Params) -> str:
    """What a flow learned from, in words."""
    row, recipe = config.flows[flow], config.recipe_of(flow)
    if not recipe.steps:
        return "Imported, not trained" if config.is_imported(flow) else f"{row.start} as it is"
    data = f"Trained on {set_of(row.data, config)}"
    if row.domains.source:
        data += f" of the domains {row.domains.words}"
    if config.uses_mix(flow):
        data += f", {recipe.mix:.0%} of each batch from {set_of(row.mix, config)}"
    return data


def set_of(name: str, config: Params) -> str:
    """The real images, or a set of pairs, in words."""
    if name == IMAGES:
        return "the real images"
    row = config.pairs[name]
    if row.source == "import":
        return f"{name} (imported pairs)"
    how = f"by {row.teacher}: {row.solver}, {plural(row.nfe, 'evaluation')}"
    if row.guidance != 1:
        how += f", guidance {row.guidance:g}"
    whats = {"images": "real images sent to noise", "domain": "translated images"}
    what = whats.get(row.source) or f"{row.n or 0:,} pairs"
    return f"{name} ({what} {how})"


def excess(distance: float, flow: str, net: str, found: Results) -> float:
    """Excess of a distance over the floor, as a multiple of that of the flow's teacher at many
    evaluations (of its own, if it has no teacher); NaN where the teacher reaches the floor."""
    config, floor = found.config, found.floor(net, flow)
    teacher = config.teacher_of(flow) or flow
    best = found.at(teacher, net, config.evaluate.many_nfe) - floor
    return (distance - floor) / best if best > 0 else math.nan


def _more(net: str, found: Results) -> list[str]:
    """The columns of MORE that were measured, and belong to a feature net."""
    names = ["agreement"] if _has_agreement(net, found) else []
    return [*names, *(["endpoint_error"] if _has("endpoint_error", found) else [])]


def _has_agreement(net: str, found: Results) -> bool:
    return net == "classifier" and _has("agreement", found)


def _has(column: str, found: Results) -> bool:
    return any(row.get(column) for of_flow in found.tables.values() for row in of_flow)


def _real_rows(net: str, found: Results, more: Sequence[str]) -> list[list[Cell]]:
    """The floor and the held-out images.  Standard deviations are over bootstraps."""
    rows = []
    names = {"floor": "floor: training images", "held_out_row": "held-out images"}
    for key, name in names.items():
        values = np.asarray(found.real[f"{net}/{key}"], dtype=float)
        mean = values.mean(0)
        std = values.std(0, ddof=1) if len(values) > 1 else np.full(values.shape[1], np.nan)
        cells = [_cell(float(a), float(b)) for a, b in zip(mean, std, strict=True)]
        cells[2] = _cell(float(mean[2]) * 1000, float(std[2]) * 1000)
        known = found.accuracy if key == "held_out_row" else None
        others = [Cell(short(known) if name == "agreement" else "") for name in more]
        n = f"{found.config.evaluate.n:,} × {len(values)}"
        rows.append(
            [Cell(name), Cell(""), Cell(""), cells[0], Cell(""), *cells[1:], *others, Cell(n)]
        )
    return rows


def _rows_of(flow: str, net: str, found: Results, more: Sequence[str]) -> Iterable[list[Cell]]:
    """The rows of a flow, whose name spans them."""
    rows = found.tables[flow]
    for i, row in enumerate(rows):
        name = [Cell(flow, flow=flow, rows=len(rows))] if i == 0 else []
        distance, *others = columns(net)
        away = excess(number(row, distance), flow, net, found)
        cells = [_measured(row, name, 1000 if name.startswith("kid_") else 1)
                 for name in (*others, *more)]  # fmt: skip
        solver = NAMES.get(row["solver"], row["solver"])
        n = f"{int(row['n']):,} × {row['seeds']}"
        yield [*name, Cell(row["nfe"]), Cell(solver), _measured(row, distance),
               Cell(multiple(away)), *cells, Cell(n)]  # fmt: skip


def _measured(row: Row, name: str, scale: float = 1) -> Cell:
    return _cell(number(row, name) * scale, number(row, f"{name}_std") * scale)


def _cell(value: float, std: float) -> Cell:
    return Cell(short(value), spread(std) if math.isfinite(value) else "")


def properties(found: Results) -> Table:
    """How straight the paths of a flow are, and what its inverse does to real images."""
    shape = next(iter(found.models.values())).metadata["architecture"]["shape"]
    head = ["", "straightness", "noise constancy", "1 to 100 steps", "round trip", "noise size",
            "its std. dev.", "correlation"]  # fmt: skip
    more = {"transport": "transport", "flip_error": "flip error"}  # absent from older metrics
    more = {key: title for key, title in more.items() if _measures(key, found)}
    head += more.values()
    ideal = [
        "Gaussian noise (ideal)",
        "0",
        "0",
        "0",
        "0",
        "1",
        short(math.sqrt(2 / math.prod(shape)), 3),
        "0",
    ]
    ideal += [""] * len(more)
    rows = [[Cell(text) for text in ideal]]
    for flow, m in found.metrics.items():
        noise = m["noise"]
        numbers = (m["straightness"], m["eps_constancy"], m["step_gap"], m["round_trip"],
                   noise["norm2"], noise["norm2_std"], noise["correlation"],
                   *(m.get(key) for key in more))  # fmt: skip
        rows.append([Cell(flow, flow=flow), *(Cell(short(value, 3)) for value in numbers)])
    return Table(head, [Group("", rows)])


def costs(found: Results) -> Table:
    """Parameters, speed and budget of each flow, with what the budget was spent on."""
    counted = _measures("macs", found)
    head = ["", "parameters", *(["million MACs"] if counted else []), "images/s", "budget",
            "spent on", "with its ancestors"]  # fmt: skip
    rows = []
    for flow, m in found.metrics.items():
        rows.append([
            Cell(flow, flow=flow),
            Cell(f"{found.models[flow].parameters:,}"),
            *([Cell(_millions(m.get("macs")))] if counted else []),
            Cell(short(m["images_per_second_nfe1"], 4)),
            Cell(f"{m['budget']:,}"),
            Cell(spent_on(flow, found.config, m["budget"])),
            Cell(f"{m['budget_with_ancestors']:,}"),
        ])  # fmt: skip
    return Table(head, [Group("", rows)])


def _measures(name: str, found: Results) -> bool:
    """Whether some flow has a metric."""
    return any(name in m for m in found.metrics.values())


def _millions(count: int | None) -> str:
    return short(None if count is None else count / 1e6)


def spent_on(flow: str, config: Params, budget: int) -> str:
    """A budget in words."""
    recipe = config.recipe_of(flow)
    if not recipe.steps:
        return "nothing here: " + ("an import" if config.is_imported(flow) else "as it was")
    training = recipe.forwards * recipe.steps * recipe.batch
    words = f"{training:,} for {recipe.steps:,} updates of {plural(recipe.batch, 'image')}"
    made = [name for name in config.sets_of(flow) if name != IMAGES]
    if made and budget > training:
        words += f", {budget - training:,} for {' and '.join(made)}"
    return words


def rankings(found: Results) -> list[tuple[str, float]]:
    """How far each other feature net ranks the rows as the first does (Spearman's correlation);
    empty for one net."""
    first, *others = found.config.features.nets
    rows = [row for of_flow in found.tables.values() for row in of_flow]
    return [(DISTANCES[net], _spearman(_column(first, rows), _column(net, rows)))
            for net in others]  # fmt: skip


def _column(net: str, rows: Sequence[Row]) -> list[float]:
    return [number(row, DISTANCES[net]) for row in rows]


def _spearman(a: list[float], b: list[float]) -> float:
    from scipy.stats import spearmanr

    if len(a) < 2:
        return math.nan
    result: Any = spearmanr(a, b)
    return float(result.statistic)
