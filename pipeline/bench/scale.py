"""The pair store at 100,000 and at a million pairs, and with many shards: time must be linear."""

from __future__ import annotations

import shutil
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.bench.loader import pair_store, photographs
from pipeline.bench.measure import Figure, costs, peak_memory
from rfpp_core.images.buffers import Buffers
from rfpp_core.pairs.store import PairStore

SMALL, LARGE, SHARD, ROUNDS = 100_000, 1_000_000, 10_000, 5
FEW, MANY, PAIRS = 100, 10_000, 10  # shards, and pairs of each


def run(small: int = SMALL, large: int = LARGE, rounds: int = ROUNDS, many: int = MANY
        ) -> list[Figure]:  # fmt: skip
    """Time a pair of a small and a large store, in turns, medians; time a shard of few and many.

    Args:
        small: pairs of 3x32x32 of the small store, a multiple of ``SHARD``.
        large: of the large one.
        rounds: how often each is written and read.
        many: shards of the store of many.
    """
    images = photographs(SHARD, 32)
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        taken: dict[int, list[tuple[float, float]]] = {small: [], large: []}
        for _ in range(rounds):
            for n, values in taken.items():
                values.append(_write_and_read(place / f"{time.monotonic_ns()}", images, n))
        shards = {f"{n:,} shards": _per_shard(place / f"shards{n}", images[:, :1, :8, :8], n)
                  for n in sorted({min(FEW, many), many})}  # fmt: skip
    found = []
    for i, what in enumerate(("write", "open, check and read into files")):
        seconds = {f"{n:,} pairs": statistics.median(v[i] for v in values) / n
                   for n, values in taken.items()}  # fmt: skip
        found += costs(f"{what}, 3x32x32", "us a pair", 1, seconds)
    found += costs(f"commit, digest and publish shards of {PAIRS} pairs", "ms a shard", 1, shards)
    return [*found, Figure("memory", "most that this process held", peak_memory(), "GB")]


def _write_and_read(path: Path, images: NDArray[np.uint8], n: int) -> tuple[float, float]:
    """Seconds to commit every shard of n pairs, and to open the store and read them."""
    path.mkdir()
    began = time.perf_counter()
    pair_store(path / "pairs.zarr", images, n, SHARD)
    written = time.perf_counter()
    PairStore.open(path / "pairs.zarr").read_all(Buffers(path / "flat", 0))
    done = time.perf_counter()
    shutil.rmtree(path)
    return written - began, done - written


def _per_shard(path: Path, images: NDArray[np.uint8], shards: int) -> float:
    """Seconds a shard of a store of many small ones, published at the end."""
    path.mkdir()
    began = time.perf_counter()
    store = pair_store(path / "pairs.zarr", images[:PAIRS], shards * PAIRS, PAIRS)
    store.publish(path / "published.zarr", store.n)
    PairStore.open(path / "published.zarr").digest(decode=False)
    return (time.perf_counter() - began) / shards
