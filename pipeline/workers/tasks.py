"""The tasks of a worker: make one shard of pairs, regenerate one micro-batch as a check, or draw a
part of a sample set.

They are functions of plain arguments; the flow stays loaded between calls.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from rfpp_core import runtime
from rfpp_core.config import build
from rfpp_core.errors import UserError
from rfpp_core.images import store as image_store
from rfpp_core.images.pixels import to_float, to_uint8
from rfpp_core.pairs.spec import Pairs, PairSpec
from rfpp_core.pairs.store import PairStore
from rfpp_core.sampling.flow import Flow
from rfpp_core.sampling.sampler import SamplerConfig, draw, threads_for


class Made(NamedTuple):
    """A shard that was made: its number of pairs, and seconds spent on it."""

    pairs: int
    began: float  # on the machine's monotonic clock
    computing: float
    writing: float  # files, fsync, digests and marker


def make_shard(store_path: str, teacher: str, *rest: str | int) -> Made:
    """Makes and commits one shard: of drawn noise, of real images that are inverted, or of those
    that are translated, as the store's spec says.

    Every micro-batch is aligned with the index and computed on its own, so neither the number of
    workers nor the order of shards can change an image.

    Args:
        store_path: the store.
        teacher: its teacher's model file.
        rest: the path of the real images, if it takes any; then the shard.
    """
    store, flow = _opened(store_path, teacher)
    return _commit(store, flow, int(rest[-1]), _maker(flow, store.spec, rest))


def _opened(store_path: str, teacher: str, check_noise: bool = False) -> tuple[PairStore, Flow]:
    """A store and its teacher, in the store's precision."""
    store = PairStore.open(Path(store_path), check_noise)
    flow = _flow(teacher, store.spec.compile)
    if flow.digest != store.spec.teacher:
        raise UserError(f"{teacher} is no longer the teacher of {store_path}")
    runtime.exact(tf32=store.spec.precision == "tf32")  # which the signature of a shard tells
    return store, flow


def _commit(store: PairStore, flow: Flow, shard: int, make: Callable[[int], Pairs]) -> Made:
    """Makes the micro-batches of a shard and commits them."""
    began = time.monotonic()
    starts = range(*store.span(shard), store.spec.micro_batch)
    with _fitting(flow, store.spec):
        parts = runtime.map_exact(make, starts, threads_for(flow.device))
        first = None if store.spec.stored else _noise(flow, store.spec, starts[0])[0].cpu().numpy()
    images, labels, noise = zip(*parts, strict=True)
    pairs = Pairs(
        np.concatenate(images),
        np.concatenate(labels),
        None if noise[0] is None else np.concatenate(noise),
    )
    made = time.monotonic()
    store.commit(shard, pairs, first, made_by=runtime.signature(flow.device))
    return Made(len(pairs.images), began, made - began, time.monotonic() - made)


def _fitting(flow: Flow, spec: PairSpec) -> AbstractContextManager[None]:
    """Says what to do when a micro-batch does not fit into memory; a retry on another worker may
    fit, so this is not a user's error yet."""

    def advice() -> str:
        fits = largest_that_fits(flow, spec)
        found = f"; {fits} fits" if fits else ""
        return f"lower micro_batch (now {spec.micro_batch}){found}"

    return runtime.enough_memory(advice, MemoryError)


def largest_that_fits(flow: Flow, spec: PairSpec) -> int:
    """The largest micro-batch below the spec's, of about a half, a quarter, ..., that divides its
    shard and with which the network is evaluated here; 0 if there is none."""
    size, divisors = spec.micro_batch, [k for k in range(1, spec.shard + 1) if not spec.shard % k]
    while size := max((k for k in divisors if k <= size / 2), default=0):
        x = torch.zeros(size, *spec.shape)
        y = torch.zeros(size, dtype=torch.int64, device=flow.device) if spec.classes else None
        one_step = replace(spec, solver="euler", nfe=1, grid="uniform", start=1.0)
        with suppress(MemoryError), runtime.enough_memory("", MemoryError):
            _drawn(flow, one_step, x.to(flow.device), y)
            break
    return size


class Regenerated(NamedTuple):
    """A committed micro-batch compared with the same one, regenerated."""

    share: float  # of values that differ; of stored noise, by more than 1/255
    levels: float  # by how many grey levels at most, or 255ths of noise
    digest: str  # of the regenerated one
    same_machine: bool  # made by the same device, build of torch and instruction set


def regenerate(store_path: str, teacher: str, *rest: str | int) -> Regenerated:
    """Regenerates the first micro-batch of a committed shard and compares.

    Args:
        store_path: the store.
        teacher: its teacher's model file.
        rest: as of :func:`make_shard`.
    """
    (store, flow), shard = _opened(store_path, teacher, check_noise=True), int(rest[-1])
    spec = store.spec
    start, stop = store.span(shard)
    old = store.read(start, min(start + spec.micro_batch, stop))
    same = store.marker(shard).get("made_by") == runtime.signature(flow.device)
    with _fitting(flow, spec):
        [new] = runtime.map_exact(_maker(flow, spec, rest), [start], 1)
    if spec.inverts:
        assert old.noise is not None
        assert new.noise is not None
        gap = 255 * np.abs(old.noise - new.noise)
        if not same:  # the last bits of another machine do not count
            gap = gap * (gap > 1)
    else:
        gap = np.abs(old.images.astype(np.float32) - new.images)
    return Regenerated(float((gap > 0).mean()), float(gap.max()), new.digest, same)


def _maker(flow: Flow, spec: PairSpec, rest: Sequence[str | int]) -> Callable[[int], Pairs]:
    """Makes the micro-batch from a pair on; ``rest`` as of :func:`make_shard`."""
    if not spec.stored:
        return lambda first: micro_batch(flow, spec, first)
    images = Path(str(rest[0]))
    if spec.inverts:
        return lambda first: inverted(flow, spec, images, first)
    rows = image_store.rows_of(images, "train", spec.source_labels)
    return lambda first: translated(flow, spec, images, rows[first : first + spec.micro_batch])


def micro_batch(flow: Flow, spec: PairSpec, start: int) -> Pairs:
    """The micro-batch of pairs from ``start`` on."""
    index = spec.index(start, start + spec.micro_batch)
    z, y = _noise(flow, spec, start), spec.y(index.to(flow.device))
    images = to_uint8(_drawn(flow, spec, z, y)).cpu().numpy()
    return Pairs(np.ascontiguousarray(images), _labels(spec.y(index), len(index)), None)


def _noise(flow: Flow, spec: PairSpec, start: int) -> Tensor:
    """The noise of a micro-batch, on the flow's device."""
    return spec.z(spec.index(start, start + spec.micro_batch).to(flow.device))


def inverted(flow: Flow, spec: PairSpec, images: Path, start: int) -> Pairs:
    """The micro-batch of real images from ``start`` on, and the noise that they invert to."""
    real = image_store.read_some(images, "train", slice(start, start + spec.micro_batch))
    x = to_float(torch.from_numpy(real.images)).to(flow.device)
    y = torch.from_numpy(real.labels).long() if spec.classes else None
    label = None if y is None else y.to(flow.device)
    z = _drawn(flow, spec, x, label, backwards=True)
    noise = np.ascontiguousarray(z.float().cpu().numpy())
    return Pairs(real.images, _labels(y, len(noise)), noise)


def translated(flow: Flow, spec: PairSpec, images: Path, rows: NDArray[np.int64]) -> Pairs:
    """A micro-batch of the source domain's images, at these positions, in the place of noise, and
    what they translate to."""
    real = image_store.read_rows(images, "train", rows)
    z = to_float(torch.from_numpy(real.images))
    x = to_uint8(_drawn(flow, spec, z.to(flow.device), None)).cpu().numpy()
    return Pairs(np.ascontiguousarray(x), _labels(None, len(x)), np.ascontiguousarray(z.numpy()))


def _drawn(
    flow: Flow, spec: PairSpec, state: Tensor, y: Tensor | None, backwards: bool = False
) -> Tensor:
    """The ODE's other end of a micro-batch, float32 (B, C, H, W)."""
    sampler = SamplerConfig(spec.solver, spec.nfe, spec.grid, guidance=spec.guidance)
    with runtime.autocast(flow.device, spec.precision):
        return draw(flow.field, state, y, sampler, backwards, spec.start).x.float()


def draw_samples(
    model: str,
    digest: str,
    key: int,
    span: tuple[int, int],
    sampler: dict[str, Any],
    y: NDArray[np.int64] | None,
) -> NDArray[np.uint8]:
    """Images (N, C, H, W) of the samples of a span of a key.

    Args:
        model: a flow's file.
        digest: of the flow.
        key: of the noise.
        span: first sample, a multiple of the micro-batch, and end.
        sampler: as a dictionary.
        y: labels (N,); None for a flow without classes.
    """
    flow = _flow(model)
    if flow.digest != digest:
        raise UserError(f"{model} changed while its images were drawn; run it again")
    runtime.exact()
    (first, end), labels = span, None if y is None else torch.from_numpy(y)
    config = SamplerConfig(**sampler)
    return flow.from_noise_key(key, end, config, labels, first, to_uint8).numpy()


def _labels(y: Tensor | None, n: int) -> NDArray[np.int16]:
    return np.full(n, -1, np.int16) if y is None else y.numpy().astype(np.int16)


@functools.lru_cache(maxsize=1)
def _flow(path: str, compiled: bool = False) -> Flow:
    flow = build.load_flow(path, runtime.device())
    if not compiled:
        return flow
    field: nn.Module = torch.compile(flow.field, dynamic=False)  # type: ignore[assignment]
    return replace(flow, field=field)
