"""Flows on VP paths in the pipeline: their first time, identities, readers and samplers."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from pipeline import artifacts
from pipeline.stages import network
from pipeline.work import evaluation_job, pair_job, training_data, training_job
from rfpp_core.config import build, params
from rfpp_core.config.network import Network
from rfpp_core.config.recipe import Recipe
from rfpp_core.errors import UserError
from rfpp_core.images.buffers import Buffers
from rfpp_core.images.loader import Batch
from rfpp_core.model.vp import SCHEDULES
from rfpp_core.pairs.noise_check import NoiseCheck
from rfpp_core.rng import StepRNG
from rfpp_core.sampling.flow import own_grid, sampler_for
from rfpp_core.storage import checkpoint
from tests.helpers import save_tiny, tiny_arch
from tests.unit.config.rows import changed, flow
from tests.unit.config.test_rectified_diffusion import EPS, with_vp
from tests.unit.work import test_ledger
from tests.unit.work.test_ledger import generated, trained

here = test_ledger.here  # a folder with images
START = SCHEDULES["vp_sd"].start


def code(recipe: Recipe, coupling: str = "seeded", **of_network: str) -> dict[str, str]:
    arch = build.architecture(Network(**of_network), (1, 8, 8), 0)
    return training_job.code_of(recipe, build.architecture_of(arch), [coupling])


def test_a_vp_flow_begins_at_its_own_first_time_wherever_it_goes(here):
    control = ("flows.control", flow("shuffled", "vp_pairs", start="vp1"))
    config = params.parse(with_vp(("recipes.shuffled", {**EPS, "shuffled": True}), control))
    artifacts.PARAMS.write_text(_yaml(config))
    for name in ("unet", "vp"):
        network.run(name)
    assert "start" not in checkpoint.load(artifacts.model("unet")).metadata
    assert checkpoint.load(artifacts.model("vp")).metadata["start"] == START
    trained("vp1", config)
    teacher = build.load_flow(artifacts.model("vp1"))
    assert teacher.start == START
    assert pair_job.job_of("vp_pairs", config).spec.start == START
    generated("vp_pairs", config)
    trained("vp2", config)
    assert build.load_flow(artifacts.model("vp2")).start == START

    real, broken = (training_job.job_of(name, config) for name in ("vp2", "control"))
    assert real.identity()["data"] == broken.identity()["data"]
    assert real.identity()["training"] != broken.identity()["training"]
    noise = []
    for job in (real, broken):
        loaded = training_data.load(job.sets, job.recipe, False, Buffers(here / "flat", 1e9))
        batch = Batch(torch.zeros(2000, 1, 8, 8), torch.arange(2000), None)
        noise.append(loaded.coupling(batch, StepRNG(0, 0, 2000)).z.numpy())
    check = NoiseCheck()
    check.add(noise[0])
    assert check.repeats == 0  # no noise is in a store twice
    assert (noise[0] != noise[1]).any(axis=(1, 2, 3)).all()
    np.testing.assert_array_equal(*(np.sort(z[:, 0, 0, 0]) for z in noise))


def _yaml(config: params.Params) -> str:
    import yaml

    return yaml.safe_dump(config.model_dump(mode="json"))


def test_a_training_depends_on_the_code_of_its_own_path_prediction_and_objective():
    plain, found = code(Recipe(), precond="velocity"), code(Recipe.model_validate(EPS),
        precond="plain", path="vp_sd", prediction="eps")  # fmt: skip
    new = {f"rfpp_core.{name}" for name in ("model.vp", "model.prediction", "training.spaces")}
    assert not new & set(plain)
    assert new <= set(found)
    phased = Recipe(objective="phased", times={"distribution": "uniform"})
    only = set(code(phased, "independent", precond="velocity")) - set(plain)
    assert "rfpp_core.training.phased" in only
    assert not new & only
    shuffled = set(code(Recipe(shuffled=True), precond="velocity"))
    assert shuffled - set(plain) == {"rfpp_core.training.couplings.shuffled"}
    on_x = code(Recipe(), precond="plain", path="rf", prediction="x")
    on_v = code(Recipe(), precond="plain", path="rf", prediction="v")
    assert on_x["rfpp_core.model.prediction"] != on_v["rfpp_core.model.prediction"]
    assert "rfpp_core.model.path" in on_x


@pytest.fixture
def vp_flow(tmp_path):
    arch = {**tiny_arch(), "precond": "plain", "path": "vp_sd", "prediction": "eps"}
    metadata = {"architecture": arch, **build.first_time(arch)}
    checkpoint.save(tmp_path / "vp.safetensors", build.field(arch).state_dict(), metadata)
    return build.load_flow(tmp_path / "vp.safetensors")


def test_the_table_of_a_vp_flow_is_by_ddim_and_that_of_others_as_before(vp_flow, tmp_path):
    section = params.parse(changed()).evaluate
    row = params.parse(changed()).flows["flow2"]
    found = [s for s, _ in evaluation_job.samplers(section, vp_flow, row)]
    assert {(s.solver, s.grid) for s in found} == {("euler", "vp_sd"), ("heun", "vp_sd")}
    for sampler in found:
        assert sampler.plan(vp_flow.start)[0][0] == vp_flow.start
        assert vp_flow.from_noise_key(0, 2, sampler).isfinite().all()
    other = build.load_flow(save_tiny(tmp_path / "flow.safetensors"))
    assert own_grid(other) == "uniform"
    imported = replace(other, metadata={**other.metadata, "start": 80 / 81})
    edm = [s for s, _ in evaluation_job.samplers(section, imported, row)]
    assert (edm[-1].solver, edm[-1].grid) == ("edm-heun", "karras")


def test_many_steps_of_a_vp_flow_are_on_its_own_grid(vp_flow):
    assert len(sampler_for(vp_flow, 200, "euler", "vp_sd").plan(vp_flow.start)[0]) == 201
    with pytest.raises(
        UserError, match=r"above t = 0\.9613, where this flow starts; take the grid vp_sd"
    ):
        sampler_for(vp_flow, 200, "euler", "uniform")
