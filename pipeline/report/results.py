"""What the stages left of a run, read from their outs."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from pipeline import artifacts
from rfpp_core.config.params import Params
from rfpp_core.errors import UserError
from rfpp_core.evaluation.distances import DISTANCES
from rfpp_core.sampling.solver_table import ADAPTIVE, SEARCHED
from rfpp_core.storage import checkpoint

Row = dict[str, str]  # a line of a CSV


class Model(NamedTuple):
    """Of a model file: its metadata, and how many numbers its weights are."""

    metadata: dict[str, Any]
    parameters: int


class Results(NamedTuple):
    """A run: its params, what was measured of every flow by name, and the real images."""

    config: Params
    tables: dict[str, list[Row]]
    losses: dict[str, list[Row]]
    metrics: dict[str, Any]
    models: dict[str, Model]
    real: dict[str, Any]  # data/reference.npz
    summary: dict[str, Any]  # data/summary.json
    accuracy: float | None  # of the metrics' classifier, on held-out images

    @property
    def flows(self) -> list[str]:
        return list(self.config.flows)

    @property
    def primary(self) -> str:
        """The distance of the first feature net."""
        return DISTANCES[self.config.features.nets[0]]

    @property
    def class_names(self) -> list[str]:
        return [str(found["name"]) for found in self.summary["classes"]]

    def floor(self, net: str, flow: str | None = None) -> float:
        """The distance of a bootstrap of the training images to all of them; of a flow between
        two sets of images, to those of its target alone."""
        if flow and self.config.domains_of(flow):
            of_target: float = self.metrics[flow][DISTANCES[net]]["floor"]
            return of_target
        return float(self.real[f"{net}/floor"][:, 0].mean())

    def at(self, flow: str, net: str, nfe: int) -> float:
        """A flow's distance at a number of evaluations; NaN if it was not measured."""
        found = (number(row, DISTANCES[net]) for row in self.tables[flow]
                 if row["solver"] not in (ADAPTIVE, SEARCHED)
                 and int(row["nfe"]) == nfe)  # fmt: skip
        return next(found, float("nan"))


def read(config: Params) -> Results:
    """Reads the results of a run.

    Raises:
        UserError: if a stage has not run yet, as `dvc repro --downstream` may leave it.
    """
    flows = list(config.flows)
    made = [path for flow in flows for path in (artifacts.table(flow), artifacts.metrics(flow))]
    if lost := [path for path in (artifacts.REFERENCE, *made) if not path.exists()]:
        raise UserError(
            f"{lost[0]} is missing; run `dvc repro`, which makes what the report needs"
        )
    features = checkpoint.load(artifacts.FEATURES).metadata
    return Results(
        config=config,
        tables={flow: _csv(artifacts.table(flow)) for flow in flows},
        losses={flow: _csv(artifacts.loss_curve(flow)) for flow in flows},
        metrics={flow: json.loads(artifacts.metrics(flow).read_text()) for flow in flows},
        models={flow: _model(artifacts.model(flow)) for flow in flows},
        real=dict(np.load(artifacts.REFERENCE)),
        summary=json.loads(artifacts.SUMMARY.read_text()),
        accuracy=features.get("held_out_accuracy"),
    )


def number(row: Row, name: str) -> float:
    """A cell as a number; NaN if there is none."""
    return float(row.get(name) or "nan")


def _csv(path: Path) -> list[Row]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def _model(path: Path) -> Model:
    loaded = checkpoint.load(path)
    return Model(loaded.metadata, sum(t.numel() for t in loaded.tensors.values()))
