"""Measures what a forecast needs: seconds of an update, an evaluation, a metric, a start."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import numpy as np
import torch

from pipeline.bench import generate, step
from pipeline.bench.measure import in_turns, waiting
from pipeline.work import evaluation_job, feature_nets, pair_job
from pipeline.workers import pool as workers
from pipeline.workers.tasks import Made
from rfpp_core import runtime
from rfpp_core.config import build
from rfpp_core.config.flow import IMAGES
from rfpp_core.config.network import NetworkRow
from rfpp_core.config.params import Params
from rfpp_core.evaluation import classifier
from rfpp_core.evaluation.extractors import extract
from rfpp_core.evaluation.reference import compare, real_of
from rfpp_core.images import store
from rfpp_core.images.store import Images
from rfpp_core.pairs.spec import PairSpec
from rfpp_core.pairs.store import PairStore
from rfpp_core.sampling.flow import MICRO_BATCH, Flow
from rfpp_core.sampling.sampler import threads_for
from rfpp_core.storage import files


class DataShape(NamedTuple):
    """The images of a run."""

    shape: tuple[int, int, int]
    train: int
    held_out: int
    classes: int

    def of_classes(self, labels: Sequence[int]) -> DataShape:
        """Those of some classes, as if all were of one size."""
        share = len(labels) / max(1, self.classes)
        return self._replace(
            train=round(self.train * share), held_out=round(self.held_out * share)
        )


def prepared_data(images: Path) -> DataShape:
    """The images of a store."""
    found = store.metadata(images)
    channels, height, width = found["shape"]
    counts = [store.count(images, split) for split in ("train", "held_out")]
    return DataShape((channels, height, width), counts[0], counts[1], found["classes"])


@dataclass
class Probe:
    """Measures each thing once, on the device of this process."""

    params: Params
    data: DataShape

    def __post_init__(self) -> None:
        self.device, self._known = runtime.device(), dict[str, Any]()
        runtime.exact()

    def _once(self, of: Any, measure: Callable[[], Any]) -> Any:
        key = files.digest(of)
        if key not in self._known:
            self._known[key] = measure()
        return self._known[key]

    def architecture(self, network: NetworkRow) -> dict[str, Any]:
        return build.architecture(network, self.data.shape, self.data.classes)

    def start(self) -> float:
        """Seconds until a stage's process has its imports."""

        def act() -> None:
            code = "import pipeline.stages.train, pipeline.stages.evaluate"
            subprocess.run([sys.executable, "-c", code], check=True)

        return float(self._once("start", lambda: in_turns({"": act}, 2, 0)[""]))

    def update(self, flow: str, accumulate: int) -> float:
        """Seconds of an update of a flow's training, its batch in so many parts."""
        recipe = self.params.recipe_of(flow).model_copy(update={"accumulate": accumulate})
        arch = self.architecture(self.params.network_of(flow))
        on_images = self.params.flows[flow].data == IMAGES
        return float(self._once(
            ["update", arch, recipe.model_dump(mode="json"), on_images],
            lambda: step.seconds(self.params, flow, recipe, self.data.shape, self.device),
        ))  # fmt: skip

    def flow(self, network: NetworkRow) -> Flow:
        """A flow with random weights."""
        arch = self.architecture(network)

        def made() -> Flow:
            field = build.field(arch).requires_grad_(False).eval()
            layout = torch.channels_last
            field = field.to(device=self.device, memory_format=layout)  # type: ignore[call-overload]
            return Flow(field, self.data.shape, arch["classes"], "", {"architecture": arch})

        found: Flow = self._once(["flow", arch], made)
        return found

    def forward(
        self, network: NetworkRow, precision: runtime.Precision = "fp32", compiled: bool = False
    ) -> float:
        """Seconds of a network evaluation of one image, in the micro-batches of a flow."""
        runtime.exact(tf32=precision == "tf32")  # a training before may have set otherwise
        flow, arch = self.flow(network), self.architecture(network)
        parts = 2 * max(1, threads_for(self.device))
        spec = PairSpec("", "euler", 4, "uniform", 1.0, 0, 0, self.data.shape, MICRO_BATCH,
                        parts * MICRO_BATCH, precision=precision, compile=compiled)  # fmt: skip
        act = waiting(lambda: generate.network(flow, spec, parts), self.device)
        one = self._once(
            ["forward", arch, precision, compiled], lambda: in_turns({"": act}, 3)[""]
        )
        return float(one / (parts * MICRO_BATCH * spec.nfe))

    def pool(self, teacher: NetworkRow) -> float:
        """Seconds that workers, Prefect and its server take beside the shards."""
        return float(self._once("pool", lambda: _pool_seconds(self, teacher)))

    def metric(self) -> float:
        """Seconds from drawn images to metrics, for a row of ``evaluate.n`` images."""
        return float(self._once("metric", lambda: _metric_seconds(self)))

    def properties(self, network: NetworkRow) -> float:
        """Seconds of what is measured of a flow beside its distances."""
        flow = self.flow(network)
        return float(self._once(["properties", self.architecture(network)],
                                lambda: _property_seconds(self, flow)))  # fmt: skip

    def classifier(self) -> float:
        """Seconds to train the classifier of the metrics."""
        return float(self._once("classifier", lambda: _classifier_seconds(self)))


def _pool_seconds(probe: Probe, teacher: NetworkRow) -> float:
    """Two shards of a micro-batch through the real workers and Prefect, less their computing."""
    from pipeline.workers.prefect_flow import make_shards

    arch = probe.architecture(teacher)
    with tempfile.TemporaryDirectory() as folder, _quiet():
        path, model = Path(folder) / "pairs.zarr", generate.random_teacher(Path(folder), arch)
        flow = build.load_flow(model)
        spec = PairSpec(flow.digest, "euler", 1, "uniform", 1.0, flow.classes, 0, flow.shape,
                        16, 16)  # fmt: skip
        PairStore.create(path, spec, 32)
        began = time.perf_counter()
        pool = workers.open_pool()
        call = (pair_job.TASK, str(path), str(model))
        made: list[Made] = make_shards(pool, call, [0, 1], spec.shard)
        pool.close()
        return time.perf_counter() - began - sum(m.computing for m in made) / pool.size


@contextmanager
def _quiet() -> Iterator[None]:
    """Without bars and Prefect's own words."""
    with mock.patch.dict(os.environ, {"PREFECT_LOGGING_LEVEL": "ERROR", "TQDM_DISABLE": "1"}):
        yield


def _images(probe: Probe, n: int, seed: int) -> Images:
    draws = np.random.default_rng(seed)
    pixels = draws.integers(0, 256, (n, *probe.data.shape), dtype=np.uint8)
    return Images(pixels, draws.integers(0, max(1, probe.data.classes), n).astype(np.int16))


def _nets(probe: Probe) -> dict[str, Any]:
    channels, side, _ = probe.data.shape
    net = classifier.new_classifier(channels, max(2, probe.data.classes), side, 0).eval()
    return feature_nets.extractors(probe.params.features, net)


def _metric_seconds(probe: Probe) -> float:
    section, total = probe.params.evaluate, 0.0
    fake = torch.from_numpy(_images(probe, section.n, 0).images)
    train = torch.from_numpy(_images(probe, min(probe.data.train, 10_000), 1).images)
    for net in _nets(probe).values():
        real = real_of(extract(net, train), extract(net, train[: probe.data.held_out]))
        began = time.perf_counter()
        compare(real, extract(net, fake), section.neighbours)
        total += time.perf_counter() - began
    return total


def _property_seconds(probe: Probe, flow: Flow) -> float:
    held_out = _images(probe, probe.data.held_out, 2)
    sampler = evaluation_job.inverting(probe.params.evaluate.solver)
    began = time.perf_counter()
    evaluation_job.paths(flow, probe.params)
    evaluation_job.inversion(flow, held_out, sampler)
    evaluation_job.ends(flow, probe.params)
    return time.perf_counter() - began


def _classifier_seconds(probe: Probe) -> float:
    features, probed = probe.params.features, 12
    channels, side, _ = probe.data.shape
    net = classifier.new_classifier(channels, max(2, probe.data.classes), side, 0)
    state = classifier.ClassifierTraining(net, probed, features.lr)
    updates = classifier.train_classifier(
        state, _images(probe, 2 * features.batch, 3), features.batch, 0
    )
    next(updates)
    began = time.perf_counter()
    for _ in updates:
        pass
    return features.steps * (time.perf_counter() - began) / (probed - 1)
