"""Sources of real images: digits, CIFAR-10, a folder or a zip of image files.

A source lists its images once (a key, a label, perhaps a given split) and decodes one at a time,
so a set is written with bounded memory.  Nothing of an archive is extracted to disk.
"""

from __future__ import annotations

import os
import zipfile
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray

from rfpp_core.errors import UserError, quoted
from rfpp_core.images.decode import CorruptImage, Forms, Pixels, decode, first_line
from rfpp_core.images.labels import (
    below_common,
    none,
    of_dataset_json,
    of_folders,
    of_table,
    split_of,
)
from rfpp_core.images.listing import LABELS, Listing, listing, reader
from rfpp_core.rng import subkey


@dataclass(frozen=True)
class Source:
    """A set of images.

    ``keys`` names the images, ``labels`` int64 (N,) holds -1 for none, ``held_out`` bool (N,) is
    the given split or None; ``load(i)`` decodes image i to uint8 (C, H, W) and may raise
    :class:`CorruptImage`.  ``forms`` counts the forms of the files decoded so far, ``ignored`` the
    files that are no images, by suffix; ``empty`` names the folders without any image.
    """

    keys: Sequence[str]
    labels: NDArray[np.int64]
    classes: Sequence[str]
    load: Callable[[int], Pixels]
    held_out: NDArray[np.bool_] | None = None
    forms: Forms = field(default_factory=Forms)
    ignored: Counter[str] = field(default_factory=Counter)
    empty: Sequence[str] = ()

    def take(self, which: NDArray[np.int64]) -> Source:
        """The images ``which``, in that order."""
        return Source(
            [self.keys[i] for i in which],
            self.labels[which],
            self.classes,
            lambda i: self.load(int(which[i])),
            None if self.held_out is None else self.held_out[which],
            self.forms,
            self.ignored,
            self.empty,
        )


def digits() -> Source:
    """The 1,797 handwritten digits of scikit-learn, 8x8 grey, 17 levels stretched to 0..255."""
    from sklearn.datasets import load_digits

    raw = load_digits()
    grey = np.round(raw.images * (255 / 16)).astype(np.uint8)[:, None]
    names = [str(i) for i in range(len(grey))]
    classes = [str(label) for label in range(10)]
    return Source(names, raw.target.astype(np.int64), classes, lambda i: grey[i])


def cifar10(root: Path) -> Source:
    """CIFAR-10 through torchvision, 3x32x32; its own test images are held out.

    Raises:
        UserError: if it is not under ``root`` and cannot be downloaded.
    """
    from torchvision.datasets import CIFAR10

    try:
        parts = [CIFAR10(str(root), train=train, download=True) for train in (True, False)]
    except (OSError, RuntimeError, ValueError) as error:
        raise UserError(f"CIFAR-10 is not under {quoted(root)} and cannot be downloaded "
                        f"({first_line(error)}); put cifar-10-python.tar.gz there, or set "
                        f"dataset.path")  from None  # fmt: skip
    pixels = np.concatenate([part.data for part in parts]).transpose(0, 3, 1, 2)
    labels = np.array([label for part in parts for label in part.targets], dtype=np.int64)
    held_out = np.arange(len(labels)) >= len(parts[0].targets)
    names = [str(i) for i in range(len(labels))]
    return Source(names, labels, parts[0].classes, lambda i: pixels[i], held_out)


def folder(
    path: Path, channels: int, resolution: int | None, labels: str | None = "folders"
) -> Source:
    """Image files in a folder or a zip.

    Args:
        path: folder or .zip; top folders with names of parts (``train`` beside ``test``, ``val``,
            ...) are a split, and everything but ``train`` is held out.
        channels: 1 for grey, 3 for RGB.
        resolution: the shorter side is resized to it with antialiasing and the centre square is
            cut out; None takes images as they are, all square and of one size.
        labels: ``"folders"`` for class sub-folders, or the ``dataset.json`` of NVlabs' tool where
            there is one; None; or a table of ``name,label`` rows.

    Raises:
        UserError: if there are no images, an archive is unsafe, or labels or split are ambiguous.
    """
    found = listing(path)
    tables = [name for name in found.names if PurePosixPath(name).name == LABELS]
    names = sorted(set(found.names) - set(tables))
    parts, held_out = split_of(below_common(names))
    used: list[str] = []
    if labels is None:
        numbers, classes = none(len(names))
    elif labels != "folders":
        numbers, classes = of_table(Path(labels), names)
    else:
        given, used = of_dataset_json({name: _text(found, name) for name in tables}, names)
        numbers, classes = of_folders(parts) if given is None else given
    found.ignored += Counter({".json": len(tables) - len(used)})
    expected: list[tuple[int, ...]] = []
    forms = Forms()

    def load(i: int) -> Pixels:
        pixels = decode(found.read(names[i]), channels, resolution, names[i], forms)
        expected.append(pixels.shape) if not expected else None
        if pixels.shape != expected[0]:
            size = "x".join(map(str, pixels.shape[1:]))
            first = "x".join(map(str, expected[0][1:]))
            raise UserError(f"{quoted(names[i])} is {size} pixels, not {first} as the first image"
                            f"; set dataset.resolution to bring all to one size")  # fmt: skip
        return pixels

    return Source(names, numbers, classes, load, held_out, forms, found.ignored, found.empty)


def _text(found: Listing, name: str) -> bytes:
    try:
        return found.read(name)
    except CorruptImage as error:
        raise UserError(f"{quoted(name)} cannot be read: {error}") from None


def images_at(path: Path, channels: int, resolution: int) -> list[Pixels]:
    """Every image of a file, a folder or a zip as uint8 (C, resolution, resolution).

    Raises:
        UserError: if there is none or one is corrupt.
    """
    if not os.path.exists(path):
        raise UserError(f"{quoted(path)} does not exist; give image files, folders or zips")
    if path.is_file() and not zipfile.is_zipfile(path):  # an image, whatever its name
        found = Listing([path.name], reader(path.parent))
    else:
        found = listing(path)
    images = []
    for name in found.names:
        try:
            if PurePosixPath(name).name != LABELS:
                images.append(decode(found.read(name), channels, resolution, name))
        except CorruptImage as error:
            raise UserError(f"{quoted(name)} is not a readable image ({error})") from None
    return images


def held_out_mask(labels: NDArray[np.int64], fraction: float, seed: int) -> NDArray[np.bool_]:
    """A seeded choice of the same fraction of every label (-1, no label, counts as one)."""
    rng = np.random.Generator(np.random.Philox(subkey(seed, "split")))
    keys = rng.bit_generator.random_raw(len(labels))
    held = np.zeros(len(labels), dtype=bool)
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        order = members[np.argsort(keys[members], kind="stable")]
        held[order[: round(fraction * len(members))]] = True
    return held
