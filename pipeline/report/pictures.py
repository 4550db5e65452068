"""The image grids of the report: where each lies, how large it is, and what its rows are."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from pipeline import artifacts, console
from pipeline.report.numbers import evaluations
from pipeline.report.results import Results
from rfpp_core.images import pixels
from rfpp_core.images import store as image_store
from rfpp_core.sampling.solver_table import ADAPTIVE, SEARCHED, row_name

REAL = "real.png"
COLUMNS, ROWS, CLASS_ROWS = 8, 8, 16  # of a grid; of one with a class a row
BLOCK = 1000  # images that the store compresses together


class Grid(NamedTuple):
    """A picture of the report's folder: its button, its file, its size, what it shows, and the
    class of each row, if rows are classes."""

    label: str
    file: str
    width: int
    height: int
    caption: str
    rows: list[str]


def of_flow(flow: str, found: Results) -> list[Grid]:
    """Samples by evaluations, in the order of the table, and the paths of eight of them."""
    arch = found.models[flow].metadata["architecture"]
    names = [_class(found, i) for i in range(arch["classes"])]
    grids = []
    for row in found.tables[flow]:
        if row["solver"] != ADAPTIVE:
            caption = f"{evaluations(int(row['nfe']))} an image, {row['solver']}"
            rows = _of_rows(names, max(ROWS, min(len(names), CLASS_ROWS)))
            label = f"{row['nfe']} BOSS" if row["solver"] == SEARCHED else row["nfe"]
            file = f"{flow}/{row_name(row['solver'], row['nfe'])}.png"
            grids.append(_grid(label, file, caption, rows))
    domains = found.config.domains_of(flow)
    if domains is not None:
        grids.append(_grid("source", f"{flow}/source.png", "what is translated", []))
    path = (f"from {'noise' if domains is None else 'source'} (left) to image (right) in 10 Euler "
            f"steps")  # fmt: skip
    return [*grids, _grid("path", f"{flow}/trajectory.png", path, _of_rows(names, ROWS))]


def _of_rows(names: list[str], rows: int) -> list[str]:
    return [names[i % len(names)] for i in range(rows)] if names else []


def _class(found: Results, i: int) -> str:
    """The name of a class; of a flow that knows more classes than the images have, its number."""
    return found.class_names[i] if i < len(found.class_names) else f"class {i}"


def _grid(label: str, file: str, caption: str, rows: list[str], at: Path | None = None) -> Grid:
    flow, _, name = file.partition("/")
    with Image.open(at or artifacts.samples(flow) / name) as image:
        return Grid(label, file, *image.size, caption, rows)


def real(folder: Path, found: Results) -> Grid:
    """Writes a grid of training images, spread over the set: a class a row where there are
    classes."""
    labels = image_store.labels(artifacts.IMAGES, "train")
    chosen, names = _chosen(labels, found.class_names)
    some = _read([i for i in chosen if i is not None])
    blank = torch.zeros_like(some[0])  # as the frame, which is grey
    left = iter(some)
    shown = torch.stack([blank if i is None else next(left) for i in chosen])
    console.save_grid(shown, folder / REAL, COLUMNS)
    return _grid("", REAL, "training images, spread over the set", names, folder / REAL)


def _chosen(labels: NDArray[np.integer], classes: list[str]) -> tuple[list[int | None], list[str]]:
    """Indices of images, None for a place that stays empty; and the names of the rows."""
    if not classes:
        n = min(len(labels), ROWS * COLUMNS)
        return list(_spread(np.arange(len(labels)), n)), []
    shown = range(min(len(classes), CLASS_ROWS))
    chosen: list[int | None] = []
    for label in shown:
        members = np.flatnonzero(labels == label)
        some = list(_spread(members, min(len(members), COLUMNS)))
        chosen += [*some, *[None] * (COLUMNS - len(some))]
    return chosen, [classes[label] for label in shown]


def _spread(indices: NDArray[np.integer], n: int) -> Iterator[int]:
    """n of the indices, evenly."""
    for i in np.linspace(0, len(indices) - 1, n).round().astype(int):
        yield int(indices[i])


def _read(wanted: list[int]) -> list[torch.Tensor]:
    """Training images as float (C, H, W), each block of the store read once."""
    found = {}
    for _, block in groupby(sorted(wanted), key=lambda i: i // BLOCK):
        own = list(block)
        part = image_store.read_some(artifacts.IMAGES, "train", slice(own[0], own[-1] + 1))
        for i in own:
            found[i] = pixels.to_float(torch.from_numpy(part.images[i - own[0]]))
    return [found[i] for i in wanted]
