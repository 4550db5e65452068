"""The tables of the report, as HTML."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from rfpp_core.evaluation.distances import DISTANCES, columns

Row = dict[str, str]  # a line of a CSV
LABELS = ("to held-out", "KID", "precision", "recall")  # of columns(), after the distance


def distances(net: str, curves: dict[str, list[Row]], real: dict[str, Any]) -> str:
    metrics = columns(net)
    labels = dict(zip(metrics, (DISTANCES[net], *LABELS), strict=True))
    if net == "classifier" and "agreement" in next(iter(curves.values()))[0]:
        labels["agreement"] = "label agreement"
    head = ("", "NFE", "solver", *labels.values(), "n", "seeds")
    n = next(iter(curves.values()))[0]["n"]
    body: list[Sequence[str]] = []
    for name, key in (("floor: training images", "floor"), ("held-out images", "held_out_row")):
        rows = real[f"{net}/{key}"]
        row: Row = {metric: str(mean) for metric, mean in zip(metrics, rows.mean(0), strict=True)}
        spread = [s if s > 0 else "" for s in rows.std(0, ddof=1 if len(rows) > 1 else 0)]
        row |= {f"{metric}_std": str(std) for metric, std in zip(metrics, spread, strict=True)}
        body.append((name, "", "", *(_cell(row, label) for label in labels), n, str(len(rows))))
    for flow, rows in curves.items():
        for row in rows:
            cells = [_cell(row, label) for label in labels]
            body.append((flow, row["nfe"], row["solver"], *cells, row["n"], row["seeds"]))
    return table(head, body)


def properties(metrics: dict[str, Any]) -> str:
    head = ("flow", "straightness", "images/s at 1 NFE", "budget", "with ancestors")
    body = [
        (flow, f"{m['straightness']:.4g}", f"{m['images_per_second_nfe1']:,}",
         f"{m['budget']:,}", f"{m['budget_with_ancestors']:,}")
        for flow, m in metrics.items()
    ]  # fmt: skip
    return table(head, body) + (
        "<p class=note>Budget: network forwards in pair generation + 3 x training forwards, "
        "an image each. Straightness: mean of (velocity - chord)^2 over 100 uniform steps.</p>"
    )


def inversions(metrics: dict[str, Any], shape: Sequence[int]) -> str:
    head = (
        "flow",
        "round trip",
        "|z|²/d",
        "its standard deviation over images",
        "correlation of neighbours",
    )
    d = int(np.prod(shape))
    body = [("Gaussian noise", "", "1", f"{np.sqrt(2 / d):.3g}", "0")]
    for flow, m in metrics.items():
        z = m["noise"]
        body.append((flow, f"{m['round_trip']:.3g}", f"{z['norm2']:.3g}",
                     f"{z['norm2_std']:.3g}", f"{z['correlation']:.3g}"))  # fmt: skip
    return table(head, body) + (
        "<p class=note>Held-out images sent to noise z and back, 8 evaluations each way; round "
        "trip: mean square error. Images with near-constant pixels, as digits, have noise that "
        "differs from the prior whatever the flow.</p>"
    )


def _cell(row: Row, name: str) -> str:
    if name not in row:
        return ""
    spread = row[f"{name}_std"]
    if row[name] == "nan":
        return ""
    return f"{float(row[name]):.4g}" + (f" ± {float(spread):.2g}" if spread else "")


def table(head: Sequence[str], body: Iterable[Sequence[str]]) -> str:
    top = "".join(f"<th>{html.escape(cell)}</th>" for cell in head)
    rows = "".join(
        "<tr>" + "".join(f"<td>{html.escape(str(cell))}</td>" for cell in row) + "</tr>"
        for row in body
    )
    return f"<table><tr>{top}</tr>{rows}</table>"
