"""Generating pairs: what of its time is the network, and what a second worker brings."""

from __future__ import annotations

import shutil
import statistics
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from pipeline.bench.measure import Figure, rates, waiting
from pipeline.work.pair_job import TASK
from pipeline.workers.pool import ProcessPool
from pipeline.workers.tasks import Made
from rfpp_core import runtime
from rfpp_core.config import build
from rfpp_core.config.params import Params
from rfpp_core.errors import UserError
from rfpp_core.pairs.spec import PairSpec
from rfpp_core.pairs.store import PairStore
from rfpp_core.sampling.flow import Flow
from rfpp_core.sampling.sampler import threads_for
from rfpp_core.storage import checkpoint

SHARDS, ROUNDS = 2, 3


def run(params: Params, shape: tuple[int, int, int]) -> list[Figure]:
    """Pairs a second from the first shard's start to the last one's commit, by the first row of
    ``pairs`` that is generated, of a network with random weights.

    The reference is the network by itself: the same calls, and nothing else.
    """
    made = ((name, row) for name, row in params.pairs.items() if row.source == "noise")
    name, row = next(made, (None, None))
    if name is None or row is None:
        raise UserError("no row of pairs in params.yaml is generated from noise")
    network = params.network_of(row.teacher)
    arch = build.architecture(network, shape, 10 * network.conditional)
    runtime.exact(tf32=row.precision == "tf32")
    with tempfile.TemporaryDirectory() as folder:
        teacher = random_teacher(Path(folder), arch)
        flow = build.load_flow(teacher, runtime.device())
        spec = PairSpec(flow.digest, row.solver, row.nfe, row.grid, 1.0, flow.classes, 0, shape,
                        row.micro_batch, row.shard, flow.start, precision=row.precision,
                        compile=row.compile, codec=row.codec)  # fmt: skip
        pools = {arm: ProcessPool(names) for arm, names in _arms(flow.device).items()}
        alone = "the network by itself"
        seconds: dict[str, list[float]] = {arm: [] for arm in (alone, *pools)}
        try:
            for pool in pools.values():  # starts the workers
                _generate(pool, spec, teacher, Path(folder) / "warm.zarr")
            for _ in range(ROUNDS):
                seconds[alone].append(_timed(flow, spec))
                for arm, pool in pools.items():
                    taken = _generate(pool, spec, teacher, Path(folder) / "pairs.zarr")
                    seconds[arm].append(taken)
        finally:
            for pool in pools.values():
                pool.close()
    group = f"{name}: {spec.solver} at {spec.nfe} NFE, shards of {spec.shard}, on {flow.device}"
    medians = {arm: statistics.median(values) for arm, values in seconds.items()}
    return rates(group, "pairs/s", SHARDS * spec.shard, medians)


def random_teacher(folder: Path, arch: dict[str, Any]) -> Path:
    """A model file of a network with random weights."""
    path = folder / "teacher.safetensors"
    checkpoint.save(path, build.field(arch).state_dict(), {"architecture": arch})
    return path


def _arms(device: torch.device) -> dict[str, list[str]]:
    """Devices of the workers of each arm."""
    if device.type == "cpu":
        return {"one worker, all cores": ["cpu"], "two workers": ["cpu", "cpu"]}
    every = [f"cuda:{i}" for i in range(torch.cuda.device_count())]
    return {"one worker": every[:1], **({f"{len(every)} workers": every} if every[1:] else {})}


def _generate(pool: ProcessPool, spec: PairSpec, teacher: Path, path: Path) -> float:
    """Seconds from the first shard's start to the last one's commit."""
    shutil.rmtree(path, ignore_errors=True)
    PairStore.create(path, spec, SHARDS * spec.shard)
    with ThreadPoolExecutor(pool.size) as threads:
        made: list[Made] = list(
            threads.map(lambda k: pool.call(TASK, str(path), str(teacher), k), range(SHARDS))
        )
    return max(m.began + m.computing + m.writing for m in made) - min(m.began for m in made)


def _timed(flow: Flow, spec: PairSpec) -> float:
    parts, began = SHARDS * spec.shard // spec.micro_batch, time.perf_counter()
    waiting(lambda: network(flow, spec, parts), flow.device)()
    return time.perf_counter() - began


def network(flow: Flow, spec: PairSpec, parts: int) -> None:
    """The network's calls for as many micro-batches of pairs, and nothing else."""
    shape = (spec.micro_batch, *spec.shape)
    x = torch.randn(shape, device=flow.device).to(memory_format=torch.channels_last)
    t = torch.full((spec.micro_batch,), 0.5, device=flow.device)
    y = t.to(torch.int64) if flow.classes else None

    field = torch.compile(flow.field, dynamic=False) if spec.compile else flow.field

    @torch.inference_mode()
    def one(_: int) -> None:
        with runtime.autocast(flow.device, spec.precision):
            for _ in range(spec.nfe):
                field(x, t, y)

    runtime.map_exact(one, range(parts), threads_for(flow.device))
