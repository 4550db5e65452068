"""A training whose noise is matched: what it reads, what identifies it, how it resumes."""

from __future__ import annotations

from itertools import islice

import numpy as np
import pytest
import torch
import yaml

from pipeline import artifacts
from pipeline.stages import network
from pipeline.work import training_data, training_job, training_run
from pipeline.work.training_job import Job
from rfpp_core.config import build, params
from rfpp_core.images import sources
from rfpp_core.images import store as image_store
from rfpp_core.images.buffers import MEMORY
from rfpp_core.rng import StepRNG
from rfpp_core.runtime import Rank
from rfpp_core.training.couplings.matched import Matched
from tests.helpers import SMOKE

CPU = torch.device("cpu")


@pytest.fixture
def job(tmp_path, monkeypatch):
    """Makes the training of flow1 of the smoke preset on 90 digits."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RFPP_DEVICE", "cpu")
    (tmp_path / ".dvc").mkdir()
    digits = sources.digits().take(np.arange(100))
    image_store.write(artifacts.IMAGES, digits, np.arange(100) >= 90)

    def make(conditional=False, **options) -> Job:
        raw = yaml.safe_load(SMOKE)
        raw["networks"]["unet"] |= {"conditional": conditional, "channels": 8}
        raw["recipes"]["pretrain"] |= {"batch": 8, **options}
        artifacts.PARAMS.write_text(yaml.safe_dump(raw))
        network.run("unet")
        return training_job.job_of("flow1", params.load())

    return make


def loaded(job: Job) -> training_data.Loaded:
    conditional = job.architecture["classes"] > 0
    return training_data.load(job.sets, job.recipe, conditional, MEMORY)


@pytest.mark.parametrize("conditional", [False, True])
@pytest.mark.parametrize("rank", [Rank(), Rank(1, 2)])
def test_the_batches_that_are_matched_are_those_that_are_trained_on(
    job, monkeypatch, conditional, rank
):
    """Or a resumed training would match other images than it saw."""
    monkeypatch.setenv("RANK", str(rank.rank))
    monkeypatch.setenv("WORLD_SIZE", str(rank.world))
    found = job(conditional, coupling="dansm", match=24)
    data = loaded(found)
    assert isinstance(data.coupling, Matched)
    assert data.coupling.source.rank == rank
    prepared = training_run.prepare(found, data, CPU, rank)
    theirs = prepared.batches(9)  # of another epoch than step 0
    ours = data.coupling.source.batches(prepared.config.seed, 9, CPU)
    for a, b in islice(zip(theirs, ours, strict=False), 12):
        assert torch.equal(a.x, b.x)
        assert torch.equal(a.position, b.position)
        assert (a.y is None and b.y is None) if not conditional else torch.equal(a.y, b.y)


def test_a_coupling_made_anew_goes_on_with_the_noise_of_the_first(job):
    """As a training does that was stopped in the middle of a pool."""
    found = job(coupling="dansm", match=40)
    one, other = loaded(found).coupling, loaded(found).coupling
    batches = one.source.batches(found.seed, 0, CPU)
    whole = [one(batch, StepRNG(found.seed, step, 8)).z for step, batch in
             enumerate(islice(batches, 9))]  # fmt: skip
    for step, batch in enumerate(islice(one.source.batches(found.seed, 7, CPU), 2), 7):
        assert torch.equal(other(batch, StepRNG(found.seed, step, 8)).z, whole[step])


def test_the_loss_is_that_of_the_coupling_of_the_recipe(job):
    terms = {}
    for name in ("independent", "dansm", "ot"):
        found = job(coupling=name)
        ready = training_run.prepare(found, loaded(found), CPU, Rank())
        draws = StepRNG(ready.config.seed, 0, 8)
        terms[name] = ready.loss(ready.state.net, next(ready.batches(0)), 0, draws)["l2"].tolist()
    assert len({tuple(values) for values in terms.values()}) == 3


def test_an_identity_covers_the_rule_that_is_used_and_no_other(job):
    """And nothing of matching is in the identity of a training without it."""
    arch = build.architecture_of(job().architecture)
    modules = {}
    for name in ("independent", "dansm", "ot", "seeded"):
        recipe = build.Recipe(coupling=name if name != "seeded" else "dansm")
        code = training_job.code_of(recipe, arch, [name])
        couplings = {module.rpartition(".")[2] for module in code if ".couplings." in module}
        modules[name] = couplings
    assert modules == {
        "independent": {"independent"},
        "dansm": {"dansm", "matched"},
        "ot": {"ot", "matched"},
        "seeded": {"paired"},
    }


def test_an_identity_holds_the_coupling_and_its_size(job):
    found = [job(coupling="dansm", match=size).identity() for size in (0, 24, 40)]
    assert [document["training"].get("match") for document in found] == [None, 24, 40]
    assert {document["data"][0]["coupling"] for document in found} == {"dansm"}
    assert training_job.code_now(found[0]) == found[0]["code"]
