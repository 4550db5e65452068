"""Which image a flow pairs with which noise: the metrics, and what they are cached by."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import yaml
from torch import Tensor, nn

from pipeline.work import evaluation_job
from pipeline.work.results import Results
from rfpp_core.config import build, params
from rfpp_core.evaluation import flow_metrics
from rfpp_core.sampling.flow import Flow
from rfpp_core.storage import files
from tests.helpers import SMOKE, save_tiny, tiny_arch


def config(**changes: Any) -> params.Params:
    raw = yaml.safe_load(SMOKE)
    raw["seed"] = changes.pop("seed", 0)
    raw["evaluate"] |= {"straightness_n": 60, **changes}
    return params.parse(raw)


class Scaled(nn.Module):
    """A straight flow, x = 0.25 z, plus what a value's place adds: place * ramp."""

    def __init__(self, ramp: float = 0.0) -> None:
        super().__init__()
        self.ramp = nn.Parameter(torch.tensor(ramp))

    def forward(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        place = self.ramp * torch.linspace(-1, 1, x.shape[-1])
        t = t[:, None, None, None]
        z = (x - (1 - t) * place) / (0.25 * (1 - t) + t)
        return z - 0.25 * z - place


def flow(ramp: float = 0.0, digest: str = "d") -> Flow:
    return Flow(Scaled(ramp).requires_grad_(False), (1, 8, 8), 0, digest,
                {"architecture": tiny_arch()})  # fmt: skip


def test_the_cost_of_a_scaling_is_its_formula(tmp_path):
    """``E||0.25 z - z||^2 / d = 0.75^2``; a mirrored scaling is a scaling."""
    found = evaluation_job.pairing(flow(), config(), Results(tmp_path))
    assert found["transport"] == pytest.approx(0.75**2, rel=0.05)  # 3,840 values
    assert found["flip_error"] < 1e-9


def test_a_flow_that_adds_a_ramp_is_not_flip_equivariant(tmp_path):
    """Mirrored, the ramp has the other sign: the error is (2 ramp place)^2 over 0.25^2."""
    found = evaluation_job.pairing(flow(0.2), config(), Results(tmp_path))
    square = float(torch.linspace(-1, 1, 8).square().mean())
    assert found["flip_error"] == pytest.approx(4 * 0.2**2 * square / 0.25**2, rel=0.06)
    expected = 0.75**2 + 0.2**2 * square
    assert found["transport"] == pytest.approx(expected, rel=0.05)


def test_unrelated_images_have_a_flip_error_of_two():
    a, b = torch.randn(2, 500, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    assert flow_metrics.flip_error(a, b) == pytest.approx(2, rel=0.03)
    assert flow_metrics.flip_error(a, a.flip(-1)) == 0


def test_labels_are_given_to_a_conditional_flow(tmp_path):
    conditional = build.load_flow(save_tiny(tmp_path / "flow.safetensors", classes=10))
    found = evaluation_job.pairing(conditional, config(), Results(tmp_path / "found"))
    assert found["transport"] > 0


class Asked(Results):
    """Has every measurement; the keys that it was asked for."""

    def __init__(self) -> None:
        self.keys: list[str] = []

    def find(self, document: Any) -> Any:
        self.keys.append(files.digest(document))
        return [1.0, 2.0]


def key(of: Flow, **changes: Any) -> str:
    asked = Asked()
    found = evaluation_job.pairing(of, config(**changes), asked)
    assert found == {"transport": 1.0, "flip_error": 2.0}
    return asked.keys[0]


def test_it_is_cached_by_what_determines_it_and_nothing_else():
    plain = key(flow())
    assert key(flow()) == plain
    for same in ({"n": 300}, {"nfe": [2]}, {"solver": "heun"}):
        assert key(flow(), **same) == plain
    assert len({plain, key(flow(), seed=1), key(flow(), straightness_n=50)}) == 3
    start = Flow(Scaled(), (1, 8, 8), 0, "d", {"architecture": tiny_arch(), "start": 80 / 81})
    assert key(start) != plain
