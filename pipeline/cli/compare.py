"""``rfpp compare``: what holds over training seeds, from DVC's experiments.

    dvc exp run --queue -S 'seed=range(1,6)' && dvc queue start     # one experiment a seed
    rfpp compare --to flow2

Compared are the experiments whose params are those of params.yaml but for the seed.  Flows of one
seed share teacher, pairs, initial weights and order, so their differences are paired.  A flow is
called better or worse only where the 95 % t-interval of its paired differences excludes 0.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import typer
from numpy.typing import NDArray
from scipy import stats

from pipeline import artifacts, console
from rfpp_core.config import params
from rfpp_core.config.params import Params
from rfpp_core.errors import UserError, quoted
from rfpp_core.evaluation.distances import DISTANCES
from rfpp_core.storage import files

Values = NDArray[np.float64]
LEAST = 2  # seeds, for an interval
SHOWN = 3  # params that differ, in a message


class Experiment(NamedTuple):
    """A finished run: its params, and its metrics by flow."""

    name: str
    params: Params
    metrics: dict[str, dict[str, Any]]

    @property
    def seed(self) -> int:
        """Of its trainings and noise."""
        return self.params.seed


def compare(
    to: Annotated[
        str | None, typer.Option(help="flow to compare the others with [the second]")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Markdown file to write as well")] = None,
    rev: Annotated[
        str, typer.Option(help="Git revision that the experiments started from")
    ] = "HEAD",
) -> None:
    """Compares flows over training seeds.

    Reads DVC's experiments; prints distances and paired differences with 95 % t-intervals.
    """
    config = params.load()
    flows = list(config.flows)
    baseline = to or flows[min(1, len(flows) - 1)]
    if baseline not in flows:
        raise UserError(f"--to is '{quoted(baseline)}'; the flows of params.yaml are "
                        f"{', '.join(flows)}")  # fmt: skip
    found = experiments(rev)
    chosen = same_but_for_the_seed(found, config)
    if len(chosen) < LEAST:
        raise UserError(too_few(found, chosen, config))
    text = "\n".join(report(config, chosen, baseline)) + "\n"
    print(text, end="")
    if out is not None:
        files.write_atomic(out, lambda part: part.write_text(text))


def experiments(rev: str) -> list[Experiment]:
    """The finished experiments of a revision, newest first; then the workspace and the revision.

    Raises:
        UserError: if DVC or Git cannot show them.
    """
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    try:
        with Repo() as repo:
            shown = repo.experiments.show(revs=[rev], hide_queued=True, hide_failed=True)
            runs = [run.revs[0] for state in shown for run in state.experiments or [] if run.revs]
            read = [_read(state) for state in (*runs, *shown) if _is_current(repo, state.rev)]
    except DvcException as error:
        raise UserError(f"DVC cannot show the experiments of '{quoted(rev)}': "
                        f"{console.one_line(error)}") from None  # fmt: skip
    return [experiment for experiment in read if experiment is not None]


def _is_current(repo: Any, rev: str) -> bool:
    """Whether all stages of a revision ran with its params.

    Params may be edited after a run, and a run may still be under way or be of some stages only:
    then the metrics there are of other params.
    """
    from dvc.dependency import ParamsDependency

    with repo.switch(rev):
        deps = (dep for stage in repo.index.stages for dep in stage.deps)
        return not any(dep.status() for dep in deps if isinstance(dep, ParamsDependency))


def _read(state: Any) -> Experiment | None:
    """An experiment, or None if its params are not of this version or metrics are missing."""
    if state.data is None:
        return None
    try:
        config = params.parse(_data(state.data.params.get(str(artifacts.PARAMS))))
    except UserError:
        return None
    metrics = {
        flow: _data(state.data.metrics.get(str(artifacts.metrics(flow)))) for flow in config.flows
    }
    complete = all(_has_numbers(config, found) for found in metrics.values())
    return Experiment(state.name or state.rev, config, metrics) if complete else None


def _data(entry: Any) -> dict[str, Any]:
    """The content of a params or metrics file as DVC hands it out."""
    data = entry.get("data") if isinstance(entry, Mapping) else getattr(entry, "data", None)
    return dict(data) if isinstance(data, Mapping) else {}


def _has_numbers(config: Params, metrics: Mapping[str, Any]) -> bool:
    """Whether metrics hold every number that :func:`report` needs."""
    found = metrics.get(DISTANCES[config.features.nets[0]])
    keys = ["floor", "held_out", f"nfe{config.evaluate.many_nfe}", *_keys(config)]
    values = [found.get(key) for key in keys] if isinstance(found, Mapping) else [None]
    values.append(metrics.get("budget_with_ancestors"))
    return all(isinstance(value, int | float) and math.isfinite(value) for value in values)


def _keys(config: Params) -> list[str]:
    """The metrics that are compared."""
    return [f"nfe{nfe}" for nfe in config.evaluate.nfe]


def same_but_for_the_seed(found: Iterable[Experiment], config: Params) -> list[Experiment]:
    """The experiments of these params, by seed; the first of each seed."""
    chosen: dict[int, Experiment] = {}
    for experiment in found:
        if not differences(experiment.params, config):
            chosen.setdefault(experiment.seed, experiment)
    return [chosen[seed] for seed in sorted(chosen)]


def differences(one: Params, other: Params) -> list[str]:
    """The params that differ, but the seed, by dotted name."""
    a, b = (
        dict(_leaves(config.model_dump(mode="json", exclude={"seed"}))) for config in (one, other)
    )
    return [name for name in (a | b) if (name in a, a.get(name)) != (name in b, b.get(name))]


def _leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if not isinstance(value, dict):
        yield path, value
        return
    for key, inner in value.items():
        yield from _leaves(inner, f"{path}.{key}" if path else key)


def too_few(found: Sequence[Experiment], chosen: Sequence[Experiment], config: Params) -> str:
    """Why there is nothing to compare, and what to do."""
    there = f"seed {chosen[0].seed} alone" if chosen else "no seed"
    line = (f"an interval needs complete results of {LEAST} seeds or more, and there are those of "
            f"{there} with these params; `dvc exp run --queue -S 'seed=range(1,6)'` and "
            f"`dvc queue start` make five")  # fmt: skip
    others = [experiment for experiment in found if differences(experiment.params, config)]
    if not others:
        return line
    names = differences(others[0].params, config)
    more = ", ..." if len(names) > SHOWN else ""
    return (f"{line}; {len(others)} other results differ in more than the seed (the first in "
            f"{', '.join(names[:SHOWN])}{more})")  # fmt: skip


def report(config: Params, chosen: Sequence[Experiment], baseline: str) -> Iterator[str]:
    """The tables, in Markdown: distances and ratios of excesses, then paired differences."""
    name = DISTANCES[config.features.nets[0]]
    few, many = list(config.evaluate.nfe), f"nfe{config.evaluate.many_nfe}"
    keys = _keys(config)

    def column(flow: str, key: str) -> Values:
        return np.array([experiment.metrics[flow][name][key] for experiment in chosen])

    floor = column(baseline, "floor")
    seeds = ", ".join(str(experiment.seed) for experiment in chosen)
    yield (f"{len(chosen)} training seeds ({seeds}): {name} to the training split, n = "
           f"{config.evaluate.n}. Brackets are 95 % t-intervals of the mean over "
           f"seeds.")  # fmt: skip
    yield ""
    yield (f"Floor (training images, bootstrapped) {floor.mean():.3g}, held-out images "
           f"{column(baseline, 'held_out').mean():.3g}. Ratio: excess over the floor as a "
           f"multiple of the teacher's at {config.evaluate.many_nfe} NFE.")  # fmt: skip
    yield ""
    yield _row("flow", *(f"{nfe} NFE" for nfe in few), *(f"ratio at {nfe}" for nfe in few),
               "budget with ancestors")  # fmt: skip
    yield _rule(2 * len(few) + 2)
    for flow in config.flows:
        teacher = config.teacher_of(flow)
        excess = column(teacher, many) - floor if teacher else np.zeros(1)
        ratios = [interval((column(flow, key) - floor) / excess) if excess.min() > 0 else ""
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
