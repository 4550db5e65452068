"""The image store: uint8 NCHW arrays with labels, split into train and held out.

The image store is a Zarr group with ``train`` and ``held_out``, each with ``images`` uint8
(N, C, H, W) and ``labels`` int16 (N,).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import zarr
from numpy.typing import NDArray

from rfpp_core.errors import Corrupted, UserError, quoted
from rfpp_core.images.buffers import MEMORY, Buffers, flush
from rfpp_core.images.decode import CorruptImage, Pixels
from rfpp_core.images.sources import Source
from rfpp_core.storage.zarr_arrays import Layout, create_array, open_group

CHUNK = 1000  # images of a file
Split = Literal["train", "held_out"]


class Images(NamedTuple):
    """uint8 images (N, C, H, W) and integer labels (N,)."""

    images: NDArray[np.uint8]
    labels: NDArray[np.integer[Any]]


def metadata(path: Path) -> dict[str, Any]:
    """The attributes of an image store: name, shape, classes, digests of it and its splits.

    Raises:
        UserError: if there is no image store at ``path``.
    """
    attrs = open_group(path, "dvc repro prepare").attrs.asdict().get("rfpp")
    if not isinstance(attrs, dict):
        raise UserError(f"{path} is not an image store; `dvc repro prepare` makes it")
    return attrs


def count(path: Path, part: Split) -> int:
    """How many images a split has."""
    group: Any = open_group(path, "dvc repro prepare")[part]
    return int(group["images"].shape[0])


def labels(path: Path, part: Split) -> NDArray[np.integer[Any]]:
    """The labels (N,) of a split.

    Raises:
        Corrupted: if their file is missing, empty, or not what was written.
    """
    group: Any = open_group(path, "dvc repro prepare")[part]
    _check_there(path, part, ["labels/c/0"])
    try:
        found: NDArray[np.integer[Any]] = group["labels"][:]
    except (ValueError, RuntimeError) as error:
        raise _corrupted(path, part, str(error)) from None
    return found


def as_source(path: Path) -> Source:
    """The images of a store as a source: the training split, then the held-out one."""
    parts: tuple[Split, Split] = ("train", "held_out")
    given = [labels(path, part).astype(np.int64) for part in parts]
    n = len(given[0])

    def load(i: int) -> Pixels:
        part, k = (parts[0], i) if i < n else (parts[1], i - n)
        pixels: Pixels = read_some(path, part, slice(k, k + 1)).images[0]
        return pixels

    together = np.concatenate(given)
    keys = [str(i) for i in range(len(together))]
    held_out = np.arange(len(together)) >= n
    return Source(keys, together, metadata(path)["class_names"], load, held_out)


def rows_of(path: Path, part: Split, wanted: Collection[int]) -> NDArray[np.int64]:
    """Positions in a split, ascending, of the images with certain labels."""
    return np.flatnonzero(np.isin(labels(path, part), [*wanted]))


def read_rows(path: Path, part: Split, rows: NDArray[np.int64]) -> Images:
    """The images of a split at some positions, at least one and ascending, a chunk at a time.

    Raises:
        Corrupted: as :func:`read_some`.
    """
    found = []
    for chunk in np.split(rows, np.flatnonzero(np.diff(rows // CHUNK)) + 1):
        between = read_some(path, part, slice(int(chunk[0]), int(chunk[-1]) + 1))
        found.append(Images(*(array[chunk - chunk[0]] for array in between)))
    images, labels = zip(*found, strict=True)
    return Images(np.concatenate(images), np.concatenate(labels))


def read(
    path: Path, part: Split, buffers: Buffers = MEMORY, wanted: Collection[int] | None = None
) -> Images:
    """One split of an image store, in memory or in the arrays of ``buffers``.

    Args:
        path: the store.
        part: which split.
        buffers: where the arrays are.
        wanted: labels of the images that are kept; None for all.

    Raises:
        Corrupted: if it is not what was written.
    """
    group: Any = open_group(path, "dvc repro prepare")[part]
    found = labels(path, part)
    kept = np.ones(len(found), bool) if wanted is None else np.isin(found, [*wanted])
    layout = {name: ((int(kept.sum()), *group[name].shape[1:]), str(group[name].dtype))
              for name in Images._fields}  # fmt: skip
    arrays, empty = buffers.arrays(layout)
    if empty:
        sha, size, done = hashlib.sha256(), group["images"].chunks[0], 0
        for start in range(0, len(found), size):
            here = slice(start, start + size)
            block = read_some(path, part, here)
            sha.update(np.ascontiguousarray(block.images).data)
            stop = done + int(kept[here].sum())
            for name, values in block._asdict().items():
                arrays[name][done:stop] = values[kept[here]]
            done = stop
        sha.update(np.ascontiguousarray(found).data)
        if metadata(path).get("splits", {}).get(part) != sha.hexdigest():
            raise _corrupted(path, part, "it is not what was written")
        flush(arrays)
    return Images(**arrays)


def read_some(path: Path, part: Split, span: slice) -> Images:
    """Some images of a split.

    Raises:
        Corrupted: if a file of them is missing, empty, or not what was written.
    """
    group: Any = open_group(path, "dvc repro prepare")[part]
    images, labels = group["images"], group["labels"]
    first, stop, _ = span.indices(images.shape[0])
    shards = range(first // images.shards[0], -(-stop // images.shards[0]))
    names = [*(f"images/c/{k}/0/0/0" for k in shards), "labels/c/0"]
    _check_there(path, part, names)
    try:
        return Images(images[span], labels[span])
    except (ValueError, RuntimeError) as error:
        raise _corrupted(path, part, str(error)) from None


def _check_there(path: Path, part: Split, names: Sequence[str]) -> None:
    """Refuses missing and empty files, which zarr reads as silent zeros."""
    for file in (path / part / name for name in names):
        if not file.exists() or not file.stat().st_size:
            raise _corrupted(path, part, f"{file} is missing or empty")


def _corrupted(path: Path, part: Split, why: str) -> Corrupted:
    files = (file for file in (path / part).rglob("*") if file.is_file())
    return Corrupted(f"{path} is corrupted in the split {part} ({why}); `dvc repro prepare` "
                     f"rebuilds it", *files)  # fmt: skip


def write(
    path: Path,
    source: Source,
    held_out: NDArray[np.bool_],
    skip_corrupt: bool = False,
    watch: Callable[[list[int]], Iterable[int]] = iter,
    **metadata: Any,
) -> list[str]:
    """Decodes a source into an image store, a chunk in memory at a time.

    Args:
        path: where; must not exist.
        source: the images.
        held_out: bool (N,), the images of the held-out split.
        skip_corrupt: skip images that cannot be read instead of refusing the set.
        watch: wraps the indices, for a progress bar.
        metadata: what else to put in the attributes.

    Returns:
        A line for each corrupt image.

    Raises:
        UserError: if images are corrupt and not to be skipped, or a split is empty.
    """
    group = zarr.open_group(path, mode="w-", zarr_format=3)
    corrupt: list[str] = []
    sha, shape, splits = hashlib.sha256(), (0, 0, 0), {}
    for name, mask in (("train", ~held_out), ("held_out", held_out)):
        writer: _Writer | None = None
        for i in watch(np.flatnonzero(mask).tolist()):
            try:
                pixels = source.load(i)
            except CorruptImage as error:
                corrupt.append(f"{quoted(source.keys[i])}: {error}")
                continue
            if writer is None:
                shape = pixels.shape
                writer = _Writer(group.create_group(name), shape, int(mask.sum()), sha)
            writer.add(pixels, int(source.labels[i]))
        if writer is not None:
            writer.close()
            splits[name] = writer.own.hexdigest()
        elif not corrupt:
            raise UserError(f"the {name.replace('_', '-')} split is empty; give more images or "
                            f"change dataset.held_out")  # fmt: skip
    if corrupt and not (skip_corrupt and len(splits) == 2):
        _refuse(corrupt, skip_corrupt)
    group.attrs["rfpp"] = {
        **metadata,
        "shape": list(shape),
        "classes": len(source.classes),
        "class_names": list(source.classes),
        "digest": sha.hexdigest(),
        "splits": splits,
    }
    return corrupt


def _refuse(corrupt: list[str], skipped: bool) -> None:
    some = "; ".join(corrupt[:3]) + (f"; and {len(corrupt) - 3} more" if len(corrupt) > 3 else "")
    if skipped:
        raise UserError(f"{len(corrupt)} corrupt image(s) ({some}) leave a split empty; fix them "
                        f"or give more images")  # fmt: skip
    raise UserError(f"{len(corrupt)} corrupt image(s) ({some}); fix them or set "
                    f"dataset.skip_corrupt: true")  # fmt: skip


class _Writer:
    """Writes one split chunk by chunk; at the end it is shortened by the skipped images."""

    def __init__(self, group: zarr.Group, shape: tuple[int, ...], n: int, sha: Any) -> None:
        self.chunk, self.sha, self.own, self.done = min(CHUNK, n), sha, hashlib.sha256(), 0
        layout = Layout(shape, "uint8", self.chunk, self.chunk)
        self.images: Any = create_array(group, "images", n, layout)
        self.labels: Any = create_array(group, "labels", n, Layout((), "int16", n, None))
        self.pixels: list[NDArray[np.uint8]] = []
        self.numbers: list[int] = []

    def add(self, pixels: NDArray[np.uint8], label: int) -> None:
        self.pixels.append(pixels)
        self.numbers.append(label)
        if len(self.pixels) == self.chunk:
            self._flush()

    def _flush(self) -> None:
        if self.pixels:
            block = np.ascontiguousarray(np.stack(self.pixels))
            self.images[self.done : self.done + len(block)] = block
            self._add(block.data)
            self.done, self.pixels = self.done + len(block), []

    def close(self) -> None:
        self._flush()
        numbers = np.array(self.numbers, dtype=np.int16)
        self.images.resize((self.done, *self.images.shape[1:]))
        self.labels.resize((self.done,))
        self.labels[:] = numbers
        self._add(numbers.data)

    def _add(self, content: memoryview) -> None:
        """To the digests of the set and of the split."""
        self.sha.update(content)
        self.own.update(content)
