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
    from pipeline.bench.probe import DataShape, prepared_data

    if bench.prepared(config):
        return prepared_data(artifacts.IMAGES)
    shape = bench.shape_of(config)
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
    from pipeline.bench import forecast

    factor, values = forecast.fitting(config, rows, 3600 * hours)
    if not values:
        return f"{hours:g} hours: no steps and pairs fill them, the rest of the run takes longer"
    said = " ".join(f"{name}={value}" for name, value in values.items())
    return f"in {hours:g} hours ({factor:.2g} times as much): {said}"


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
