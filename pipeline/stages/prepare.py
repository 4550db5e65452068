"""Stage ``prepare``: real images -> data/images.zarr and a summary of them, data/summary.json."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline import artifacts, console
from rfpp_core.config import params
from rfpp_core.config.dataset import Dataset
from rfpp_core.config.flow import IMAGES
from rfpp_core.config.params import Params
from rfpp_core.errors import UserError, quoted
from rfpp_core.images import sources
from rfpp_core.images import store as image_store
from rfpp_core.images.decode import BACKGROUND
from rfpp_core.images.listing import counted
from rfpp_core.storage import files

SHOWN = 20  # classes, and folders without images, that are printed


def run() -> None:
    config = params.load()
    section = config.dataset
    source = source_of(section)
    held_out = held_out_of(section, source)
    artifacts.SUMMARY.unlink(missing_ok=True)
    building = artifacts.IMAGES.with_name(".images.zarr.partial")
    shutil.rmtree(building, ignore_errors=True)
    fingerprint = json.loads(artifacts.FINGERPRINT.read_text())
    corrupt = image_store.write(building, source, held_out, section.skip_corrupt, _bar,
                         name=section.name, source_fingerprint=fingerprint)  # fmt: skip
    for line in corrupt:
        print(f"skipped {line}")
    labels = image_store.labels(building, "train"), image_store.labels(building, "held_out")
    for line in problems(config, source, *labels):  # now without the skipped images
        raise UserError(line)
    facts = summary(
        section, source, *labels, image_store.metadata(building)["shape"], len(corrupt)
    )
    if params.load().dataset != section:
        raise UserError("dataset in params.yaml changed during the run; run it again")
    files.replace_tree(building, artifacts.IMAGES)
    files.write_json(artifacts.SUMMARY, facts)
    print("\n".join(lines_of(facts)))


def source_of(section: Dataset) -> sources.Source:
    """The images that the params name, at most ``limit`` of them, spread over the set."""
    match section.name:
        case "digits":
            source = sources.digits()
        case "cifar10":
            source = sources.cifar10(artifacts.located(section.path))
        case "folder":
            labels = None if section.labels == "none" else section.labels
            if labels not in (None, "folders"):
                labels = str(artifacts.located(section.labels))
            source = sources.folder(
                artifacts.located(section.path), section.channels, section.resolution, labels
            )
    if section.limit is None or len(source.keys) <= section.limit:
        return source
    return source.take(np.linspace(0, len(source.keys) - 1, section.limit).round().astype(int))


def source_or_prepared(section: Dataset) -> sources.Source:
    """The images that the params name; if they are not here, the images prepared from them.

    Raises:
        UserError: if there are neither.
    """
    try:
        return source_of(section)
    except UserError:
        with suppress(UserError, OSError, ValueError):
            prepared = image_store.metadata(artifacts.IMAGES)["source_fingerprint"]
            if prepared == json.loads(artifacts.FINGERPRINT.read_text()):
                return image_store.as_source(artifacts.IMAGES)
        raise


def held_out_of(section: Dataset, source: sources.Source) -> NDArray[np.bool_]:
    """The held-out images: the set's own split, otherwise a seeded fraction of each class."""
    if source.held_out is not None:
        return source.held_out
    return sources.held_out_mask(source.labels, section.held_out, section.seed)


def problems(
    config: Params, source: sources.Source, train: NDArray[Any], held_out: NDArray[Any]
) -> Iterator[str]:
    """A line for each problem: splits that are too small, or classes without training images.

    ``train`` and ``held_out`` are the labels of the splits, -1 for none.
    """
    for name, part in (("train", train), ("held-out", held_out)):
        least = config.evaluate.neighbours + 1
        if len(part) < least:
            yield (f"the {name} split has {len(part)} images; evaluate.neighbours "
                   f"({config.evaluate.neighbours}) needs at least {least}: give more images, or "
                   f"change dataset.held_out or dataset.limit")  # fmt: skip
    for recipe, batch in trained_on_images(config).items():
        if batch > len(train):
            yield (f"recipes.{recipe}.batch is {batch} but there are only {len(train)} images to "
                   f"train on; lower it or give more")  # fmt: skip
    unseen = sorted(set(held_out.tolist()) - set(train.tolist()))
    if unseen:
        name = quoted(source.classes[unseen[0]]) if source.classes else "none"
        yield (f"{len(unseen)} of the classes are only in the held-out split, the first is "
               f"{name}; give training images of them, or set dataset.labels: none")  # fmt: skip


def trained_on_images(config: Params) -> dict[str, int]:
    """The batch sizes of the recipes that train on the real images, as they are or inverted."""
    real = {IMAGES, *(name for name, row in config.pairs.items() if row.source == "images")}
    return {row.recipe: config.recipe_of(name).batch for name, row in config.flows.items()
            if row.data in real and config.recipe_of(name).steps}  # fmt: skip


def summary(
    section: Dataset,
    source: sources.Source,
    train: NDArray[Any],
    held_out: NDArray[Any],
    shape: list[int],
    skipped: int,
) -> dict[str, Any]:
    """The content of data/summary.json; it does not depend on where the set is."""
    forms, n = source.forms, len(train) + len(held_out)
    sizes = forms.sizes or {(shape[2], shape[1]): n}
    often = max(sizes, key=lambda size: (sizes[size], size))
    count = [np.bincount(part[part >= 0], minlength=len(source.classes)).tolist()
             for part in (train, held_out)]  # fmt: skip
    return {
        "name": section.name,
        "shape": shape,
        "train": len(train),
        "held_out": len(held_out),
        "skipped": skipped,
        "split": "seeded" if source.held_out is None else "given",
        "classes": [
            {"name": name, "train": a, "held_out": b}
            for name, a, b in zip(source.classes, *count, strict=True)
        ],
        "modes": dict(forms.modes) or {"L" if shape[0] == 1 else "RGB": n},
        "sizes": {
            "least": [min(size[k] for size in sizes) for k in (0, 1)],
            "most": [max(size[k] for size in sizes) for k in (0, 1)],
            "common": {"size": list(often), "count": sizes[often]},
        },
        "grey": forms.grey,
        "transparent": forms.transparent,
        "background": BACKGROUND,
        "animated": forms.animated,
        "ignored": dict(source.ignored),
        "empty_folders": {"count": len(source.empty), "names": list(source.empty[:SHOWN])},
    }


def lines_of(facts: dict[str, Any]) -> Iterator[str]:
    """The lines that are printed of a summary."""
    n, classes, sizes = facts["train"] + facts["held_out"], facts["classes"], facts["sizes"]
    given = " (as the set's folders or files say; only train is trained on)"
    yield (f"{facts['name']}: {facts['train']} train, {facts['held_out']} held-out, "
           f"{facts['skipped']} skipped, {len(classes)} classes"
           f"{given if facts['split'] == 'given' else ''}")  # fmt: skip
    if classes:
        some = [f"{quoted(c['name'])} {c['train'] + c['held_out']}" for c in classes[:SHOWN]]
        more = f" and {len(classes) - SHOWN} more" if len(classes) > SHOWN else ""
        yield f"classes: {', '.join(some)}{more}"
    common = sizes["common"]
    modes = ", ".join(f"{count} {mode}" for mode, count in sorted(facts["modes"].items()))
    yield (f"modes: {modes}; sizes: {_by(sizes['least'])} to {_by(sizes['most'])}, most often "
           f"{_by(common['size'])} ({common['count']})")  # fmt: skip
    if facts["transparent"]:
        yield f"{facts['transparent']} have transparency: composited on {facts['background']}"
    if facts["animated"]:
        yield f"{facts['animated']} have several frames: the first is taken"
    if facts["ignored"]:
        yield f"ignored, as no images: {counted(facts['ignored'])}"
    if count := facts["empty_folders"]["count"]:
        names = ", ".join(map(quoted, facts["empty_folders"]["names"]))
        more = f" and {count - SHOWN} more" if count > SHOWN else ""
        yield f"{count} folder(s) without images, which are no classes: {names}{more}"
    if facts["grey"] == n and facts["shape"][0] == 3:
        yield "hint: all images are grey; dataset.channels: 1 takes a third of the values"


def _by(size: list[int]) -> str:
    return "x".join(map(str, size))


def _bar(indices: list[int]) -> Iterator[int]:
    with console.bar("prepare", len(indices), "img") as bar:
        for i in indices:
            yield i
            bar.update()


if __name__ == "__main__":
    console.main(run)
