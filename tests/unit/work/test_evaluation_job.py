"""A measurement is cached by all that determines it, and by nothing else."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from pipeline.work import evaluation_job, identity
from pipeline.work.results import Results
from rfpp_core.config import build, params
from rfpp_core.images.store import Images
from rfpp_core.sampling.flow import Flow
from rfpp_core.sampling.sampler import SamplerConfig
from rfpp_core.storage import files
from tests.helpers import ROOT, SMOKE, save_tiny

Keys = dict[str, list[str]]
KINDS = {"distances", "straightness", "inversion", "evaluations"}
VALUES = {"distances": {"distances": [1.0] * 5}, "straightness": [0.5] * 3, "evaluations": 20,
          "inversion": [0.1, 1.0, 0.2, 0.0]}  # fmt: skip


class Asked(Results):
    """Has every measurement; the keys that it was asked for."""

    def __init__(self) -> None:
        self.keys: list[dict[str, Any]] = []

    def find(self, document: Any) -> Any:
        self.keys.append(document)
        return VALUES[document["measured"]]


@pytest.fixture
def flow(tmp_path) -> Flow:
    return build.load_flow(save_tiny(tmp_path / "flow.safetensors"))


def config(**evaluate: Any) -> params.Params:
    raw = yaml.safe_load(SMOKE)
    seed = evaluate.pop("seed", 0)
    raw["evaluate"] |= {"adaptive": True, "solver": "midpoint", "nfe": [2], "seeds": 1, **evaluate}
    return params.parse({**raw, "seed": seed})


def asked(
    flow: Flow, config: params.Params, net: str = "digest", images: str = "images"
) -> list[dict[str, Any]]:
    """The keys of all measurements of a flow."""
    real = SimpleNamespace(extractors={"pixels": None}, digests={"pixels": net})
    found, row = Asked(), config.flows["flow2"]
    held_out = Images(np.zeros((1, 1, 8, 8), np.uint8), np.zeros(1, np.int16))
    evaluation_job.table(flow, real, config, row, found, "flow2")
    evaluation_job.properties(flow, config, found, held_out, images)
    return found.keys


def by_kind(keys: list[dict[str, Any]]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {kind: [] for kind in KINDS}
    for key in keys:
        found[key["measured"]].append(files.digest(key))
    return found


def changed(before: list[dict[str, Any]], after: list[dict[str, Any]]) -> set[str]:
    """The kinds of measurements that would be made again, all or some of them."""
    old, new = by_kind(before), by_kind(after)
    return {kind for kind in KINDS if set(new[kind]) - set(old[kind])}


def test_all_is_measured_once_and_nothing_twice(flow):
    keys = asked(flow, config())
    assert {kind: len(found) for kind, found in by_kind(keys).items()} == {
        "distances": 3, "straightness": 1, "inversion": 1, "evaluations": 1,
    }  # fmt: skip
    assert len({files.digest(key) for key in keys}) == len(keys)
    assert changed(keys, asked(flow, config())) == set()


@pytest.mark.parametrize(("change", "kinds"), [
    ({"seed": 1}, {"distances", "straightness"}),
    ({"n": 300}, {"distances"}),
    ({"seeds": 2}, {"distances"}),
    ({"nfe": [4]}, {"distances"}),
    ({"many_nfe": 7}, {"distances"}),
    ({"neighbours": 2}, {"distances"}),
    ({"grids": {"2": [1.0]}}, {"distances"}),
    ({"straightness_n": 10}, {"straightness"}),
    ({"solver": "heun"}, {"distances", "inversion"}),
    ({"solver": "anchored"}, {"distances", "inversion"}),
])  # fmt: skip
def test_params_that_determine_a_measurement_are_in_its_key(flow, change, kinds):
    assert changed(asked(flow, config()), asked(flow, config(**change))) == kinds


def test_what_is_measured_is_in_its_key(flow, monkeypatch):
    before = asked(flow, config())
    assert changed(before, asked(flow, config(), net="other")) == {"distances"}
    assert changed(before, asked(flow, config(), images="other")) == {"inversion"}
    later = replace(flow, metadata={**flow.metadata, "start": 80 / 81})  # of the same weights
    assert changed(before, asked(later, config())) == KINDS
    monkeypatch.setattr(Flow, "device", property(lambda _: torch.device("cuda")))
    assert changed(before, asked(flow, config())) == KINDS


def test_the_name_of_a_flow_and_what_is_only_shown_are_in_no_key(flow):
    before, other = asked(flow, config()), config()
    rows = {**other.flows, "flow2": other.flows["flow2"].model_copy(update={"recipe": "pretrain"})}
    assert changed(before, asked(flow, other.model_copy(update={"flows": rows}))) == set()


@pytest.fixture
def source(tmp_path, monkeypatch) -> Path:
    """A copy of the sources, which identities read."""
    for name in identity.PACKAGES:
        shutil.copytree(
            ROOT / name, tmp_path / "source" / name, ignore=shutil.ignore_patterns("*.pyc")
        )
    monkeypatch.setattr(identity, "SOURCE", tmp_path / "source")
    return tmp_path / "source"


def solvers_asked(flow: Flow) -> dict[str, str]:
    """The digest of each measurement by its kind and solver."""
    identity._module.cache_clear()
    evaluation_job._code.cache_clear()
    found = {}
    for solver in ("euler", "heun", "rk2:0.3"):
        for key in asked(flow, config(solver=solver, many_nfe=5, nfe=[2])):
            found[f"{key['measured']} {key['sampler']['solver']}"] = files.digest(key)
    return found


ALL = {"distances euler", "distances heun", "distances rk2:0.3", "distances rk45",
       "straightness euler", "inversion euler", "inversion heun", "inversion rk2:0.3",
       "evaluations rk45"}  # fmt: skip
SAMPLING = "rfpp_core.sampling"
# what is edited: module, old text, new text -> the measurements that are made again
EDITS = {
    "a new solver's rule": (
        f"{SAMPLING}.solvers", '    "euler": lambda z: (euler, euler),',
        '    "euler": lambda z: (euler, euler),\n    "new": lambda z: (euler, rk2(0.3)),', set(),
    ),
    "a new solver's properties": (
        f"{SAMPLING}.solver_table", '    "heun": Properties(),',
        '    "heun": Properties(),\n    "new": Properties(stages=3),', set(),
    ),
    "a new grid": (
        f"{SAMPLING}.grids", '{"uniform": uniform,', '{"new": uniform, "uniform": uniform,', set(),
    ),
    "an unused function": (
        f"{SAMPLING}.solvers", "def solve(", "def unused():\n    pass\n\n\ndef solve(", set(),
    ),
    "the rule of a solver that is not used": (
        f"{SAMPLING}.solvers", "return interpolate(x_hat(x, (v +",
        "return interpolate(x_hat(x, (1 * v +", set(),
    ),
    "how a grid is drawn that is not used": (
        f"{SAMPLING}.grids", "grid[0] = 1.0\n", "grid[0] = 1.0 + 0\n", set(),
    ),
    "Euler's rule": (  # which is also the last step of others
        f"{SAMPLING}.solvers", "return x + (s - t).to(x) * field(",
        "return x - (t - s).to(x) * field(",
        ALL,
    ),
    "the rule of Heun": (
        f"{SAMPLING}.solvers", '"heun": lambda z: (rk2(1.0)', '"heun": lambda z: (rk2(1)',
        {"distances heun", "inversion heun"},
    ),
    "the tolerance of RK45": (
        f"{SAMPLING}.solvers", "rtol: float = 1e-5", "rtol: float = 1e-6", ALL,
    ),
    "the grid": (
        f"{SAMPLING}.grids", "return torch.linspace(1, 0, steps + 1",
        "return torch.linspace(1, 0, 1 + steps", ALL,
    ),
    "how evaluations are counted": (
        "pipeline.work.evaluation_job", "z = flow.states(0, index", "z = flow.states(1, index",
        {"evaluations rk45"},
    ),
    "how straightness is measured": (
        "rfpp_core.evaluation.flow_metrics", "total += math.fsum(", "total += sum(",
        {"straightness euler"},
    ),
    "how round trips are measured": (
        "rfpp_core.evaluation.flow_metrics", "norm2 = z.flatten(1)", "norm2 = z.flatten(1, -1)",
        {"inversion euler", "inversion heun", "inversion rk2:0.3"},
    ),
    "what is inverted": (
        "pipeline.work.evaluation_job", "MOST = 1000", "MOST = 1001",
        {"inversion euler", "inversion heun", "inversion rk2:0.3"},
    ),
    "how a distance is measured": (
        "rfpp_core.evaluation.reference", "def compare(", "def compare(x=1, *, ",
        {name for name in ALL if name.startswith("distances")},
    ),
    "the network": (
        "rfpp_core.model.nets.small_unet", "def forward(", "SCALE = 1\n\n    def forward(", ALL,
    ),
    "another network": (
        "rfpp_core.model.nets.song_unet", "def forward(", "SCALE = 1\n\n    def forward(", set(),
    ),
    "the noise": (
        "rfpp_core.rng.philox", "def philox(", "def philox(x=1, *, ", ALL,
    ),
    "the exactness settings": (
        "rfpp_core.runtime", "cudnn.allow_tf32 = tf32", "cudnn.allow_tf32 = True", ALL,
    ),
    "the trainer": (
        "rfpp_core.training.ema", "def update(", "def update(x=1, *, ", set(),
    ),
    "a docstring": (
        f"{SAMPLING}.flow", '"""A trained flow', '"""Some trained flow', set(),
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", EDITS)
def test_a_change_of_code_changes_the_measurements_that_use_it_and_no_others(flow, source, what):
    module, old, new, kinds = EDITS[what]
    before = solvers_asked(flow)
    assert set(before) == ALL
    file = source / f"{module.replace('.', '/')}.py"
    assert old in file.read_text()
    file.write_text(file.read_text().replace(old, new, 1))
    after = solvers_asked(flow)
    assert {name for name in ALL if after[name] != before[name]} == kinds


def test_a_solver_without_inverse_inverts_by_euler():
    assert evaluation_job.inverting("anchored") == SamplerConfig("euler", 8)
    assert evaluation_job.inverting("midpoint") == SamplerConfig("midpoint", 8)
