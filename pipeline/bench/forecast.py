"""What a run will take: its rates are probed, and its params say how much of each.

run = start of each stage + steps x update + pairs x NFE x forward + samples x NFE x forward
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn

from pipeline import settings
from pipeline.bench.probe import Probe
from pipeline.work import evaluation_job
from pipeline.workers import pool as workers
from rfpp_core import runtime
from rfpp_core.config.flow import FlowRow
from rfpp_core.config.network import NetworkRow
from rfpp_core.config.pairs import PairSet
from rfpp_core.config.params import Params
from rfpp_core.evaluation import network_size
from rfpp_core.sampling.sampler import SamplerConfig

STATES = 2  # of a training that are kept
BESIDE = 1.0  # seconds of what preflight, prepare and report do
ADAPTIVE_NFE = 100  # of rk45, which takes what it needs
USED = 0.8  # share of a device's memory to plan with


class Row(NamedTuple):
    """What a stage will take."""

    stage: str
    name: str
    seconds: float
    forwards: int  # network evaluations of one image; those of a training's update as its budget
    disk: float  # bytes that stay
    note: str = ""
    varies: float = 0.0  # seconds that follow steps or n


def rows(probe: Probe) -> Iterator[Row]:
    """Each stage of a run from nothing."""
    params, start = probe.params, probe.start()
    for stage in ("source", "preflight", "prepare"):
        yield Row(stage, "", start + BESIDE, 0, 0)
    nets = probe.classifier() if "classifier" in params.features.nets else 0.0
    yield Row("reference", "", start + nets + 2 * params.evaluate.seeds * probe.metric(), 0, 0)
    for name, network in params.networks.items():
        yield Row("network", name, start, 0, _weights(probe, network))
    for name, flow in params.flows.items():
        yield _training(probe, name, flow, start)
    for name, pairs in params.pairs.items():
        yield _generation(probe, name, pairs, start)
    for name, flow in params.flows.items():
        yield _evaluation(probe, name, flow, start)
    yield Row("report", "", start + BESIDE, 0, 0)


def fitting(params: Params, rows: list[Row], seconds: float) -> tuple[float, dict[str, int]]:
    """Steps and pairs by one factor, so that all takes ``seconds``; evaluation stays as it is.

    Returns:
        The factor, and values by their names in the params; none if the rest takes longer.
    """
    varied = sum(row.varies for row in rows)
    left = seconds - sum(row.seconds for row in rows) + varied
    if left <= 0 or not varied:
        return 0.0, {}
    factor, values = left / varied, dict[str, int]()
    for name, recipe in params.recipes.items():
        if recipe.steps:
            values[f"recipes.{name}.steps"] = _whole(factor * recipe.steps, recipe.log_every)
    for name, pairs in params.pairs.items():
        if pairs.n:
            values[f"pairs.{name}.n"] = _whole(factor * pairs.n, pairs.shard)
    return factor, values


def _whole(value: float, unit: int) -> int:
    return max(1, round(value / unit)) * unit


def _generation(probe: Probe, name: str, pairs: PairSet, start: float) -> Row:
    if pairs.source == "import":
        return Row("generate", name, start, 0, 0, "imported")
    network, stored = probe.params.network_of(pairs.teacher), pairs.source != "noise"
    domains = probe.params.domains_of(pairs.teacher)
    data = probe.data.of_classes(domains.source) if domains else probe.data
    n = data.train if stored else pairs.n or 0
    forwards = n * SamplerConfig(pairs.solver, pairs.nfe, guidance=pairs.guidance).forwards
    took = forwards * probe.forward(network, pairs.precision, pairs.compile) / _devices()
    disk = n * math.prod(probe.data.shape) * (5 if stored else 1)  # float32 noise beside uint8
    return Row("generate", name, start + probe.pool(network) + took, forwards, disk,
               varies=0.0 if stored else took)  # fmt: skip


def _training(probe: Probe, name: str, flow: FlowRow, start: float) -> Row:
    recipe, network = probe.params.recipe_of(name), probe.params.network_of(name)
    weights = _weights(probe, network)
    if not recipe.steps:
        return Row("train", name, start, 0, weights, "kept as it is")
    forwards, disk = recipe.steps * recipe.batch * recipe.forwards, weights * (1 + 4 * STATES)
    fits = parts_that_fit(probe, name)
    if fits is None:
        return Row("train", name, start, forwards, disk, "does not fit, even image by image")
    took = recipe.steps * probe.update(name, fits)
    notes = [f"set accumulate: {fits}"] if fits != recipe.accumulate else []
    if settings.processes() > 1:
        notes.append("of one process; RFPP_PROCESSES is not in it")
    return Row("train", name, start + took, forwards, disk, "; ".join(notes),
               varies=took)  # fmt: skip


def _evaluation(probe: Probe, name: str, row: FlowRow, start: float) -> Row:
    section, network = probe.params.evaluate, probe.params.network_of(name)
    planned, n = evaluation_job.samplers(section, probe.flow(network), row), section.n
    if domains := probe.params.domains_of(name):  # each held-out image once, see `domain_job`
        there = probe.data.of_classes(domains.source).held_out
        planned = [(sampler, 1 if there <= n else seeds) for sampler, seeds in planned]
        n = min(n, there)
    sets = sum(seeds for _, seeds in planned)
    forwards = sum(n * (sampler.nfe or ADAPTIVE_NFE) * seeds for sampler, seeds in planned)
    forwards += 4 * n  # of the rate at one evaluation
    forwards += 2 * section.grid_search.n * section.grid_search.anchors
    seconds = (start + forwards * probe.forward(network) + sets * probe.metric()
               + probe.properties(network))  # fmt: skip
    return Row("evaluate", name, seconds, forwards, 0)


def _weights(probe: Probe, network: NetworkRow) -> int:
    return 4 * network_size.parameters(probe.flow(network).field)


def _devices() -> int:
    """Devices that generate at the same time; the cores of a CPU are one."""
    return max(1, len([name for name in workers.devices() if name != "cpu"]))


def parts_that_fit(probe: Probe, name: str) -> int | None:
    """The recipe's ``accumulate``, or the lowest above it with which a step fits into memory."""
    recipe = probe.params.recipe_of(name)
    flow = probe.flow(probe.params.network_of(name))
    image = saved_bytes(flow.field, flow.shape)
    free = memory(probe.device) * USED - 20 * network_size.parameters(flow.field)
    fits = (k for k in range(recipe.accumulate, recipe.batch + 1)
            if recipe.batch % k == 0 and recipe.batch // k * image <= free)  # fmt: skip
    return next(fits, None)


def memory(device: torch.device) -> float:
    """Bytes of the device."""
    if device.type == "cuda":
        return float(torch.cuda.get_device_properties(device).total_memory)
    return float(runtime.memory())


def saved_bytes(field: nn.Module, shape: tuple[int, ...]) -> float:
    """Bytes an image that a forward pass keeps for the backward pass."""
    field, held = copy.deepcopy(field).requires_grad_(True), dict[int, int]()

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        held[storage.data_ptr()] = storage.nbytes()
        return tensor

    weights = {p.untyped_storage().data_ptr() for p in field.parameters()}
    x = torch.zeros(2, *shape, device=next(field.parameters()).device, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        out = field(x, x.new_full((2,), 0.5), None)
    del out
    return sum(size for at, size in held.items() if at not in weights) / 2
