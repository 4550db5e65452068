"""Stage ``prepare``: real images -> data/images.zarr."""

from __future__ import annotations

import shutil
from pathlib import Path

from pipeline import stage
from rfpp_core import data, params
from rfpp_core.pairs import replace_tree

IMAGES = Path("data/images.zarr")


def run() -> None:
    config = params.load()
    stage.check_builds()
    images = data.digits()
    parts = data.split(images, config.dataset.held_out, config.seed)
    building = IMAGES.with_name(".images.zarr.partial")
    shutil.rmtree(building, ignore_errors=True)
    data.write(building, parts, name=config.dataset.name)
    replace_tree(building, IMAGES)
    sizes = ", ".join(
        f"{len(part.labels)} {name.replace('_', '-')}" for name, part in parts.items()
    )
    print(f"{config.dataset.name}: {sizes} images of shape {images.images.shape[1:]}")


if __name__ == "__main__":
    stage.main(run)
