"""What a worker does: make one shard of pairs, or one micro-batch again as a witness.

Plain functions of plain arguments; the teacher stays loaded between calls.  No Prefect here.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from rfpp_core import build, runtime
from rfpp_core.errors import UserError
from rfpp_core.pairs import PairSpec, PairStore
from rfpp_core.pixels import to_uint8
from rfpp_core.sampling import Flow, Recipe, draw, threads_for
from rfpp_core.zarr_io import digest_of


def make_shard(store_path: str, teacher: str, shard: int) -> int:
    """Generates and commits one shard; returns how many pairs it holds.

    Every micro-batch is aligned with the index and computed on its own, so neither the number of
    workers nor the order of shards can change an image.
    """
    store = PairStore.open(Path(store_path))
    spec, flow = store.spec, _teacher(teacher)
    if flow.digest != spec.teacher:
        raise UserError(f"{teacher} is not the teacher of {store_path} any more")
    start = shard * spec.shard
    starts = range(start, start + spec.shard, spec.micro_batch)
    images = runtime.map_exact(
        lambda first: micro_batch(flow, spec, first), starts, threads_for(flow.device)
    )
    y = spec.y(spec.index(start, start + spec.shard))
    labels = np.full(spec.shard, -1, np.int16) if y is None else y.numpy().astype(np.int16)
    store.commit(shard, np.concatenate(images), labels, made_by=runtime.signature(flow.device))
    return spec.shard


class Witness(NamedTuple):
    """A kept micro-batch beside the same one made again today."""

    share: float  # of pixels that differ
    levels: float  # by how many grey levels at most
    digest: str  # of the one made today
    same_machine: bool  # made by the same device, build of torch and instruction set


def witness(store_path: str, teacher: str, shard: int) -> Witness:
    """Makes the first micro-batch of a committed shard again and compares."""
    store, flow = PairStore.open(Path(store_path)), _teacher(teacher)
    spec = store.spec
    start = shard * spec.shard
    old, _ = store.read(start, start + spec.micro_batch)
    new = micro_batch(flow, spec, start)
    gap = np.abs(old.astype(np.int16) - new)
    same = store.marker(shard).get("made_by") == runtime.signature(flow.device)
    return Witness(float((gap > 0).mean()), float(gap.max()), digest_of(new), same)


def micro_batch(flow: Flow, spec: PairSpec, start: int) -> NDArray[np.uint8]:
    """uint8 images (micro_batch, C, H, W) of the pairs from ``start`` on."""
    index = spec.index(start, start + spec.micro_batch).to(flow.device)
    recipe = Recipe(spec.solver, spec.nfe, spec.grid, guidance=spec.guidance)
    z, y = spec.z(index), spec.y(index)
    images = draw(flow.field, z, y, recipe, start=spec.start).x
    return np.ascontiguousarray(to_uint8(images).cpu().numpy())


@functools.lru_cache(maxsize=1)
def _teacher(path: str) -> Flow:
    runtime.exact()
    return build.load_flow(path, runtime.device())
