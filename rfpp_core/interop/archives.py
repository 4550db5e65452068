"""Pair archives of the official RF++ code, read into a pair store with the noise stored.

``samples.zip`` holds 8-bit images; ``z.zip`` a ``.bin`` of the same stem for each: state and
increment of NumPy's PCG64, 16 bytes big-endian each, from which ``standard_normal((C, H, W))`` in
float64, cast to float32, is the noise; a CSV of ``image,label`` rows without a header may name
labels.  NumPy does not promise to keep that stream, so the noise is stored once it is drawn.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from rfpp_core.errors import UserError, quoted
from rfpp_core.images.decode import CorruptImage, decode
from rfpp_core.images.listing import unzip
from rfpp_core.interop.importing import EDM_START
from rfpp_core.pairs.noise_check import NoiseCheck
from rfpp_core.pairs.spec import Pairs, PairSpec
from rfpp_core.pairs.store import PairStore
from rfpp_core.storage import files

SHARD = 1000
Watch = Callable[[Iterable[int]], Iterable[int]]


class Checked(NamedTuple):
    """Statistics of what was imported; ``coupling`` is the correlation of noise and image over
    8x8 means: far above ``chance`` for the pairs of a flow, within it for shuffled ones."""

    n: int
    mean: float
    std: float
    coupling: float
    chance: float


class Archive:
    """An image zip and its noise zip.

    Raises:
        UserError: if one is unsafe or unreadable, or they do not belong together.
    """

    def __init__(self, images: Path, noise: Path, labels: Path | None) -> None:
        for path in (images, noise):
            if not path.is_file():
                raise UserError(f"{path} is missing; it must be a zip of the official pair format")
        states, pictures = unzip(noise, (".bin",)), unzip(images)
        self._read_state, self._read_image = states.read, pictures.read
        self.states, self.path = states.names, noise
        of_stem = {PurePosixPath(name).with_suffix(""): name for name in pictures.names}
        stems = [PurePosixPath(name).with_suffix("") for name in self.states]
        lost = [str(stem) for stem in stems if stem not in of_stem]
        if lost or not stems or len(of_stem) != len(stems):
            first = f", the first {quoted(lost[0])}.bin" if lost else ""
            raise UserError(
                f"{images} and {noise} do not belong together: {len(pictures.names)} images and "
                f"{len(stems)} noise files, {len(lost)} of them without an image{first}"
            )
        self.images = [of_stem[stem] for stem in stems]
        rows = _labels(labels) if labels else {}
        self.labels = np.array([rows.get(name, -1) for name in self.images], np.int16)
        if rows and (self.labels < 0).any():
            first = self.images[int(np.argmax(self.labels < 0))]
            raise UserError(f"{labels} has no label (0 to 32767) for {quoted(first)}")

    def image(self, i: int) -> NDArray[np.uint8]:
        """uint8 (C, H, W), RGB."""
        try:
            return decode(self._read_image(self.images[i]), 3, None)
        except CorruptImage as error:
            raise UserError(
                f"{quoted(self.images[i])} is not a readable image ({error})"
            ) from None

    def noise(self, i: int, shape: tuple[int, ...]) -> NDArray[np.float32]:
        """float32 (C, H, W)."""
        data = self._read_state(self.states[i])
        if len(data) != 32:
            raise UserError(f"{quoted(self.states[i])} in {self.path} is {len(data)} bytes, not a "
                            f"PCG64 state of 32")  # fmt: skip
        state, increment = (int.from_bytes(data[k : k + 16], "big") for k in (0, 16))
        bits = np.random.PCG64()
        bits.state = {
            "bit_generator": "PCG64",
            "state": {"state": state, "inc": increment},
            "has_uint32": 0,
            "uinteger": 0,
        }
        return np.random.Generator(bits).standard_normal(shape).astype(np.float32)


def convert(
    archive: Archive, out: Path, digests: tuple[str, ...], watch: Watch, **solver: Any
) -> Checked:
    """Writes the store ``out``, which appears once it is complete and checked.  An interrupted
    import resumes.

    Args:
        archive: the pairs.
        out: the store.
        digests: sha256 of the files, recorded as the source of the pairs.
        watch: wraps the shards, for a progress bar.
        solver: ``solver``, ``nfe`` and ``grid``, which the archive does not state.

    Raises:
        UserError: if ``out`` exists, a file of the archive is corrupted, or the noise is not
            standard normal.
    """
    if out.exists():
        raise UserError(f"{out} exists; remove it or name another")
    shape = archive.image(0).shape
    c, h, w = shape
    spec = PairSpec(
        teacher="",
        guidance=1.0,
        classes=int(archive.labels.max()) + 1,
        seed=0,
        shape=(c, h, w),
        micro_batch=SHARD,
        shard=SHARD,
        start=EDM_START,
        source=files.digest(list(digests)),
        noise_kind="stored",
        **solver,
    )
    building = out.with_name(f".{out.name}.partial")
    store = PairStore.create(building, spec, len(archive.images))
    for shard in watch(store.missing()):
        index = range(*store.span(shard))
        images = [archive.image(i) for i in index]
        if wrong := [i for i, x in zip(index, images, strict=True) if x.shape != shape]:
            raise UserError(
                f"{quoted(archive.images[wrong[0]])} is not of {h}x{w} pixels as the first"
            )
        noise = np.stack([archive.noise(i, shape) for i in index])
        labels = archive.labels[index.start : index.stop]
        store.commit(shard, Pairs(np.stack(images), labels, noise), made_by="import")
    found = check(PairStore.open(building))
    building.rename(out)
    return found


def check(store: PairStore) -> Checked:
    """Statistics of a store's noise, and its correlation with the images.

    Raises:
        UserError: if the noise is not standard normal, or a sample of it occurs twice.
    """
    noise = NoiseCheck()
    sums = np.zeros(5)  # of xz, x, z, xx, zz over coarse values
    for _, pairs in store.each_shard():
        assert pairs.noise is not None
        noise.add(pairs.noise)
        a, b = _coarse(pairs.images / 127.5 - 1), _coarse(pairs.noise.astype(np.float64))
        sums += [(a * b).sum(), a.sum(), b.sum(), (a * a).sum(), (b * b).sum()]
    if not noise.normal:
        raise UserError(
            f"the noise of {store.path} has mean {noise.mean:.4f} and standard deviation "
            f"{noise.std:.4f}, not 0 and 1: these are not the PCG64 states of its pairs"
        )
    if noise.repeats:
        raise UserError(f"{store.path} holds {noise.repeats} noise samples twice")
    count = noise.values // (_block(store.spec.shape[-1]) ** 2)
    xz, x, z, xx, zz = sums / count
    coupling = (xz - x * z) / ((xx - x * x) * (zz - z * z)) ** 0.5
    return Checked(store.n, noise.mean, noise.std, float(coupling), 4 / count**0.5)


def _coarse(x: NDArray[np.float64]) -> NDArray[np.float64]:
    n, c, h, w = x.shape
    b = _block(w)
    means: NDArray[np.float64] = x.reshape(n, c, h // b, b, w // b, b).mean((3, 5))
    return means


def _block(side: int) -> int:
    return next(b for b in (8, 4, 2, 1) if side % b == 0)


def _labels(path: Path) -> dict[str, int]:
    try:
        with path.open(newline="") as file:
            rows = [row for row in csv.reader(file) if row]
        found = {row[0].strip(): int(row[1]) for row in rows}
    except (OSError, ValueError, IndexError, csv.Error) as error:
        raise UserError(f"{path} is not a CSV of image,label rows: {quoted(error)}") from None
    if wrong := [name for name, label in found.items() if not 0 <= label < 2**15]:
        raise UserError(f"{path}: the label of {quoted(wrong[0])} is out of range 0..32767")
    return found
