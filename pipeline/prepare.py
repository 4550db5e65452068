"""Stage ``prepare``: real images -> data/images.zarr."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable

import numpy as np
from tqdm import tqdm

from pipeline import stage
from pipeline.source import FINGERPRINT, located
from rfpp_core import data, files, params, sources


def run() -> None:
    config = params.load()
    section = config.dataset
    source = source_of(section)
    held_out = source.held_out
    if held_out is None:
        held_out = sources.held_out_mask(source.labels, section.held_out, section.seed)
    building = stage.IMAGES.with_name(".images.zarr.partial")
    shutil.rmtree(building, ignore_errors=True)
    fingerprint = json.loads(FINGERPRINT.read_text())
    corrupt = data.write(building, source, held_out, section.skip_corrupt, _bar,
                         name=section.name, source_fingerprint=fingerprint)  # fmt: skip
    files.replace_tree(building, stage.IMAGES)
    for line in corrupt:
        print(f"skipped {line}")
    print(f"{section.name}: {(~held_out).sum()} train, {held_out.sum()} held-out images, "
          f"{len(corrupt)} of them skipped, {len(source.classes)} classes")  # fmt: skip


def source_of(section: params.Dataset) -> sources.Source:
    """The images that the params name, at most ``limit`` of them, spread over the set."""
    match section.name:
        case "digits":
            source = sources.digits()
        case "cifar10":
            source = sources.cifar10(located(section.path))
        case "folder":
            labels = None if section.labels == "none" else section.labels
            if labels not in (None, "folders"):
                labels = str(located(section.labels))
            source = sources.folder(
                located(section.path), section.channels, section.resolution, labels
            )
    if section.limit is None or len(source.keys) <= section.limit:
        return source
    return source.take(np.linspace(0, len(source.keys) - 1, section.limit).round().astype(int))


def _bar(indices: Iterable[int]) -> Iterable[int]:
    bar: Iterable[int] = tqdm(indices, desc="prepare", unit="img", disable=None, mininterval=1)
    return bar


if __name__ == "__main__":
    stage.main(run)
