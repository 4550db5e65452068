"""``rfpp compare``: what holds over training seeds, from DVC's experiments.

    dvc exp run --queue -S 'seed=range(1,6)' && dvc queue start     # one experiment a seed
    rfpp compare --to flow2

Flows of one seed share teacher, pairs, initial weights and order, so their differences are paired.
A flow is called better or worse only where the 95 % t-interval of its paired differences excludes
0.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import typer
from numpy.typing import NDArray
from scipy import stats

from pipeline import artifacts
from rfpp_core.config import params
from rfpp_core.errors import UserError
from rfpp_core.evaluation.distances import DISTANCES
from rfpp_core.storage import files

Values = NDArray[np.float64]
LEAST = 2  # seeds, for an interval


class Experiment(NamedTuple):
    """One run: its training seed, its params but the seed, and its metrics by flow."""

    name: str
    seed: int
    rest: str
    metrics: dict[str, dict[str, Any]]


def compare(
    to: Annotated[str | None, typer.Option(help="flow to compare with [the second]")] = None,
    out: Annotated[Path | None, typer.Option(help="Markdown file to write as well")] = None,
    rev: Annotated[str, typer.Option(help="whose experiments")] = "HEAD",
) -> None:
    """Prints paired differences and intervals over the seeds of DVC's experiments."""
    config = params.load()
    flows = list(config.flows)
    baseline = to or flows[min(1, len(flows) - 1)]
    if baseline not in flows:
        raise UserError(f"--to is {baseline}; the flows of params.yaml are {', '.join(flows)}")
    chosen = same_but_for_the_seed(experiments(rev, flows))
    if len(chosen) < LEAST:
        raise UserError(
            f"there are complete results of {len(chosen)} seed(s) of these params; `dvc exp run "
            f"--queue -S 'seed=range(1,6)'` and `dvc queue start` make five"
        )
    text = "\n".join(report(config, chosen, baseline)) + "\n"
    print(text, end="")
    if out is not None:
        files.write_atomic(out, lambda part: part.write_text(text))


def experiments(rev: str, flows: Sequence[str]) -> list[Experiment]:
    """The experiments of a revision that have metrics of all flows, and the revision's own."""
    from dvc.repo import Repo

    with Repo() as repo:
        shown = repo.experiments.show(revs=[rev], hide_queued=True, hide_failed=True)
    found = []
    for state in shown:
        ranges = state.experiments or []
        found += [_read(state, flows), *(_read(e.revs[0], flows) for e in ranges if e.revs)]
    return [experiment for experiment in found if experiment is not None]


def _read(state: Any, flows: Sequence[str]) -> Experiment | None:
    """An experiment, or None where it has no metrics of some flow."""
    if state.data is None:
        return None
    metrics = {flow: _data(state.data.metrics.get(str(artifacts.metrics(flow)))) for flow in flows}
    given = _data(state.data.params.get(str(artifacts.PARAMS)))
    if given is None or not all(metrics.values()):
        return None
    seed = given.pop("seed", 0)
    rest = json.dumps(given, sort_keys=True, default=str)
    return Experiment(state.name or state.rev, seed, rest, metrics)  # type: ignore[arg-type]


def _data(entry: Any) -> dict[str, Any] | None:
    """The content of a params or metrics file as DVC hands it out."""
    data = entry.get("data") if isinstance(entry, Mapping) else getattr(entry, "data", None)
    return dict(data) if data else None


def same_but_for_the_seed(found: Iterable[Experiment]) -> list[Experiment]:
    """The experiments of the params that most seeds were run with, a seed once, by seed."""
    groups: dict[str, dict[int, Experiment]] = {}
    for experiment in found:
        groups.setdefault(experiment.rest, {})[experiment.seed] = experiment
    most = max(groups.values(), key=len, default={})
    return [most[seed] for seed in sorted(most)]


def report(
    config: params.Params, chosen: Sequence[Experiment], baseline: str
) -> Iterable[str]:
    """The table, in Markdown: distances and ratios of excesses, then paired differences."""
    name = DISTANCES[config.features.nets[0]]
    few, many = list(config.evaluate.nfe), f"nfe{config.evaluate.many_nfe}"
    keys = [f"nfe{nfe}" for nfe in few]

    def column(flow: str, key: str) -> Values:
        return np.array([experiment.metrics[flow][name][key] for experiment in chosen])

    floor = column(baseline, "floor")
    yield f"{len(chosen)} training seeds ({', '.join(str(e.seed) for e in chosen)}), {name} to the"
    yield f"training split, n = {config.evaluate.n}. Brackets are 95 % t-intervals of the mean."
    yield f"Floor (bootstrap of the training images) {floor.mean():.3g}, held-out images "
    yield f"{column(baseline, 'held_out').mean():.3g}."
    yield ""
    yield "Ratio: excess over the floor as a multiple of the teacher's at " + many[3:] + " NFE."
    yield ""
    yield _row("flow", *(f"{nfe} NFE" for nfe in few), *(f"ratio at {nfe}" for nfe in few),
               "budget with ancestors")  # fmt: skip
    yield _rule(2 * len(few) + 2)
    for flow in config.flows:
        teacher = config.teacher_of(flow)
        excess = column(teacher, many) - floor if teacher else None
        ratios = ["" if excess is None else interval((column(flow, key) - floor) / excess)
                  for key in keys]  # fmt: skip
        budget = f"{chosen[0].metrics[flow]['budget_with_ancestors']:,}"
        yield _row(flow, *(interval(column(flow, key)) for key in keys), *ratios, budget)
    others = [flow for flow in config.flows if flow != baseline
              and config.teacher_of(flow) == config.teacher_of(baseline)]  # fmt: skip
    if others:
        yield ""
        yield f"Paired differences to {baseline} (positive: worse than {baseline}):"
        yield ""
        yield _row("flow", *(f"{nfe} NFE" for nfe in few))
        yield _rule(len(few) + 1)
    for flow in others:
        gaps = [column(flow, key) - column(baseline, key) for key in keys]
        yield _row(flow, *(f"{interval(gap)}: {verdict(gap)}" for gap in gaps))


def _row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def _rule(columns: int) -> str:
    return "|" + "---|" * columns


def half_width(values: Values) -> float:
    """Of the 95 % t-interval of the mean."""
    quantile = stats.t.ppf(0.975, len(values) - 1)
    return float(quantile * values.std(ddof=1) / np.sqrt(len(values)))


def interval(values: Values) -> str:
    """Mean and 95 % t-interval."""
    mean, half = values.mean(), half_width(values)
    return f"{mean:.3g} [{mean - half:.3g}, {mean + half:.3g}]"


def verdict(gaps: Values) -> str:
    """Better or worse only where the interval excludes 0."""
    mean, half = gaps.mean(), half_width(gaps)
    if abs(mean) <= half:
        return "no difference seen"
    return "worse" if mean > 0 else "better"
