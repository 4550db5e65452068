"""The page of the report: metrics, curves, samples and provenance -> report/index.html.

A page with its pictures beside it that opens without a network.
"""

from __future__ import annotations

import csv
import html
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import yaml

from pipeline import artifacts
from pipeline.report import figures, tables
from pipeline.report.tables import Row
from rfpp_core.config.params import Params
from rfpp_core.config.recipe import Loss
from rfpp_core.evaluation.distances import DISTANCES
from rfpp_core.sampling.solver_table import ADAPTIVE
from rfpp_core.storage import checkpoint, files

STYLE = """
body{font:15px/1.5 system-ui,sans-serif;max-width:62rem;margin:2rem auto;padding:0 1rem;color:#222}
h1{font-size:1.6rem}h2{font-size:1.15rem;margin-top:2.2rem;border-bottom:1px solid #ddd}
table{border-collapse:collapse;font-variant-numeric:tabular-nums}
td,th{padding:.2rem .7rem;text-align:right;border-bottom:1px solid #eee}
td:first-child,th:first-child{text-align:left}td{white-space:nowrap}
img{max-width:100%;image-rendering:pixelated}
figure{display:inline-block;margin:.4rem .8rem .4rem 0}figcaption{color:#666;font-size:.85rem}
pre{background:#f6f6f6;padding:.8rem;overflow:auto;font-size:.8rem}.note{color:#555}
"""



class Results(NamedTuple):
    """What the stages left of every flow, by its name."""

    table: dict[str, list[Row]]
    losses: dict[str, list[Row]]
    metrics: dict[str, Any]
    models: dict[str, dict[str, Any]]  # metadata of the model files
    real: dict[str, Any]  # data/reference.npz


def read(config: Params) -> Results:
    """Reads the results of a run."""
    flows = list(config.flows)
    return Results(
        table={flow: _csv(artifacts.table(flow)) for flow in flows},
        losses={flow: _csv(artifacts.loss_curve(flow)) for flow in flows},
        metrics={flow: json.loads(artifacts.metrics(flow).read_text()) for flow in flows},
        models={flow: checkpoint.load(artifacts.model(flow)).metadata for flow in flows},
        real=dict(np.load(artifacts.REFERENCE)),
    )


def write(config: Params) -> None:
    """Writes the report, which appears complete by a rename."""
    found = read(config)
    building = artifacts.REPORT.with_name(".report.partial")
    shutil.rmtree(building, ignore_errors=True)
    building.mkdir()
    for flow in config.flows:
        shutil.copytree(artifacts.samples(flow), building / flow)
    nets = config.features.nets
    first, primary = next(iter(config.flows)), DISTANCES[nets[0]]
    figures.plot_distance(building / "distance.png", found.table, found.metrics[first], primary)
    figures.plot_losses(building / "loss.png", found.losses)
    figures.plot_times(building / "times.png", config)
    rows = [{"flow": flow, "nfe": row["nfe"], "distance": row["distance"]}
            for flow, of_flow in found.table.items() for row in of_flow]  # fmt: skip
    files.write_csv(building / "distance.csv", rows)
    losses = [{"flow": flow, "step": row["step"], "loss": row["loss"]}
              for flow, of_flow in found.losses.items() for row in of_flow if row["loss"]]
    files.write_csv(building / "loss.csv", losses or [{"flow": first, "step": 0, "loss": ""}])
    (building / "index.html").write_text(_page(config, found))
    files.replace_tree(building, artifacts.REPORT)


def _page(config: Params, found: Results) -> str:
    nets, first = config.features.nets, next(iter(config.flows))
    parts = [
        _summary(config, found.metrics),
        "<h2>Distance by network evaluations (NFE)</h2>",
        *(tables.distances(net, found.table, found.real) + _said_of(net, config) for net in nets),
        _rankings(nets, found.table),
        _picture("distance.png", "lower is better; both axes logarithmic"),
        "<h2>Samples, from the same noise for every flow and NFE</h2>", _samples(found.table),
        "<h2>Trajectories, noise to image in 10 Euler steps</h2>",
        *(_picture(f"{flow}/trajectory.png", flow) for flow in config.flows),
        "<h2>Inversion of real images</h2>",
        tables.inversions(found.metrics, found.models[first]["architecture"]["shape"]),
        "<h2>Straightness, speed and budget</h2>", tables.properties(found.metrics),
        "<h2>Training</h2>",
        _picture("loss.png", "training loss"),
        _picture("times.png", "distribution of the training time t"),
        "<h2>Params</h2>",
        _pre(yaml.safe_dump(config.model_dump(mode="json", exclude_defaults=True),
                            sort_keys=False)),
        "<h2>Provenance</h2>", _pre(json.dumps(
            {flow: doc["provenance"] for flow, doc in found.models.items()}, indent=1)),
    ]  # fmt: skip
    return (f"<!doctype html><html lang=en><meta charset=utf-8><title>rfpp report</title>"
            f"<style>{STYLE}</style>{''.join(parts)}</html>\n")  # fmt: skip


def _summary(config: Params, metrics: dict[str, Any]) -> str:
    """The last flow, beside its teacher where it learned from pairs."""
    last, name = list(config.flows)[-1], DISTANCES[config.features.nets[0]]
    fd, few = metrics[last][name], f"nfe{min(config.evaluate.nfe)}"
    said = (f"<h1>{html.escape(config.dataset.name)}: {html.escape(last)}</h1>"
            f"<p>At {few[3:]} network evaluation(s) {last} lies at {name} <b>{fd[few]:.3g}</b> "
            f"from the training images")  # fmt: skip
    teacher, many = config.teacher_of(last), f"nfe{config.evaluate.many_nfe}"
    if teacher is None:
        return f"{said}, and at {many[3:]} at <b>{fd[many]:.3g}</b>.</p>"
    of_teacher = metrics[teacher][name]
    excess = (fd[few] - fd["floor"]) / (of_teacher[many] - fd["floor"])
    straighter = metrics[teacher]["straightness"] / metrics[last]["straightness"]
    return (
        f"{said}; its teacher {teacher} needs {many[3:]} for <b>{of_teacher[many]:.3g}</b> and has "
        f"{of_teacher[few]:.3g} at {few[3:]}. In excess over the floor ({fd['floor']:.3g}) that "
        f"is {excess:.2f} times the teacher's. Paths are {straighter:.0f} times straighter.</p>"
        f"<p class=note>One training seed; means over sampling seeds. "
        f"A claim that one setting beats another needs several training seeds, and one about 1 "
        f"evaluation a control (plain regression at t = 1): `rfpp preset ablation` has it, and "
        f"`rfpp compare` puts seeds together.</p>"
    )


def _said_of(net: str, config: Params) -> str:
    """What must be said beside the numbers of a feature net."""
    said = {
        "classifier": "A classifier trained here on the labels, hence fd_classifier, not FID.",
        "inception": "clean-fid's Inception, legacy_tensorflow resizing, as published FIDs.",
        "inception_clean": "clean-fid's Inception and its own resizing: not set beside FIDs that "
        "were resized otherwise.",
        "pixels": "A last resort: averaged pixels see neither detail nor content.",
    }[net]
    if net == "classifier":
        metadata = checkpoint.load(Path("models/features.safetensors")).metadata
        said += f" Its held-out accuracy is {metadata['held_out_accuracy']:.3f}."
    dataset = config.dataset
    some = dataset.limit or dataset.name != "cifar10"  # others hold a part of the set out
    if net.startswith("inception") and (config.evaluate.n < 50_000 or some):
        said += (f" Published FIDs take 50,000 samples and the whole training set; here they are "
                 f"{config.evaluate.n:,} and its training split.")  # fmt: skip
    knows = {"inception": "lpips", "inception_clean": "lpips", "classifier": "classifier"}
    if knows.get(net) in {loss.perceptual for loss in _losses(config)}:
        shared = "ImageNet" if net.startswith("inception") else "the labels"
        said += f" The net of a training's loss and this one both know {shared}."
    return (
        f"<p class=note>{said} ± is the standard deviation over sampling seeds, or bootstraps in the real "
        f"rows. Distances are to the training split unless said; KID is on features standardised "
        f"by it, and in the held-out row, as precision and recall, of its distinct images. Heun "
        f"spends 2N - 1 evaluations on N steps.</p>"
    )


def _losses(config: Params) -> list[Loss]:
    """Of the trainings of the run."""
    return [config.recipe_of(flow).loss for flow in config.flows if config.recipe_of(flow).steps]


def _rankings(nets: Sequence[str], curves: dict[str, list[Row]]) -> str:
    """Whether the feature nets put the rows in the same order."""
    if len(nets) < 2:
        return ""
    from scipy.stats import spearmanr

    rows = [row for of_flow in curves.values() for row in of_flow]
    first, *others = ([float(row[DISTANCES[net]]) for row in rows] for net in nets)
    same = (f"{DISTANCES[net]} {spearmanr(first, values).statistic:.2f}"
            for net, values in zip(nets[1:], others, strict=True))  # fmt: skip
    return (f"<p>Order of the rows beside that by {DISTANCES[nets[0]]} (Spearman's rank "
            f"correlation): {', '.join(same)}.</p>")  # fmt: skip


def _samples(curves: dict[str, list[Row]]) -> str:
    out = []
    for flow, rows in curves.items():
        shown = (_picture(f"{flow}/nfe{row['nfe']}.png", f"{flow}, {row['nfe']} NFE", 178)
                 for row in rows if row["solver"] != ADAPTIVE)  # fmt: skip
        out.append(f"<div>{''.join(shown)}</div>")
    return "".join(out)


def _csv(path: Path) -> list[Row]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def _picture(name: str, caption: str, width: int | None = None) -> str:
    size = f" width={width}" if width else ""
    text = html.escape(caption)
    return f'<figure><img src="{name}" alt="{text}"{size}><figcaption>{text}</figcaption></figure>'


def _pre(text: str) -> str:
    return f"<pre>{html.escape(text)}</pre>"
