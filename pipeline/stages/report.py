"""Stage ``report``: metrics, curves, samples and provenance -> report/index.html.

A page with its pictures beside it that opens without a network.
"""

from __future__ import annotations

import csv
import html
import json
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from pipeline.work import workdir
from rfpp_core.config import build, params
from rfpp_core.evaluation.distances import DISTANCES, columns
from rfpp_core.sampling.solvers import ADAPTIVE
from rfpp_core.storage import checkpoint, files

REPORT = Path("report")
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

Row = dict[str, str]
LABELS = ("to held-out", "KID", "precision", "recall")  # of metrics.columns, after the distance


def run() -> None:
    config = params.load()
    flows = config.flows
    building = REPORT.with_name(".report.partial")
    shutil.rmtree(building, ignore_errors=True)
    building.mkdir()
    curves = {flow: _csv(Path(f"curves/{flow}.csv")) for flow in flows}
    metrics = {flow: json.loads(Path(f"metrics/{flow}.json").read_text()) for flow in flows}
    about = {flow: checkpoint.load(Path(f"models/{flow}.safetensors")).about for flow in flows}
    nets = config.features.nets
    headline, real = DISTANCES[nets[0]], dict(np.load("data/reference.npz"))
    for flow in flows:
        shutil.copytree(f"samples/{flow}", building / flow)
    _plot_distance(building / "distance.png", curves, metrics["flow1"], headline)
    _plot_losses(building / "loss.png", flows)
    _plot_times(building / "times.png", config)
    page = [
        _summary(config, metrics),
        "<h2>Distance by network evaluations (NFE)</h2>",
        *(_table(net, curves, real) + _said_of(net, config) for net in nets),
        _rankings(nets, curves),
        _picture("distance.png", "lower is better; both axes logarithmic"),
        "<h2>Samples, from the same noise for every flow and NFE</h2>", _samples(curves),
        "<h2>Trajectories, noise to image in 10 Euler steps</h2>",
        *(_picture(f"{flow}/trajectory.png", flow) for flow in flows),
        "<h2>Inversion of real images</h2>",
        _inversions(metrics, about["flow1"]["architecture"]["shape"]),
        "<h2>Straightness, speed and budget</h2>", _properties(metrics),
        "<h2>Training</h2>",
        _picture("loss.png", "training loss"), _picture("times.png", "law of the training time t"),
        "<h2>Params</h2>", _pre(yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)),
        "<h2>Provenance</h2>", _pre(json.dumps(
            {flow: doc["provenance"] for flow, doc in about.items()}, indent=1)),
    ]  # fmt: skip
    (building / "index.html").write_text(
        f"<!doctype html><html lang=en><meta charset=utf-8><title>rfpp report</title>"
        f"<style>{STYLE}</style>{''.join(page)}</html>\n"
    )
    files.replace_tree(building, REPORT)
    print(f"report: open {REPORT / 'index.html'}")


def _summary(config: params.Params, metrics: dict[str, Any]) -> str:
    last = config.flows[-1]
    name = DISTANCES[config.features.nets[0]]
    fd, many = metrics[last][name], f"nfe{config.evaluate.teacher_nfe}"
    floor, teacher = fd["floor"], metrics["flow1"][name]
    first = f"nfe{min(config.evaluate.nfe)}"
    excess = (fd[first] - floor) / (teacher[many] - floor)
    straighter = metrics["flow1"]["straightness"] / metrics[last]["straightness"]
    return (
        f"<h1>{html.escape(config.dataset.name)}: {last}</h1>"
        f"<p>At {first[3:]} network evaluation(s) {last} lies at {name} <b>{fd[first]:.3g}</b> "
        f"from the training images; the first flow needs {many[3:]} for "
        f"<b>{teacher[many]:.3g}</b> and has {teacher[first]:.3g} at {first[3:]}. In excess over "
        f"the floor ({floor:.3g}) that is {excess:.2f} times the teacher's. Paths are "
        f"{straighter:.0f} times straighter.</p>"
        f"<p class=note>One training seed; means over sampling seeds. "
        f"A claim that one setting beats another needs several training seeds, and one about 1 "
        f"evaluation a control arm (plain regression at t = 1): `make study` runs both.</p>"
    )


def _table(net: str, curves: dict[str, list[Row]], real: dict[str, Any]) -> str:
    metrics = columns(net)
    labels = dict(zip(metrics, (DISTANCES[net], *LABELS), strict=True))
    if net == "classifier" and "agreement" in curves["flow1"][0]:
        labels["agreement"] = "label agreement"
    head = ("", "NFE", "solver", *labels.values(), "n", "seeds")
    n = curves["flow1"][0]["n"]
    body: list[Sequence[str]] = []
    for name, key in (("floor: training images", "floor"), ("held-out images", "held_out_row")):
        rows = real[f"{net}/{key}"]
        row: Row = {metric: str(mean) for metric, mean in zip(metrics, rows.mean(0), strict=True)}
        spread = [s if s > 0 else "" for s in rows.std(0, ddof=1 if len(rows) > 1 else 0)]
        row |= {f"{metric}_std": str(std) for metric, std in zip(metrics, spread, strict=True)}
        body.append((name, "", "", *(_spread(row, label) for label in labels), n, str(len(rows))))
    for flow, rows in curves.items():
        for row in rows:
            cells = [_spread(row, label) for label in labels]
            body.append((flow, row["nfe"], row["solver"], *cells, row["n"], row["seeds"]))
    return _html_table(head, body)


def _said_of(net: str, config: params.Params) -> str:
    """What must be said beside the numbers of a feature net."""
    said = {
        "classifier": "A classifier trained here on the labels, hence fd_classifier, not FID.",
        "inception": "clean-fid's Inception, legacy_tensorflow resizing, as published FIDs.",
        "inception_clean": "clean-fid's Inception and its own resizing: not set beside FIDs that "
        "were resized otherwise.",
        "pixels": "A last resort: averaged pixels see neither detail nor content.",
    }[net]
    if net == "classifier":
        about = checkpoint.load(Path("models/features.safetensors")).about
        said += f" Its held-out accuracy is {about['held_out_accuracy']:.3f}."
    dataset = config.dataset
    some = dataset.limit or dataset.name != "cifar10"  # others hold a part of the set out
    if net.startswith("inception") and (config.evaluate.n < 50_000 or some):
        said += (f" Published FIDs take 50,000 samples and the whole training set; here they are "
                 f"{config.evaluate.n:,} and its training split.")  # fmt: skip
    knows = {"inception": "lpips", "inception_clean": "lpips", "classifier": "classifier"}
    if knows.get(net) in {loss.perceptual for loss in _losses(config) if loss.is_perceptual}:
        shared = "ImageNet" if net.startswith("inception") else "the labels"
        said += f" The net of a training's loss and this one both know {shared}."
    return (
        f"<p class=note>{said} ± is the deviation over sampling seeds, or bootstraps in the real "
        f"rows. Distances are to the training split unless said; KID is on features standardised "
        f"by it, and in the held-out row, as precision and recall, of its distinct images. Heun "
        f"spends 2N - 1 evaluations on N steps.</p>"
    )


def _losses(config: params.Params) -> list[params.Loss]:
    sections = [config.pretrain] if config.pretrain.source == "train" else []
    later = [(config.rounds, config.reflow), (config.finetunes, config.finetune)]
    return [s.loss for s in (*sections, *(section for used, section in later if used))]


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


def _properties(metrics: dict[str, Any]) -> str:
    head = ("flow", "straightness", "images/s at 1 NFE", "budget", "with ancestors")
    body = [
        (flow, f"{m['straightness']:.4g}", f"{m['images_per_second_nfe1']:,}",
         f"{m['budget']:,}", f"{m['budget_with_ancestors']:,}")
        for flow, m in metrics.items()
    ]  # fmt: skip
    return _html_table(head, body) + (
        "<p class=note>Budget: network forwards in pair generation + 3 x training forwards, "
        "an image each. Straightness: mean of (velocity - chord)^2 over 100 uniform steps.</p>"
    )


def _inversions(metrics: dict[str, Any], shape: Sequence[int]) -> str:
    head = (
        "flow",
        "round trip",
        "|z|²/d",
        "its deviation over images",
        "correlation of neighbours",
    )
    d = int(np.prod(shape))
    body = [("Gaussian noise", "", "1", f"{np.sqrt(2 / d):.3g}", "0")]
    for flow, m in metrics.items():
        z = m["noise"]
        body.append((flow, f"{m['round_trip']:.3g}", f"{z['norm2']:.3g}",
                     f"{z['norm2_std']:.3g}", f"{z['correlation']:.3g}"))  # fmt: skip
    return _html_table(head, body) + (
        "<p class=note>Held-out images sent to noise z and back, 8 evaluations each way; round "
        "trip: mean square error. Images with near-constant pixels, as digits, have noise that "
        "differs from the prior whatever the flow.</p>"
    )


def _samples(curves: dict[str, list[Row]]) -> str:
    out = []
    for flow, rows in curves.items():
        shown = (_picture(f"{flow}/nfe{row['nfe']}.png", f"{flow}, {row['nfe']} NFE", 178)
                 for row in rows if row["solver"] != ADAPTIVE)  # fmt: skip
        out.append(f"<div>{''.join(shown)}</div>")
    return "".join(out)


def _plot_distance(
    path: Path, curves: dict[str, list[Row]], metrics: dict[str, Any], name: str
) -> None:
    figure, axes = _axes((7, 4.2))
    for flow, rows in curves.items():
        rows = sorted(rows, key=lambda row: int(row["nfe"]))
        axes.plot([int(r["nfe"]) for r in rows], [float(r[name]) for r in rows], "o-", label=flow)
    real = metrics[name]
    axes.axhline(real["held_out"], ls="--", c="0.4", lw=1, label="held-out images")
    axes.axhline(real["floor"], ls=":", c="0.4", lw=1, label="floor (training images)")
    axes.set(xscale="log", yscale="log", xlabel="network evaluations (NFE)",
             ylabel=f"Frechet distance ({name})")  # fmt: skip
    ticks = sorted({int(r["nfe"]) for rows in curves.values() for r in rows})
    axes.set_xticks(ticks, [str(t) for t in ticks])
    axes.minorticks_off()
    axes.legend(frameon=False)
    figure.savefig(path, dpi=120)


def _plot_losses(path: Path, flows: Iterable[str]) -> None:
    figure, axes = _axes((6, 3.4))
    for flow in flows:
        rows = _csv(Path(f"curves/{flow}_loss.csv"))
        if not rows[0]["loss"]:  # imported
            continue
        name = list(rows[0])[2]  # after step and loss: the first term
        axes.plot([int(r["step"]) for r in rows], [float(r[name]) for r in rows],
                  label=f"{flow}: {name}")  # fmt: skip
    axes.set(xlabel="step", ylabel="loss", yscale="log")
    axes.legend(frameon=False)
    figure.savefig(path, dpi=120)


def _plot_times(path: Path, config: params.Params) -> None:
    figure, axes = _axes((6, 3.4))
    u = (torch.arange(200_000, dtype=torch.float64) + 0.5) / 200_000
    trained = [("flow1", config.pretrain)] if config.pretrain.source == "train" else []
    later = [("finetune", config.finetune)] if config.finetunes else []
    for name, section in (*trained, ("reflow", config.reflow), *later):
        t = build.time_law(section.times)(u).numpy()
        axes.hist(t, bins=np.linspace(0, 1, 61), density=True, histtype="step",
                  label=f"{name}: {section.times.law}")  # fmt: skip
    axes.set(xlabel="t (0 data, 1 noise)", ylabel="density")
    axes.legend(frameon=False)
    figure.savefig(path, dpi=120)


def _axes(size: tuple[float, float]) -> tuple[Any, Any]:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot.subplots(figsize=size, layout="constrained")


def _csv(path: Path) -> list[Row]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def _spread(row: Row, name: str) -> str:
    if name not in row:
        return ""
    spread = row[f"{name}_std"]
    if row[name] == "nan":
        return ""
    return f"{float(row[name]):.4g}" + (f" ± {float(spread):.2g}" if spread else "")


def _html_table(head: Sequence[str], body: Iterable[Sequence[str]]) -> str:
    top = "".join(f"<th>{html.escape(cell)}</th>" for cell in head)
    rows = "".join(
        "<tr>" + "".join(f"<td>{html.escape(str(cell))}</td>" for cell in row) + "</tr>"
        for row in body
    )
    return f"<table><tr>{top}</tr>{rows}</table>"


def _picture(name: str, caption: str, width: int | None = None) -> str:
    size = f" width={width}" if width else ""
    text = html.escape(caption)
    return f'<figure><img src="{name}" alt="{text}"{size}><figcaption>{text}</figcaption></figure>'


def _pre(text: str) -> str:
    return f"<pre>{html.escape(text)}</pre>"


if __name__ == "__main__":
    workdir.main(run)
