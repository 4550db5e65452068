"""``rfpp plan``: hours, disk, memory and network evaluations of a run, before it is started."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline import artifacts, stage_log
from pipeline.cli import bench
from rfpp_core import runtime
from rfpp_core.config import params
from rfpp_core.errors import UserError
from rfpp_core.storage import files

if TYPE_CHECKING:
    from pipeline.bench.forecast import Row
    from pipeline.bench.probe import DataShape
    from rfpp_core.config.params import Params

SIZES = {"digits": (1438, 359, 10), "cifar10": (50_000, 10_000, 10)}  # train, held out, classes


@runtime.enough_memory("free the device, or lower the sizes in params.yaml")
def plan(
    hours: Annotated[
        float | None, typer.Option(help="also: steps and pairs that take this long in all")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="JSON file to write as well")] = None,
) -> None:
    """Forecasts the run of params.yaml on this machine, from nothing.

    Probes the rates, for a minute where the networks are small.  Do nothing else on the machine
    meanwhile.
    """
    if hours is not None and not 0 < hours < 1e6:
        raise UserError(f"--hours is {hours}; it must be above 0 and below a million")
    config = params.load()
    data = _data(config)
    artifacts.library_caches()
    from pipeline.bench import forecast, probe

    rows = list(forecast.rows(probe.Probe(config, data)))
    print(f"on {stage_log.machine()}, {runtime.device()}:\n")
    print(*_table(rows), sep="\n")
    if hours is not None:
        print(f"\n{_scaled(config, rows, hours)}")
    if out is not None:
        document = {"machine": stage_log.machine(), "rows": [row._asdict() for row in rows]}
        files.write_json(out, document)


def _data(config: Params) -> DataShape:
    """The images of the run: as prepared, or as their name says."""
    from pipeline.bench.probe import DataShape
    from rfpp_core.images import store

    shape = bench.shape_of(config)
    if bench.prepared(config):
        found = store.metadata(artifacts.IMAGES)
        counts = [store.count(artifacts.IMAGES, split) for split in ("train", "held_out")]
        return DataShape(shape, counts[0], counts[1], found["classes"])
    if config.dataset.name not in SIZES:
        raise UserError("the images are not known yet; run `dvc repro prepare` first")
    train, held_out, classes = SIZES[config.dataset.name]
    share = min(1.0, (config.dataset.limit or train + held_out) / (train + held_out))
    return DataShape(shape, round(share * train), round(share * held_out), classes)


def _table(rows: list[Row]) -> list[str]:
    lines = [f"{'stage':<28}{'time':>10}{'evaluations':>16}{'disk':>10}"]
    for row in rows:
        name = f"{row.stage}@{row.name}" if row.name else row.stage
        lines.append(f"{name:<28}{_time(row.seconds):>10}{row.forwards or '':>16}"
                     f"{_size(row.disk):>10}  {row.note}".rstrip())  # fmt: skip
    seconds, disk = sum(row.seconds for row in rows), sum(row.disk for row in rows)
    forwards = sum(row.forwards for row in rows)
    return [*lines, f"{'in all':<28}{_time(seconds):>10}{forwards:>16}{_size(disk):>10}"]


def _scaled(config: Params, rows: list[Row], hours: float) -> str:
    """Steps and pairs by one factor, so that all takes ``hours``; evaluation stays as it is."""
    varied = sum(row.varies for row in rows)
    left = 3600 * hours - sum(row.seconds for row in rows) + varied
    if left <= 0 or not varied:
        return f"{hours:g} hours: no steps and pairs fill them, the rest of the run takes longer"
    factor, parts = left / varied, []
    for name, recipe in config.recipes.items():
        if recipe.steps:
            parts.append(f"recipes.{name}.steps={max(1, round(factor * recipe.steps))}")
    for name, pairs in config.pairs.items():
        if pairs.n:
            shards = max(1, round(factor * pairs.n / pairs.shard))
            parts.append(f"pairs.{name}.n={shards * pairs.shard}")
    return f"in {hours:g} hours ({factor:.2g} times as much): {' '.join(parts)}"


def _time(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _size(count: float) -> str:
    for unit in ("", "KB", "MB"):
        if count < 1000:
            return f"{count:.3g} {unit}" if count else ""
        count /= 1000
    return f"{count:.3g} GB"
