"""Annealing, flips and flow-guided distillation: what goes together, and what is refused."""

from __future__ import annotations

import pytest

from rfpp_core.config import params
from tests.unit.config.rows import changed, flow, preset, refused

GUIDED = {"steps": 100, "objective": "flow_guided",
          "times": {"distribution": "fixed", "t": 1.0}}  # fmt: skip
ANNEALED = {"steps": 100, "anneal": {"schedule": "linear", "steps": 50}}


def rows(recipe: dict, **row: str) -> dict:
    """The smoke preset with a flow more, of a recipe of its own."""
    return changed(("recipes.slim", recipe), ("flows.slim", flow(recipe="slim", **row)))


def test_a_small_student_may_be_annealed_and_then_distilled():
    raw = rows(ANNEALED, start="unet")
    raw["recipes"]["guided"] = GUIDED
    raw["flows"]["small"] = flow(recipe="guided", start="slim")
    parsed = params.parse(raw)
    assert parsed.recipe_of("small").frozen_start
    assert not parsed.recipe_of("slim").frozen_start


def test_annealing_is_for_pairs():
    said = refused(rows(ANNEALED, data="images"))
    assert "recipes.slim.anneal is for the noise of pairs, and flows.slim learns from" in said
    params.parse(rows({**ANNEALED, "mix": 0.5}, data="images", mix="pairs2"))
    params.parse(rows({"steps": 100}, data="images"))


def test_annealing_ends_within_the_training():
    for steps in (100, 1000):
        said = refused(rows({"steps": 100, "anneal": {"schedule": "cos", "steps": steps}}))
        assert f"recipes.slim has 100 steps, so annealing in {steps} never reaches" in said
    params.parse(rows({"steps": 100, "anneal": {"schedule": "exp", "steps": 1000}}))
    params.parse(rows({"steps": 100, "anneal": {"schedule": "fixed", "beta": 0.5}}))


def test_distillation_is_of_pairs():
    assert "flow_guided copies pairs, and flows.slim learns from images" in refused(
        rows(GUIDED, data="images")
    )
    assert "flow_guided copies pairs" in refused(rows({**GUIDED, "mix": 0.5}))


def test_the_flow_that_guides_is_trained():
    said = refused(rows(GUIDED, start="unet"))
    assert "(recipes.slim.objective: flow_guided), and those of unet are random" in said
    imported = changed(("recipes.keep", {"steps": 0}), ("recipes.slim", GUIDED), (
        "networks.edm", {"arch": "ncsnpp", "checkpoint": "x.pkl", "sha256": "0" * 64}),
        ("flows.slim", flow(recipe="slim", start="edm")))  # fmt: skip
    params.parse(imported)


def test_digits_are_not_mirrored():
    said = refused(rows({"steps": 100, "flip": True}))
    assert "recipes.slim.flip mirrors images, and mirrored digits are no digits" in said
    raw = rows({"steps": 100, "flip": True})
    raw["dataset"] = {"name": "folder", "channels": 3}
    assert params.parse(raw).recipes["slim"].flip


@pytest.mark.parametrize("name", ["digits", "ablation", "cifar10", "cifar10-real", "imagenet64"])
def test_presets_use_none_of_it(name):
    for recipe in preset(name).recipes.values():
        assert not {"flip", "anneal", "two_step", "objective"} & recipe.identity.keys()
