"""Flips, annealing and guided distillation are in the identity of the trainings that use them."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from pipeline.work import identity, training_data, training_job
from pipeline.work.training_data import DataSet, Loaded
from rfpp_core.config import build, objective
from rfpp_core.config.network import Network
from rfpp_core.config.recipe import Recipe
from rfpp_core.images.buffers import Buffers
from rfpp_core.images.loader import Batch
from rfpp_core.rng import StepRNG
from rfpp_core.training.couplings.paired import seeded
from tests.helpers import ROOT

AT_1 = {"distribution": "fixed", "t": 1.0}
RECIPES = {
    "plain": {},
    "flip": {"flip": True},
    "linear": {"anneal": {"schedule": "linear"}},
    "cos": {"anneal": {"schedule": "cos"}},
    "guided": {"objective": "flow_guided", "times": AT_1},
    "grid": {"times": {"distribution": "grid"}},
}
COUPLINGS = "rfpp_core.training.couplings"
# what is edited: module, old text, new text -> the trainings that it determines
EDITS = {
    "the coin": (f"{COUPLINGS}.flipped", '"flip") < 0.5', '"flip") < 0.4', {"flip"}),
    "annealed noise": (
        f"{COUPLINGS}.annealed", "+ share * fresh", "- share * fresh", {"linear", "cos"}
    ),
    "a schedule": (f"{COUPLINGS}.annealed", "return 1 - min(", "return 2 - min(", {"linear"}),
    "the builder of a schedule": (
        "rfpp_core.config.objective", "partial(annealed.cosine", "partial(annealed.linear", {"cos"}
    ),
    "the two steps": ("rfpp_core.training.guided", "1 - t)", "1 + t)", {"guided"}),
    "the grid": ("rfpp_core.training.times", "torch.ceil(u * k)", "torch.floor(u * k)", {"grid"}),
}  # fmt: skip


def identities(source: Path, monkeypatch) -> dict[str, dict[str, str]]:
    monkeypatch.setattr(identity, "SOURCE", source)
    identity._module.cache_clear()
    arch = build.architecture_of(build.architecture(Network(), (1, 8, 8), 0))
    return {name: training_job.code_of(Recipe.model_validate(document), arch, ["seeded"])
            for name, document in RECIPES.items()}  # fmt: skip


@pytest.fixture(scope="module")
def copied(tmp_path_factory) -> Path:
    home = tmp_path_factory.mktemp("source")
    for name in identity.PACKAGES:
        shutil.copytree(ROOT / name, home / name, ignore=shutil.ignore_patterns("*.pyc"))
    return home


@pytest.mark.parametrize("what", EDITS)
def test_their_code_determines_the_trainings_that_use_it_and_no_others(copied, monkeypatch, what):
    module, old, new, users = EDITS[what]
    before = identities(copied, monkeypatch)
    file = copied / f"{module.replace('.', '/')}.py"
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new))
    after = identities(copied, monkeypatch)
    file.write_text(text)
    assert {name for name in RECIPES if after[name] != before[name]} == users


def test_a_staged_identity_finds_its_code_again():
    """Options that are left at their defaults are in no document, nor are steps at a constant
    rate."""
    recipe = Recipe.model_validate(
        {"decay": "constant", "steps": 9000, "flip": True,
         "anneal": {"schedule": "linear", "steps": 5000}}
    )  # fmt: skip
    arch = build.architecture(Network(), (1, 8, 8), 0)
    document = {"training": {k: v for k, v in recipe.identity.items() if k != "steps"},
                "architecture": arch, "data": [{"coupling": "seeded"}]}  # fmt: skip
    expected = training_job.code_of(recipe, build.architecture_of(arch), ["seeded"])
    assert training_job.code_now(document) == expected


def loaded(recipe: dict, coupling: str = "seeded", sets: int = 1, monkeypatch=None) -> Loaded:
    """What a training learns from, of stores that are made up."""
    images = torch.randint(0, 256, (40, 1, 4, 4), dtype=torch.uint8,
                           generator=torch.Generator().manual_seed(0))  # fmt: skip
    reader = training_data.reader_of(coupling)
    made = objective.COUPLINGS[coupling](Recipe()) if reader == "images" else seeded(7)
    read = lambda *_: Loaded(images, None, made)  # noqa: E731
    monkeypatch.setitem(training_data.READERS, reader, read)
    part = DataSet(Path("x"), "d", 40, coupling, "reflow", {})
    buffers = Buffers(Path("x"), 1e9)
    return training_data.load([part] * sets, Recipe.model_validate(recipe), False, buffers)


BATCH = Batch(torch.randn(40, 1, 4, 4, generator=torch.Generator().manual_seed(0)),
              torch.arange(40), None)  # fmt: skip


def test_what_a_training_reads_is_varied_as_its_recipe_says(monkeypatch):
    draws = StepRNG(0, 0, 40)
    plain = loaded({}, monkeypatch=monkeypatch).coupling(BATCH, draws)
    assert torch.equal(plain.x, BATCH.x)
    found = loaded({"flip": True}, monkeypatch=monkeypatch).coupling(BATCH, draws)
    mirrored = (found.x != BATCH.x).flatten(1).any(1)
    assert 0 < int(mirrored.sum()) < 40
    assert torch.equal(found.z[mirrored], plain.z[mirrored].flip(-1))
    both = {"flip": True, "anneal": {"schedule": "linear", "steps": 10}}
    coupling = loaded(both, monkeypatch=monkeypatch).coupling
    assert torch.equal(coupling(BATCH, draws).x, found.x)
    assert not torch.equal(coupling(BATCH, draws).z, found.z)
    late = StepRNG(0, 10, 40)
    flipped = loaded({"flip": True}, monkeypatch=monkeypatch).coupling(BATCH, late)
    assert torch.equal(coupling(BATCH, late).z, flipped.z)


def test_real_images_are_mirrored_and_their_noise_is_not_annealed(monkeypatch):
    draws = StepRNG(0, 0, 40)
    both = {"flip": True, "anneal": {"schedule": "fixed", "beta": 0.5}}
    found = loaded(both, "independent", monkeypatch=monkeypatch).coupling(BATCH, draws)
    flips = loaded({"flip": True}, "independent", monkeypatch=monkeypatch).coupling(BATCH, draws)
    assert torch.equal(found.z, flips.z)
    assert not torch.equal(found.x, BATCH.x)
