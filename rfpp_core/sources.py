"""Where real images come from: digits, CIFAR-10, a folder or a zip of image files.

A source lists its items once (a key, a label, perhaps a given split) and decodes one at a time, so
a set is written with bounded memory.  Nothing of an archive is ever extracted to disk.
"""

from __future__ import annotations

import csv
import io
import zipfile
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from rfpp_core.errors import UserError
from rfpp_core.noise import subkey

SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"}
HELD_OUT_FOLDERS = ("test", "held_out", "val")
MAX_ENTRY = 64 << 20  # bytes of one file in a zip, uncompressed
MAX_RATIO = 200  # uncompressed to compressed; real images do not shrink in a zip
MAX_PIXELS = 1 << 26

Pixels = NDArray[np.uint8]
Files = tuple[list[str], Callable[[str], bytes]]  # names, and how to read one


class CorruptImage(ValueError):
    """One image that cannot be read; the message says why."""


@dataclass(frozen=True)
class Source:
    """A set of images.

    ``keys`` names the items, ``labels`` int64 (N,) holds -1 for none, ``held_out`` bool (N,) is
    the given split or None; ``load(i)`` decodes item i to uint8 (C, H, W) and may raise
    :class:`CorruptImage`.
    """

    keys: Sequence[str]
    labels: NDArray[np.int64]
    classes: Sequence[str]
    load: Callable[[int], Pixels]
    held_out: NDArray[np.bool_] | None = None

    def take(self, which: NDArray[np.int64]) -> Source:
        """The items ``which``, in that order."""
        return Source(
            [self.keys[i] for i in which],
            self.labels[which],
            self.classes,
            lambda i: self.load(int(which[i])),
            None if self.held_out is None else self.held_out[which],
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
    except (OSError, RuntimeError) as error:
        raise UserError(f"CIFAR-10 is not under {root} and cannot be downloaded "
                        f"({_first_line(error)}); put cifar-10-python.tar.gz there, or set "
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
        path: folder or .zip; ``train/`` beside ``test/`` (or ``val/``) gives the split.
        channels: 1 for grey, 3 for RGB.
        resolution: the shorter side is resized to it with antialiasing and the centre square is
            cut out; None takes images as they are, all square and of one size.
        labels: ``"folders"`` for class sub-folders, None, or a CSV file of ``name,label`` rows.

    Raises:
        UserError: if there are no images, an archive is unsafe, or labels are missing.
    """
    if not path.exists():
        raise UserError(f"{path} does not exist; give a folder or a zip of images (in params.yaml "
                        f"by dataset.path)")  # fmt: skip
    names, read = unzip(path) if zipfile.is_zipfile(path) else _folder(path)
    if not names:
        raise UserError(f"{path} holds no images (of {', '.join(sorted(SUFFIXES))})")
    parts = _below_common(names)
    split = {part.parts[0] for part in parts if len(part.parts) > 1}
    held_name = next((name for name in HELD_OUT_FOLDERS if name in split), None)
    held_out = None
    if "train" in split and held_name and split == {"train", held_name}:
        held_out = np.array([part.parts[0] == held_name for part in parts])
        parts = [PurePosixPath(*part.parts[1:]) for part in parts]
    numbers, classes = _labels(path, names, parts, labels)
    expected: list[tuple[int, ...]] = []

    def load(i: int) -> Pixels:
        pixels = decode(read(names[i]), channels, resolution)
        expected.append(pixels.shape) if not expected else None
        if pixels.shape != expected[0]:
            size = "x".join(map(str, pixels.shape[1:]))
            first = "x".join(map(str, expected[0][1:]))
            raise UserError(f"{names[i]} is {size} pixels, not {first} as the first image; set "
                            f"dataset.resolution to bring all to one size")  # fmt: skip
        return pixels

    return Source(names, numbers, classes, load, held_out)


def images_at(path: Path, channels: int, resolution: int) -> list[Pixels]:
    """Every image of a file, a folder or a zip as uint8 (C, resolution, resolution).

    Raises:
        UserError: if there is none or one is corrupt.
    """
    if path.is_file() and not zipfile.is_zipfile(path):
        data, none = path.read_bytes(), np.full(1, -1, dtype=np.int64)
        source = Source([str(path)], none, [], lambda i: decode(data, channels, resolution))
    else:
        source = folder(path, channels, resolution, None)
    found = []
    for i, name in enumerate(source.keys):
        try:
            found.append(source.load(i))
        except CorruptImage as error:
            raise UserError(f"{name} is not a readable image ({error})") from None
    return found


def decode(data: bytes, channels: int, resolution: int | None) -> Pixels:
    """An image file's bytes as uint8 (C, H, W), square.

    Raises:
        CorruptImage: if Pillow cannot read it whole, or it is unreasonably large.
        UserError: if it is not square and no resolution is given.
    """
    try:
        with Image.open(io.BytesIO(data)) as opened:
            if opened.width * opened.height > MAX_PIXELS:
                raise CorruptImage(f"{opened.width}x{opened.height} pixels are too many")
            image = ImageOps.exif_transpose(opened).convert("L" if channels == 1 else "RGB")
    except CorruptImage:
        raise
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError,
            EOFError, IndexError, KeyError, TypeError, OverflowError) as error:  # fmt: skip
        raise CorruptImage(_first_line(error)) from None
    if resolution is not None:
        side = (resolution, resolution)
        image = ImageOps.fit(image, side, Image.Resampling.LANCZOS, centering=(0.5, 0.5))
    elif image.width != image.height:
        raise UserError(f"an image is {image.width}x{image.height} pixels; set dataset.resolution "
                        f"to cut out squares of one size")  # fmt: skip
    pixels = np.asarray(image, dtype=np.uint8)
    return pixels[None] if channels == 1 else pixels.transpose(2, 0, 1)


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


def _folder(path: Path) -> Files:
    files = (file for file in path.rglob("*") if file.suffix.lower() in SUFFIXES)
    names = sorted(file.relative_to(path).as_posix() for file in files if file.is_file())
    return names, lambda name: (path / name).read_bytes()


def unzip(path: Path, suffixes: Collection[str] = SUFFIXES) -> Files:
    """Names of a zip's files of some suffixes, sorted, and their reader; nothing is extracted.

    Raises:
        UserError: if it is no zip, or an entry lies outside it or is of absurd size.
    """
    try:
        archive = zipfile.ZipFile(path)
    except (zipfile.BadZipFile, OSError) as error:
        raise UserError(f"{path} is not a readable zip: {_first_line(error)}") from None
    entries = [entry for entry in archive.infolist() if not entry.is_dir()]
    for entry in entries:
        name = PurePosixPath(entry.filename)
        if name.is_absolute() or ".." in name.parts or "\\" in entry.filename:
            raise UserError(f"{path} has an entry outside itself: {entry.filename!r}")
        ratio = entry.file_size / max(1, entry.compress_size)
        if entry.file_size > MAX_ENTRY or (entry.file_size > 1 << 20 and ratio > MAX_RATIO):
            raise UserError(f"{path} has an entry of absurd size: {entry.filename!r} unpacks to "
                            f"{entry.file_size:,} bytes")  # fmt: skip
    names = (e.filename for e in entries if PurePosixPath(e.filename).suffix.lower() in suffixes)

    def read(name: str) -> bytes:
        try:
            return archive.read(name)
        except (zipfile.BadZipFile, OSError, EOFError, NotImplementedError, RuntimeError) as error:
            raise CorruptImage(_first_line(error)) from None

    return sorted(names), read


def _below_common(names: Sequence[str]) -> list[PurePosixPath]:
    """Names without the folders that all of them share (an archive's wrapper)."""
    parts = [PurePosixPath(name).parts for name in names]
    while all(len(part) > 2 for part in parts) and len({part[0] for part in parts}) == 1:
        parts = [part[1:] for part in parts]
    return [PurePosixPath(*part) for part in parts]


def _labels(
    path: Path, names: Sequence[str], parts: Sequence[PurePosixPath], labels: str | None
) -> tuple[NDArray[np.int64], list[str]]:
    none = np.full(len(names), -1, dtype=np.int64)
    if labels is None:
        return none, []
    if labels == "folders":
        if any(len(part.parts) < 2 for part in parts):
            return none, []
        given = [part.parts[0] for part in parts]
    else:
        rows = _rows(Path(labels))
        lost = [name for name in names if name not in rows]
        if lost:
            raise UserError(f"{labels} has no label for {len(lost)} of {len(names)} images of "
                            f"{path}, the first is {lost[0]}")  # fmt: skip
        given = [rows[name] for name in names]
    classes = sorted(set(given), key=lambda c: (not c.isdigit(), int(c) if c.isdigit() else 0, c))
    number = {name: i for i, name in enumerate(classes)}
    return np.array([number[name] for name in given], dtype=np.int64), classes


def _rows(path: Path) -> dict[str, str]:
    try:
        with path.open(newline="") as file:
            return {row[0].strip(): row[1].strip() for row in csv.reader(file) if len(row) >= 2}
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"dataset.labels {path} cannot be read: {_first_line(error)}") from None


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
