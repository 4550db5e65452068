"""All that a device shows in some minutes: the other benches, then as long a run as fits.

The run is that of params.yaml with steps and pairs by one factor, in a folder of its own, whose
report stays there.  Interrupted, it is begun again, and what it finished is found by identity.
"""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import yaml

from pipeline import artifacts
from pipeline.bench import evaluate, forecast, generate, loader, measure, noise, step
from pipeline.bench.measure import Figure
from pipeline.bench.probe import DataShape, Probe, prepared_data
from rfpp_core.config.params import Params, parse
from rfpp_core.errors import UserError

LOADER_N = 5120  # pairs of the loader's bench
ROOT = Path(__file__).parents[2]  # of this code


def run(params: Params, minutes: float) -> list[Figure]:
    """Figures of the other benches, and the distances of every flow of the run.

    Args:
        params: of the run.
        minutes: that all may take.

    Raises:
        UserError: if the run does not fit, however few its steps and pairs, or a stage fails.
    """
    began = time.monotonic()
    folder = artifacts.work() / "bench"
    _write(folder, params)
    for stage in ("source", "preflight", "prepare"):
        _stage(folder, stage)
    data = prepared_data(folder / artifacts.IMAGES)
    figures = [*noise.run(), *loader.run(LOADER_N), *step.run(params, data.shape),
               *generate.run(params, data.shape),
               *evaluate.run(params, data.shape, params.evaluate.n)]  # fmt: skip
    print(*measure.lines(figures), sep="\n", flush=True)  # whatever becomes of the run
    scaled = _fitting(params, data, began + 60 * minutes)
    _write(folder, scaled)
    gc.collect()
    torch.cuda.empty_cache()  # the stages are processes of their own, which need the memory
    for stage, name in order(scaled):
        _stage(folder, stage, *name)
    print(f"the run's report: {folder / artifacts.REPORT / 'index.html'}")
    return [*figures, *_distances(folder, scaled)]


def _fitting(params: Params, data: DataShape, end: float) -> Params:
    """The params whose run ends in time."""
    rows = list(forecast.rows(Probe(params, data)))
    left = end - time.monotonic()
    factor, values = forecast.fitting(params, rows, left)
    if not values:
        fixed = sum(row.seconds - row.varies for row in rows)
        raise UserError(f"{max(0.0, left) / 60:.1f} minutes are left for the run, which takes "
                        f"{fixed / 60:.1f} without any steps and pairs; give --minutes more, or "
                        f"lower evaluate.n")  # fmt: skip
    print(f"a run of {left / 60:.1f} minutes ({factor:.2g} times as much): {values}")
    document = params.model_dump(mode="json")
    for name, value in values.items():
        section, row, key = name.split(".")
        document[section][row][key] = value
    return parse(document)


def _write(folder: Path, params: Params) -> None:
    """The params, for a folder from which relative paths lead elsewhere."""
    document = params.model_dump(mode="json")
    dataset = document["dataset"]
    places = [(dataset, "path"), (document["features"], "inception_path")]
    if dataset["labels"] not in ("folders", "none"):
        places.append((dataset, "labels"))
    places += [(row, "checkpoint") for row in document["networks"].values()]
    places += [(row, "path") for row in document["pairs"].values()]
    places += [(row["loss"], "vgg_path") for row in document["recipes"].values()]
    for place, key in places:
        place[key] = place[key] and str(Path(place[key]).absolute())
    folder.mkdir(parents=True, exist_ok=True)
    (folder / artifacts.PARAMS).write_text(yaml.safe_dump(document, sort_keys=False))


def order(params: Params) -> Iterator[tuple[str, tuple[str, ...]]]:
    """The stages after ``prepare``, each with its row, after all that it needs."""
    yield "preflight", ()  # of the steps and pairs of this run
    yield "reference", ()
    for name in params.networks:
        yield "network", (name,)
    there = {"images", *params.networks}
    left: dict[str, tuple[str, set[str]]] = {
        name: ("generate", {row.teacher} if row.source != "import" else set())
        for name, row in params.pairs.items()
    }
    left |= {name: ("train", {row.start, row.data, row.mix}) for name, row in params.flows.items()}
    while ready := [name for name, (_, needs) in left.items() if needs <= there]:
        for name in ready:
            yield left.pop(name)[0], (name,)
        there |= set(ready)
    for name in params.flows:
        yield "evaluate", (name,)
    yield "report", ()


def _stage(folder: Path, stage: str, *name: str) -> None:
    paths = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    command = [sys.executable, "-m", f"pipeline.stages.{stage}", *name]
    done = subprocess.run(command, cwd=folder, env=os.environ | {"PYTHONPATH": paths})
    if done.returncode:
        raise UserError(f"{'@'.join((stage, *name))} of the run in {folder} failed; see above")


def _distances(folder: Path, params: Params) -> list[Figure]:
    found = []
    for flow in params.flows:
        metrics: dict[str, Any] = json.loads((folder / artifacts.metrics(flow)).read_text())
        for name, values in metrics.items():
            if name.startswith(("fd_", "fid")):
                found += [Figure(f"{name} of the run", f"{flow} {key}", value, "")
                          for key, value in values.items() if value is not None]  # fmt: skip
    return found
