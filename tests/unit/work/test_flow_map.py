"""Flow maps as jobs: their code, their architecture, the rows of their table."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline import artifacts
from pipeline.work import evaluation_job, identity, training_data, training_job, training_run
from pipeline.work.training_data import DataSet, Loaded
from rfpp_core.config import build, params
from rfpp_core.config.evaluate import Evaluate
from rfpp_core.config.network import Network
from rfpp_core.config.recipe import Recipe
from rfpp_core.model.flow_map import interval
from rfpp_core.rng import StepRNG
from rfpp_core.runtime import Rank
from rfpp_core.storage import checkpoint
from rfpp_core.training.couplings.independent import independent
from tests.helpers import randomised, save_tiny, tiny_arch
from tests.unit.config.rows import flow as row
from tests.unit.config.test_flow_map import teaching, with_map


def code(precond: str = "velocity_map", **recipe: Any) -> set[str]:
    """Names of the definitions that a training uses."""
    found = Recipe.model_validate(recipe)
    arch = build.architecture_of(build.architecture(Network(precond=precond), (1, 8, 8), 0))
    seen: list[tuple[Any, Any]] = []
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(identity, "digests", lambda *given: seen.append(given) or {})
        training_job.code_of(found, arch, ["independent"])
    closure = identity.closure(*seen[0])
    return {f"{at.module.removeprefix('rfpp_core.')}.{at.name}" for at in closure}


def test_the_code_of_a_flow_map_is_what_it_uses():
    jvp = code(objective="flow_map", flow_map={"end": "zero"})
    assert jvp >= {
        "training.flow_map.flow_map", "training.flow_map.target", "training.flow_map.jvp",
        "training.flow_map.zero", "training.flow_map.Weight", "model.flow_map.PlainFlowMap",
        "model.flow_map.FlowMap", "model.flow_map.TimeFeatures", "training.times.u_shape",
    }  # fmt: skip
    assert not jvp & {"training.flow_map.difference", "training.flow_map.drawn",
                      "model.flow_map.EDMFlowMap", "training.losses.pseudo_huber"}  # fmt: skip
    other = code("edm_map", objective="flow_map", flow_map={"derivative": "difference"})
    assert other >= {"training.flow_map.difference", "training.flow_map.drawn",
                     "model.flow_map.EDMFlowMap"}  # fmt: skip
    assert not other & {"training.flow_map.jvp", "training.flow_map.zero",
                        "model.flow_map.PlainFlowMap"}  # fmt: skip


def test_other_trainings_and_measurements_use_none_of_it(tmp_path):
    assert not {name for name in code("velocity") | code("edm") if "flow_map" in name.lower()}
    flow = build.load_flow(save_tiny(tmp_path / "flow.safetensors"))
    functions = ("drawn", "measures", "spent", "paths", "inversion")
    chosen = {"small_unet", "velocity", "euler", "heun", "uniform"}
    roots = [identity.Name("pipeline.work.evaluation_job", name) for name in functions]
    roots.append(identity.Name("rfpp_core.config.build", "flow_of"))
    roots.append(identity.Name("rfpp_core.sampling.flow", "Flow"))
    names = {f"{at.module}.{at.name}" for at in identity.closure(roots, chosen)}
    assert "rfpp_core.sampling.solvers.euler" in names
    assert not {name for name in names if "flow_map" in name.lower()}
    assert evaluation_job.code_of(flow, evaluation_job.SamplerConfig("euler", 1), ["drawn"])


def saved(path: Path, precond: str) -> Path:
    arch = tiny_arch(precond=precond)
    provenance = {"stage": "train", "budget": 1, "budget_with_ancestors": 1, "ledger": {}}
    metadata = {"architecture": arch, "provenance": provenance}
    checkpoint.save(path, randomised(build.field(arch)).state_dict(), metadata)
    return path


@pytest.fixture
def job(tmp_path, monkeypatch) -> training_job.Job:
    """A flow map from the velocity of a flow, of data that is not looked at."""
    monkeypatch.setattr(artifacts, "model", lambda name: tmp_path / f"{name}.safetensors")
    saved(tmp_path / "flow1.safetensors", "edm")
    data = DataSet(tmp_path / "images", "0" * 64, 40, "independent", "pretrain", {})
    monkeypatch.setattr(training_data, "data_of", lambda *_: data)
    return training_job.job_of("map1", params.parse(with_map(recipe=teaching(same=0.5))))


def test_a_flow_map_starts_as_its_flow_and_its_file_says_what_it_is(job, tmp_path):
    assert job.architecture["precond"] == "edm_map"
    assert job.identity()["architecture"]["precond"] == "edm_map"
    assert training_job.metadata_of(job, "", [])["architecture"] == job.architecture
    assert job.recipe.forwards == 6
    assert training_job.code_now(job.identity()) == job.identity()["code"]

    images = torch.randint(0, 256, (40, 1, 8, 8), dtype=torch.uint8)
    prepared = training_run.prepare(
        job, Loaded(images, None, independent), torch.device("cpu"), Rank(0, 1)
    )
    flow = build.load_flow(tmp_path / "flow1.safetensors").field
    x = torch.randn(4, 1, 8, 8)
    t, r = torch.tensor([1.0, 0.8, 0.5, 0.2]), torch.tensor([0.0, 0.1, 0.5, 0.0])
    with torch.no_grad():
        assert torch.equal(prepared.state.net.eval()(x, interval(t, r)), flow(x, t))
    batch = next(prepared.batches(0))
    terms = prepared.loss(prepared.state.net, batch, 0, StepRNG(0, 0, len(batch.x)))
    assert float(terms["velocity"].detach().max()) < 1e-9  # it is its own teacher, where r = t
    assert float(terms["map"].detach().max()) > 0


def test_it_goes_on_from_a_flow_map(job, tmp_path):
    saved(tmp_path / "map1.safetensors", "edm_map")
    config = params.parse(with_map(("flows.map2", row(recipe="map", start="map1", data="images"))))
    again = training_job.job_of("map2", config)
    assert again.architecture == job.architecture
    assert again.start_digest != job.start_digest


def test_the_table_of_a_flow_map_is_by_its_own_steps(tmp_path):
    flow_map = build.load_flow(saved(tmp_path / "map1.safetensors", "edm_map"))
    flow = build.load_flow(saved(tmp_path / "flow1.safetensors", "edm"))
    section = Evaluate(nfe=(1, 2), many_nfe=5, solver="anchored", grids={"2": (1.0, 0.8)})
    own = params.parse(with_map()).flows["map1"]

    def rows(flow, section):
        return [(sampler.solver, sampler.nfe, sampler.times)
                for sampler, _ in evaluation_job.samplers(section, flow, own)]  # fmt: skip

    assert rows(flow, section) == [
        ("anchored", 1, ()), ("anchored", 2, (1.0, 0.8)), ("heun", 5, ())
    ]  # fmt: skip
    assert rows(flow_map, section) == [
        ("flow-map", 1, ()), ("flow-map", 2, (1.0, 0.8)), ("heun", 5, ())
    ]  # fmt: skip
    other = Evaluate(nfe=(2,), many_nfe=5, solver="heun", grids={"2": (1.0,)})  # of one step
    assert rows(flow_map, other)[0] == ("flow-map", 2, ())
