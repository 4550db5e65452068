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

from pipeline import stage
from rfpp_core import build, checkpoint, files, params

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
NAMES = {  # columns of the curves CSV, and what the table calls them
    "fd_classifier": "fd_classifier",
    "fd_classifier_held_out": "to held-out",
    "kid": "KID",
    "precision": "precision",
    "recall": "recall",
}


def run() -> None:
    config = params.load()
    flows = ["flow1", *(f"flow{k}" for k in sorted(config.rounds, key=int))]
    building = REPORT.with_name(".report.partial")
    shutil.rmtree(building, ignore_errors=True)
    building.mkdir()
    curves = {flow: _csv(Path(f"curves/{flow}.csv")) for flow in flows}
    metrics = {flow: json.loads(Path(f"metrics/{flow}.json").read_text()) for flow in flows}
    about = {flow: checkpoint.load(Path(f"models/{flow}.safetensors")).about for flow in flows}
    features = checkpoint.load(Path("models/features.safetensors")).about
    real = dict(np.load("data/reference.npz"))
    for flow in flows:
        shutil.copytree(f"samples/{flow}", building / flow)
    _plot_distance(building / "distance.png", curves, metrics["flow1"]["fd_classifier"])
    _plot_losses(building / "loss.png", flows)
    _plot_times(building / "times.png", config)
    page = [
        _summary(config, metrics, features),
        "<h2>Distance by network evaluations (NFE)</h2>", _table(curves, real),
        _picture("distance.png", "lower is better; both axes logarithmic"),
        "<h2>Samples, from the same noise for every flow and NFE</h2>", _samples(curves),
        "<h2>Trajectories, noise to image in 10 Euler steps</h2>",
        *(_picture(f"{flow}/trajectory.png", flow) for flow in flows),
        "<h2>Straightness, round trip, speed and budget</h2>", _properties(metrics),
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


def _summary(config: params.Params, metrics: dict[str, Any], features: dict[str, Any]) -> str:
    last = f"flow{max(config.rounds, key=int)}" if config.rounds else "flow1"
    fd, many = metrics[last]["fd_classifier"], f"nfe{config.evaluate.teacher_nfe}"
    floor, teacher = fd["floor"], metrics["flow1"]["fd_classifier"]
    first = f"nfe{min(config.evaluate.nfe)}"
    excess = (fd[first] - floor) / (teacher[many] - floor)
    straighter = metrics["flow1"]["straightness"] / metrics[last]["straightness"]
    return (
        f"<h1>{html.escape(config.dataset.name)}: {last}</h1>"
        f"<p>At {first[3:]} network evaluation(s) {last} lies at a Frechet distance of "
        f"<b>{fd[first]:.3g}</b> from the training images; the first flow needs {many[3:]} for "
        f"<b>{teacher[many]:.3g}</b> and has {teacher[first]:.3g} at {first[3:]}. In excess over "
        f"the floor ({floor:.3g}) that is {excess:.2f} times the teacher's. Paths are "
        f"{straighter:.0f} times straighter.</p>"
        f"<p class=note>One training seed; means over sampling seeds. Distances are to the "
        f"training split in the features of a classifier (held-out accuracy "
        f"{features['held_out_accuracy']:.3f}), hence fd_classifier, not FID. "
        f"A claim that one setting beats another needs several training seeds, and one about 1 "
        f"evaluation a control arm (plain regression at t = 1): `make study` runs both.</p>"
    )


def _table(curves: dict[str, list[Row]], real: dict[str, Any]) -> str:
    agreement = "agreement" in curves["flow1"][0]
    shown = {**NAMES, **({"agreement": "label agreement"} if agreement else {})}
    head = ("", "NFE", "solver", *shown.values(), "n", "seeds")
    n = curves["flow1"][0]["n"]
    body: list[Sequence[str]] = []
    for name, key in (("floor: training images", "floor"), ("held-out images", "held_out_row")):
        rows = real[key]
        row: Row = {metric: str(mean) for metric, mean in zip(NAMES, rows.mean(0), strict=True)}
        spread = [s if s > 0 else "" for s in rows.std(0, ddof=1 if len(rows) > 1 else 0)]
        row |= {f"{metric}_std": str(std) for metric, std in zip(NAMES, spread, strict=True)}
        cells = [_spread(row, metric) for metric in shown]
        body.append((name, "", "", *cells, n, str(len(rows))))
    for flow, rows in curves.items():
        for row in rows:
            cells = [_spread(row, metric) for metric in shown]
            body.append((flow, row["nfe"], row["solver"], *cells, row["n"], row["seeds"]))
    return _html_table(head, body) + (
        "<p class=note>± is the deviation over sampling seeds, or bootstraps in the real rows. "
        "Distances are to the training split unless said; KID is on features standardised by it, "
        "and in the held-out row, as precision and recall, of its distinct images. Heun spends "
        "2N - 1 evaluations on N steps.</p>"
    )


def _properties(metrics: dict[str, Any]) -> str:
    head = ("flow", "straightness", "round trip (8 NFE each way)", "images/s at 1 NFE",
            "budget", "with ancestors")  # fmt: skip
    body = [
        (flow, f"{m['straightness']:.4g}", f"{m['round_trip']:.3g}",
         f"{m['images_per_second_nfe1']:,}", f"{m['budget']:,}", f"{m['budget_with_ancestors']:,}")
        for flow, m in metrics.items()
    ]  # fmt: skip
    return _html_table(head, body) + (
        "<p class=note>Budget: network forwards in pair generation + 3 x training forwards, "
        "an image each. Straightness: mean of (velocity - chord)^2 over 100 uniform steps.</p>"
    )


def _samples(curves: dict[str, list[Row]]) -> str:
    out = []
    for flow, rows in curves.items():
        shown = (_picture(f"{flow}/nfe{row['nfe']}.png", f"{flow}, {row['nfe']} NFE", 178)
                 for row in rows)  # fmt: skip
        out.append(f"<div>{''.join(shown)}</div>")
    return "".join(out)


def _plot_distance(path: Path, curves: dict[str, list[Row]], real: dict[str, float]) -> None:
    figure, axes = _axes((7, 4.2))
    for flow, rows in curves.items():
        rows = sorted(rows, key=lambda row: int(row["nfe"]))
        axes.plot([int(r["nfe"]) for r in rows], [float(r["fd_classifier"]) for r in rows], "o-",
                  label=flow)  # fmt: skip
    axes.axhline(real["held_out"], ls="--", c="0.4", lw=1, label="held-out images")
    axes.axhline(real["floor"], ls=":", c="0.4", lw=1, label="floor (training images)")
    axes.set(xscale="log", yscale="log", xlabel="network evaluations (NFE)",
             ylabel="Frechet distance (fd_classifier)")  # fmt: skip
    ticks = sorted({int(r["nfe"]) for rows in curves.values() for r in rows})
    axes.set_xticks(ticks, [str(t) for t in ticks])
    axes.minorticks_off()
    axes.legend(frameon=False)
    figure.savefig(path, dpi=120)


def _plot_losses(path: Path, flows: Iterable[str]) -> None:
    figure, axes = _axes((6, 3.4))
    for flow in flows:
        rows = _csv(Path(f"curves/{flow}_loss.csv"))
        name = list(rows[0])[2]  # after step and loss: the first term
        axes.plot([int(r["step"]) for r in rows], [float(r[name]) for r in rows],
                  label=f"{flow}: {name}")  # fmt: skip
    axes.set(xlabel="step", ylabel="loss", yscale="log")
    axes.legend(frameon=False)
    figure.savefig(path, dpi=120)


def _plot_times(path: Path, config: params.Params) -> None:
    figure, axes = _axes((6, 3.4))
    u = (torch.arange(200_000, dtype=torch.float64) + 0.5) / 200_000
    for name, section in (("flow1", config.pretrain), ("reflow", config.reflow)):
        t = build.time_law(section.times)(u).numpy()
        axes.hist(t, bins=np.linspace(0, 1, 61), density=True, histtype="step",
                  label=f"{name}: {section.times.law}")  # fmt: skip
    axes.set(xlabel="t (0 data, 1 noise)", ylabel="density")
    axes.legend(frameon=False)
    figure.savefig(path, dpi=120)


def _axes(size: tuple[float, float]) -> tuple[Any, Any]:
    stage.library_caches()
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
    stage.main(run)
