"""``rfpp bench``: measures what a run spends its time on, beside references, on this machine."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipeline import artifacts, stage_log
from rfpp_core.config import params
from rfpp_core.errors import UserError, quoted
from rfpp_core.storage import files

if TYPE_CHECKING:
    from pipeline.bench.measure import Figure
    from rfpp_core.config.params import Params

SHAPES = {"digits": (1, 8, 8), "cifar10": (3, 32, 32)}  # of images before `prepare` ran


def bench(
    name: Annotated[
        str, typer.Argument(help="noise, loader, scale, step, generate, evaluate or gpu")
    ],
    out: Annotated[Path | None, typer.Option(help="JSON file to write as well")] = None,
    minutes: Annotated[float, typer.Option(help="that gpu may take")] = 30,
) -> None:
    """Measures speed: figures beside their reference, taken in turns in this one process.

    gpu does all that a device shows, and fills the rest of its minutes with the run of
    params.yaml, with as many steps and pairs as fit.

    The column x is the ratio to the first figure of a group; of a step, to the whole step.  Do
    nothing else on the machine meanwhile.
    """
    if name not in BENCHES:
        raise UserError(f"there is no bench '{quoted(name)}'; there are {', '.join(BENCHES)}")
    if not 0 < minutes < 1e6:
        raise UserError(f"--minutes is {minutes}; it must be above 0 and below a million")
    artifacts.library_caches()
    figures = BENCHES[name](minutes)
    from pipeline.bench import measure

    print(*measure.lines(figures), sep="\n")
    if out is not None:
        document = {"bench": name, "machine": stage_log.machine(),
                    "date": time.strftime("%Y-%m-%d"),
                    "figures": [figure._asdict() for figure in figures]}  # fmt: skip
        files.write_json(out, document)


def _measured(name: str, minutes: float) -> list[Figure]:
    """The figures of a module of ``pipeline.bench``; some are of the run of params.yaml."""
    module: Any = import_module(f"pipeline.bench.{name}")
    given: tuple[Any, ...] = ()
    if name in OF_A_RUN:
        config = params.load()
        given = (config, minutes) if name == "gpu" else (config, shape_of(config))
    found: list[Figure] = module.run(*given)
    return found


OF_A_RUN = ("step", "generate", "evaluate", "gpu")
BENCHES: dict[str, Callable[[float], list[Figure]]] = {
    name: partial(_measured, name) for name in ("noise", "loader", "scale", *OF_A_RUN)
}


def shape_of(config: Params) -> tuple[int, int, int]:
    """Shape (C, H, W) of the images of a run, before or after they are prepared.

    Raises:
        UserError: if it is not known yet.
    """
    from rfpp_core.images import store

    dataset = config.dataset
    if prepared(config):
        channels, height, width = store.metadata(artifacts.IMAGES)["shape"]
        return channels, height, width
    if dataset.resolution:
        return dataset.channels, dataset.resolution, dataset.resolution
    if dataset.name not in SHAPES:
        raise UserError("the images' size is not known yet; run `dvc repro prepare` first")
    return SHAPES[dataset.name]


def prepared(config: Params) -> bool:
    """Whether the image store holds the run's images, and not those of other params."""
    from rfpp_core.images import store

    if not artifacts.IMAGES.exists():
        return False
    found, dataset = store.metadata(artifacts.IMAGES), config.dataset
    channels, side, _ = found["shape"]
    return (found["name"], channels) == (dataset.name, dataset.channels) and (
        dataset.resolution in (None, side)
    )
