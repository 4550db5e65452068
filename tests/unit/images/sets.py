"""Sets of images for tests: folders and zips of random pictures."""

import io
import zipfile

import numpy as np
from PIL import Image

RNG = np.random.default_rng(0)


def picture(side=(12, 12), mode="RGB", form="PNG"):
    shape = (side[1], side[0], 3) if mode == "RGB" else (side[1], side[0])
    buffer = io.BytesIO()
    Image.fromarray(RNG.integers(0, 256, shape, dtype=np.uint8)).save(buffer, form)
    return buffer.getvalue()


def tree(path, names, **kwargs):
    for name in names:
        file = path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(picture(**kwargs))
    return path


def zipped(path, names, **kwargs):
    with zipfile.ZipFile(path, "w") as archive:
        for name in names:
            archive.writestr(name, picture(**kwargs))
    return path


def with_folders(path, names, folders):
    """The same in a folder or in a zip, empty folders included."""
    if path.suffix == ".zip":
        with zipfile.ZipFile(zipped(path, names), "a") as archive:
            for name in folders:
                archive.mkdir(name)
        return path
    tree(path, names)
    for name in folders:
        (path / name).mkdir(parents=True)
    return path


CLASSES = [f"{label}/{i}.png" for label in ("cat", "dog") for i in range(5)]


def label_names(source):
    return {
        key: source.classes[label] if label >= 0 else None
        for key, label in zip(source.keys, source.labels.tolist(), strict=True)
    }
