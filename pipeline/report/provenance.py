"""Where and how long a run was made: stage times, machine, revision."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from typing import NamedTuple

from pipeline import stage_log
from pipeline.report.numbers import duration, plural
from pipeline.report.tables import Cell, Group, Table
from pipeline.stage_log import Run
from rfpp_core.config.params import Params

ROWS = {"network": "networks", "generate": "pairs", "train": "flows", "evaluate": "flows"}
NAMED = 3  # changed files that are named


class Took(NamedTuple):
    """How long the work of a stage took, over its runs; the machine is the last one's."""

    stage: str
    row: str
    seconds: float
    runs: int
    resumed: bool
    machine: str


def took(config: Params, runs: Sequence[Run]) -> list[Took]:
    """Of each stage of these params that finished here, by its newest run.

    Runs that share staged work are added up: one that was interrupted, one that resumed, one that
    found all done.
    """
    found = []
    for stage, row in _stages(config):
        own = [run for run in runs if (run.stage, run.row) == (stage, row)]
        last = next((run for run in reversed(own) if run.finished), None)
        if last is not None:
            same = [run for run in runs if run.stage == stage and run.work == last.work]
            parts = same if last.work else [last]
            seconds = sum(run.seconds for run in parts)
            found.append(Took(stage, row, seconds, len(parts), last.resumed, last.machine))
    return found


def _stages(config: Params) -> list[tuple[str, str]]:
    """Stages with their rows, about as they run."""
    rows = {"networks": [*config.networks], "pairs": [*config.pairs], "flows": [*config.flows]}
    plain = [(stage, "") for stage in ("source", "preflight", "prepare", "reference")]
    return plain + [(stage, row) for stage, section in ROWS.items() for row in rows[section]]


def times(config: Params, runs: Sequence[Run]) -> Table | None:
    """The table of stage times; None where nothing was recorded."""
    found = took(config, runs)
    if not found:
        return None
    several = len(_distinct(found)) > 1
    rows = []
    for one in found:
        note = f"in {plural(one.runs, 'run')}" if one.runs > 1 else ""
        if one.resumed and one.runs == 1:
            note = "found earlier work, whose time was not recorded"
        flow = one.row if one.row in config.flows else ""
        cells = [
            Cell(one.stage),
            Cell(one.row, flow=flow),
            Cell(duration(one.seconds)),
            Cell(note),
        ]
        rows.append([*cells, *([Cell(one.machine)] if several else [])])
    total = [Cell("all"), Cell(""), Cell(duration(sum(one.seconds for one in found))), Cell("")]
    rows.append([*total, *([Cell("")] if several else [])])
    head = ["stage", "row", "time", "", *(["machine"] if several else [])]
    return Table(head, [Group("", rows)])


def machines(config: Params, runs: Sequence[Run]) -> str:
    """The machines of the recorded stages; this one where none was recorded."""
    return (
        "; ".join(_distinct(took(config, runs)))
        or f"{stage_log.machine()} (where this report was written)"
    )


def _distinct(found: Sequence[Took]) -> list[str]:
    """Machines, but those of which another says more: a stage that used no GPU, or no torch."""
    every = dict.fromkeys(one.machine for one in found)
    return [one for one in every if not any(one in other for other in every if other != one)]


def revision() -> str:
    """The git revision, and what differs from it, apart from DVC's lock file."""
    commit = _git("rev-parse", "--short=12", "HEAD")
    if commit is None:
        return "not under git"
    status = _git("status", "--porcelain", "--untracked-files=no", "--", ".", ":!dvc.lock") or ""
    changed = [line[3:] for line in status.splitlines()]
    if not changed:
        return commit
    more = f" and {len(changed) - NAMED} more" if len(changed) > NAMED else ""
    return f"{commit}, with changes in {', '.join(changed[:NAMED])}{more}"


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", *arguments], capture_output=True, text=True, timeout=20,
                              check=False, errors="replace")  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.rstrip("\n") if done.returncode == 0 else None
