"""A sample set at one evaluation, from noise to finished metrics, beside the network alone."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch

from pipeline.bench import generate
from pipeline.bench.measure import Figure, peak_memory, rates, waiting
from pipeline.work import evaluation_job, feature_nets
from pipeline.workers.drawing import everywhere
from rfpp_core import runtime
from rfpp_core.config import build
from rfpp_core.config.params import Params
from rfpp_core.evaluation import classifier
from rfpp_core.evaluation.extractors import extract
from rfpp_core.evaluation.reference import compare, real_of
from rfpp_core.pairs.spec import PairSpec
from rfpp_core.sampling.flow import MICRO_BATCH
from rfpp_core.sampling.sampler import SamplerConfig

N, REAL = 50_000, 10_000  # samples, and real images that they are compared with
Found = TypeVar("Found")


def run(params: Params, shape: tuple[int, int, int], n: int = N) -> list[Figure]:
    """Images a second of the network of the last flow, with random weights, by the first of
    ``features.nets``; all devices draw.

    Args:
        params: of the run.
        shape: of an image, (C, H, W).
        n: images, rounded up to whole micro-batches.
    """
    n = -(-n // MICRO_BATCH) * MICRO_BATCH
    device, network = runtime.device(), params.network_of(list(params.flows)[-1])
    arch = build.architecture(network, shape, 10 * network.conditional)
    runtime.exact()
    labels = classifier.new_classifier(shape[0], 10, shape[1], 0).eval()
    [(name, net), *_] = feature_nets.extractors(params.features, labels).items()
    images = np.random.default_rng(0).integers(0, 256, (REAL, *shape), dtype=np.uint8)
    real = extract(net, torch.from_numpy(images))
    reference, seconds = real_of(real, real), dict[str, float]()

    def timed(what: str, act: Callable[[], Found]) -> Found:
        began = time.perf_counter()
        found = act()
        seconds[what] = time.perf_counter() - began
        return found

    with tempfile.TemporaryDirectory() as folder:
        path = generate.random_teacher(Path(folder), arch)
        flow = build.load_flow(path, device)
        spec = PairSpec("", "euler", 1, "uniform", 1.0, flow.classes, 0, shape, MICRO_BATCH, n)
        sampler = SamplerConfig("euler", 1)
        with everywhere(flow, path) as draw:
            evaluation_job.drawn(flow, sampler, 0, 0, 16 * MICRO_BATCH, draw)  # starts the workers
            alone = waiting(lambda: generate.network(flow, spec, n // MICRO_BATCH), device)
            alone()
            timed("the network by itself", alone)
            sample = timed("drawn, as uint8",
                           lambda: evaluation_job.drawn(flow, sampler, 0, 0, n, draw))  # fmt: skip
        fake = timed(f"features of {name}", lambda: extract(net, sample.images))
        timed("all metrics of the features",
              lambda: compare(reference, fake, params.evaluate.neighbours))  # fmt: skip
    parts = list(seconds)[1:]
    seconds["from noise to metrics"] = sum(seconds[part] for part in parts)
    group = f"{n:,} images at 1 NFE, on {device}"
    return [*rates(group, "images/s", n, seconds),
            Figure("memory", "most that this process held", peak_memory(), "GB")]  # fmt: skip
