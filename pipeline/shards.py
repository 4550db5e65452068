"""What a worker does: make one shard of pairs, or one micro-batch again as a witness.

Plain functions of plain arguments; the teacher stays loaded between calls.  No Prefect here.
"""

from __future__ import annotations

import functools
import os
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from rfpp_core import build, runtime
from rfpp_core.data import to_uint8
from rfpp_core.errors import UserError
from rfpp_core.pairs import PairSpec, PairStore
from rfpp_core.sampling import Flow, Recipe, draw, threads_for


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
    device = str(flow.device)
    store.commit(shard, np.concatenate(images), labels, device=device, torch=torch.__version__)
    return spec.shard


def witness(store_path: str, teacher: str, shard: int) -> list[float]:
    """Makes the first micro-batch of a committed shard again and compares.

    Returns:
        The share of pixels that differ and the largest difference in grey levels.
    """
    store = PairStore.open(Path(store_path))
    spec = store.spec
    start = shard * spec.shard
    old, _ = store.read(start, start + spec.micro_batch)
    gap = np.abs(old.astype(np.int16) - micro_batch(_teacher(teacher), spec, start))
    return [float((gap > 0).mean()), float(gap.max())]


def micro_batch(flow: Flow, spec: PairSpec, start: int) -> NDArray[np.uint8]:
    """uint8 images (micro_batch, C, H, W) of the pairs from ``start`` on."""
    index = spec.index(start, start + spec.micro_batch).to(flow.device)
    recipe = Recipe(spec.solver, spec.nfe, spec.grid, guidance=spec.guidance)
    images = to_uint8(draw(flow.field, spec.z(index), spec.y(index), recipe)).cpu().numpy()
    return np.ascontiguousarray(images)


@functools.lru_cache(maxsize=1)
def _teacher(path: str) -> Flow:
    runtime.exact()
    if threads := os.environ.get("RFPP_THREADS"):
        torch.set_num_threads(int(threads))
    return build.load_flow(path, runtime.device())
