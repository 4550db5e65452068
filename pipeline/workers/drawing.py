"""Drawing the sample sets of a flow on all devices."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from pipeline.workers.pool import Pool, ProcessPool, WorkerDied, devices
from rfpp_core.errors import UserError
from rfpp_core.sampling.flow import MICRO_BATCH, Flow
from rfpp_core.sampling.sampler import SamplerConfig
from rfpp_core.sampling.transfer import Transfer

TASK = "pipeline.workers.tasks:draw_samples"
# uint8 images of the samples 0..n-1 of a key, with these labels
Draw = Callable[[int, int, SamplerConfig, Tensor | None], Tensor]


@contextmanager
def everywhere(flow: Flow, model: Path) -> Iterator[Draw | None]:
    """Draws uint8 images of the samples 0..n-1 of a key on all devices, a worker on each; None
    where there is one device of the flow's kind, ``RFPP_DEVICE`` names one, or the flow starts
    from images.

    Args:
        flow: the flow.
        model: its file.
    """
    names = [name for name in devices() if name.partition(":")[0] == flow.device.type]
    if len(names) < 2 or os.environ.get("RFPP_DEVICE") or isinstance(flow, Transfer):
        yield None
        return
    pool = ProcessPool(names)
    try:
        yield partial(_draw, pool, model, flow.digest)
    finally:
        pool.close()


def _draw(
    pool: Pool,
    model: Path,
    digest: str,
    key: int,
    n: int,
    sampler: SamplerConfig,
    y: Tensor | None,
) -> Tensor:
    """A part a worker, of whole micro-batches, so that no image depends on their number."""
    size = -(-n // (MICRO_BATCH * pool.size)) * MICRO_BATCH

    def part(first: int) -> Tensor:
        end = min(first + size, n)
        labels = None if y is None else y[first:end].numpy()
        what = (str(model), digest, key, (first, end), asdict(sampler), labels)
        try:
            return torch.from_numpy(pool.call(TASK, *what))
        except WorkerDied as error:
            raise UserError(f"{error}; what was measured is kept: run it again") from None

    with ThreadPoolExecutor(pool.size) as threads:
        try:
            return torch.cat(list(threads.map(part, range(0, n, size))))
        except BaseException:
            pool.close(kill=True)  # or the executor would wait for the parts of other workers
            raise
