"""What a training's set delivers, beside a stand-in of the layout of RF++'s released code.

The stand-in is written from its description: PNG files in one zip, the state of a generator for
each noise in another, a generator restored and an image decoded for each pair.
"""

from __future__ import annotations

import io
import math
import tempfile
import zipfile
from functools import partial
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from pipeline.bench.measure import Action, Figure, in_turns, peak_memory, rates
from rfpp_core.config import objective
from rfpp_core.images import loader
from rfpp_core.images.buffers import MEMORY, Buffers
from rfpp_core.pairs.spec import Pairs, PairSpec
from rfpp_core.pairs.store import PairStore
from rfpp_core.rng import StepRNG
from rfpp_core.storage.zarr_arrays import Codec

SIDES = (32, 64)
N, SHARD, BATCH = 20_000, 2000, 512
STATE = 16  # bytes of a generator's state, and of its increment
CPU = torch.device("cpu")


def run(n: int = N) -> list[Figure]:
    """Pairs a second of one core, for images of 32 and 64 pixels.

    Args:
        n: pairs of each set, a multiple of the batch.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with tempfile.TemporaryDirectory() as folder:
            found = [f for side in SIDES for f in _of_side(Path(folder) / str(side), n, side)]
    finally:
        torch.set_num_threads(threads)
    return [*found, Figure("memory", "most that this process held", peak_memory(), "GB")]


def _of_side(folder: Path, n: int, side: int) -> list[Figure]:
    folder.mkdir()
    images = photographs(n, side)
    other, store = StandIn(folder, images), pair_store(folder / "pairs.zarr", images, n, SHARD)
    memory = torch.from_numpy(store.read_all(MEMORY).images)
    paged = torch.from_numpy(store.read_all(Buffers(folder / "flat", 0)).images)
    order = np.random.default_rng(0).permutation(n)
    alone: dict[str, Action] = {
        "published layout": lambda: [other.image(i) for i in order[:BATCH]],
        "in-memory indexing": _indexing(memory),
        "ours, in memory": _batches(memory),
        "ours, paged": _batches(paged),
    }
    with_noise: dict[str, Action] = {
        "published layout": lambda: [(other.image(i), other.noise(i)) for i in order[:BATCH]],
        "ours, in memory": _coupled(memory, store.spec.seed),
        "ours, paged": _coupled(paged, store.spec.seed),
    }
    name = f"of 3x{side}x{side}, a core"
    return [
        *_codecs(folder, images, n, side),
        *rates(f"images {name}", "images/s", BATCH, in_turns(alone)),
        *rates(f"pairs {name}, noise made on the CPU", "pairs/s", BATCH, in_turns(with_noise)),
    ]


def _codecs(folder: Path, images: NDArray[np.uint8], n: int, side: int) -> list[Figure]:
    """Bytes on disk and rate of decoding for each codec of the store."""
    group, stores = f"codecs of 3x{side}x{side}, a core", dict[str, PairStore]()
    for codec in get_args(Codec):
        stores[codec] = pair_store(folder / f"{codec}.zarr", images, n, SHARD, codec)
    raw = math.prod(images.shape[1:])
    sizes = {codec: sum(f.stat().st_size for f in (store.path / "images").rglob("*")) / n
             for codec, store in stores.items()}  # fmt: skip
    reads = in_turns({codec: partial(store.read, 0, SHARD) for codec, store in stores.items()})
    return [
        Figure(group, "raw", raw, "bytes", 1.0),
        *(Figure(group, codec, size, "bytes", size / raw) for codec, size in sizes.items()),
        *(f._replace(name=f"{f.name}, read") for f in rates(group, "images/s", SHARD, reads)),
    ]


def _indexing(images: torch.Tensor) -> Action:
    order = torch.randperm(len(images))[:BATCH]
    return lambda: images[order]


def _batches(images: torch.Tensor) -> Action:
    """uint8 batches in the loader's order."""
    picked = loader.picked(images, None, BATCH, 0)
    return lambda: next(picked)


def _coupled(images: torch.Tensor, seed: int) -> Action:
    """Batches as a training on pairs takes them: float images and their noise."""
    coupling = objective.PAIRED["seeded"](seed, None)
    drawn = loader.batches(images, None, BATCH, 0, CPU)
    return lambda: coupling(next(drawn), StepRNG(0, 0, BATCH))


def photographs(n: int, side: int) -> NDArray[np.uint8]:
    """Crops of two photographs, box-resampled: uint8 (n, 3, side, side)."""
    from sklearn.datasets import load_sample_images

    whole, draws = load_sample_images().images, np.random.default_rng(0)
    found = np.empty((n, side, side, 3), np.uint8)
    for i in range(n):
        picture = Image.fromarray(whole[i % len(whole)])
        size = int(draws.integers(side, 400))
        left, top = (int(draws.integers(0, extent - size + 1)) for extent in picture.size)
        crop = picture.resize(
            (side, side), Image.Resampling.BOX, (left, top, left + size, top + size)
        )
        found[i] = np.asarray(crop)
    return np.ascontiguousarray(found.transpose(0, 3, 1, 2))


def pair_store(
    path: Path, images: NDArray[np.uint8], n: int, shard: int, codec: Codec = "blosc"
) -> PairStore:
    """A complete store of n pairs as if made of the noise of seed 0; its shards repeat images."""
    shape = (int(images.shape[1]), int(images.shape[2]), int(images.shape[3]))
    spec = PairSpec("bench", "euler", 1, "uniform", 1.0, 0, 0, shape, shard, shard,
                    codec=codec)  # fmt: skip
    store = PairStore.create(path, spec, n)
    for k in range(store.shards):
        start, stop = store.span(k)
        part = images.take(range(start, stop), axis=0, mode="wrap")
        store.commit(k, Pairs(part, np.full(len(part), -1, np.int16), None))
    return store


class StandIn:
    """The published layout: ``samples.zip`` of PNG files, ``z.zip`` of generator states."""

    def __init__(self, folder: Path, images: NDArray[np.uint8]) -> None:
        self.shape, draws = images.shape[1:], np.random.default_rng(0)
        with (
            zipfile.ZipFile(folder / "samples.zip", "w", zipfile.ZIP_STORED) as pictures,
            zipfile.ZipFile(folder / "z.zip", "w", zipfile.ZIP_STORED) as states,
        ):
            for i, image in enumerate(images):
                png = io.BytesIO()
                Image.fromarray(image.transpose(1, 2, 0)).save(png, "png")
                pictures.writestr(f"{i:05d}.png", png.getvalue())
                state: Any = draws.bit_generator.state["state"]
                number = (state[key].to_bytes(STATE, "big") for key in ("state", "inc"))
                states.writestr(f"{i:05d}.bin", b"".join(number))
                draws.standard_normal(math.prod(self.shape))
        self.pictures = zipfile.ZipFile(folder / "samples.zip")
        self.states = zipfile.ZipFile(folder / "z.zip")

    def image(self, i: int) -> NDArray[np.float32]:
        """An image in [-1, 1], float32 (C, H, W)."""
        with Image.open(io.BytesIO(self.pictures.read(f"{i:05d}.png"))) as picture:
            pixels = np.asarray(picture, np.float32)
        return pixels.transpose(2, 0, 1) / np.float32(127.5) - 1

    def noise(self, i: int) -> NDArray[np.float32]:
        """Its noise, float32 (C, H, W)."""
        data = self.states.read(f"{i:05d}.bin")
        number = [int.from_bytes(part, "big") for part in (data[:STATE], data[STATE:])]
        generator = np.random.Generator(np.random.PCG64())
        state = {"state": number[0], "inc": number[1]}
        generator.bit_generator.state = {
            "bit_generator": "PCG64", "state": state, "has_uint32": 0, "uinteger": 0,
        }  # fmt: skip
        return generator.standard_normal(self.shape).astype(np.float32)
