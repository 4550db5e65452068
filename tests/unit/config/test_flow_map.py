"""Params of flow maps: what fits together, and what the architecture becomes."""

from __future__ import annotations

import pytest

from rfpp_core.config import build, params
from rfpp_core.config.recipe import Recipe
from tests.helpers import tiny_arch
from tests.unit.config.rows import changed, flow, refused

MAP = {"objective": "flow_map", "steps": 100, "log_every": 50, "batch": 32, "dropout": 0.0}


def with_map(*changes, recipe=MAP, **row):
    """The smoke preset with a flow map that starts from its first flow."""
    given = {"recipe": "map", "data": "images", "start": "flow1", **row}
    return changed(("recipes.map", recipe), ("flows.map1", flow(**given)), *changes)


def teaching(**options):
    return {**MAP, "flow_map": {"velocity": "teacher", **options}}


def test_a_flow_map_is_known_by_the_recipes_behind_it():
    more = ("flows.map2", flow(recipe="map", data="pairs2", start="map1"))
    config = params.parse(with_map(more))
    assert [config.is_flow_map(name) for name in ("flow1", "flow2", "map1", "map2")] == [
        False, False, True, True,
    ]  # fmt: skip
    still = params.parse(with_map(recipe={**MAP, "steps": 0}))
    assert not still.is_flow_map("map1")


def test_only_a_flow_map_gets_an_end_time():
    recipe, arch = Recipe.model_validate(MAP), tiny_arch(precond="edm")
    assert build.trained_architecture(recipe, arch) == {**arch, "precond": "edm_map"}
    upgraded = build.trained_architecture(recipe, tiny_arch())
    assert upgraded["precond"] == "velocity_map"
    assert build.trained_architecture(recipe, upgraded) == upgraded
    assert build.trained_architecture(Recipe(), arch) is arch


@pytest.mark.parametrize(("changes", "words"), [
    ({"dropout": 0.1}, "objective: flow_map needs dropout: 0"),
    ({"loss": {"perceptual": "lpips"}}, "objective: flow_map has no perceptual term"),
    ({"times": {"distribution": "fixed"}}, "flow_map.end: drawn needs times that vary"),
    ({"flow_map": {"p": 1.5}}, "recipes.map.flow_map.p is 1.5"),
    ({"flow_map": {"same": 1.0}}, "recipes.map.flow_map.same is 1.0"),
    ({"flow_map": {"end": "data"}}, "recipes.map.flow_map.end is 'data'"),
    ({"flow_map": {"step": 0.0}}, "recipes.map.flow_map.step is 0.0"),
])  # fmt: skip
def test_options_that_do_not_fit_are_refused(changes, words):
    assert words in refused(with_map(recipe={**MAP, **changes}))


def test_a_consistency_model_may_have_fixed_times():
    params.parse(with_map(recipe={**MAP, "times": {"distribution": "fixed"},
                                  "flow_map": {"end": "zero"}}))  # fmt: skip


@pytest.mark.parametrize(("changes", "words"), [
    ([("flows.flow3", flow(start="map1"))],
     "flows.flow3 starts from the flow map map1, and recipes.reflow has objective: flow_matching"),
    ([("pairs.pairs2.solver", "flow-map")],
     "pairs.pairs2.solver flow-map takes the steps of a flow map, and flow1 is none"),
    ([("evaluate.solver", "flow-map")],
     "evaluate.solver flow-map takes the steps of a flow map, and flow1 is none; take"),
    ([("networks.unet.precond", "edm_map")], "precond: edm_map is of flow maps; write edm"),
])  # fmt: skip
def test_flow_maps_and_flows_are_not_confused(changes, words):
    assert words in refused(with_map(*changes))


def test_a_flow_map_makes_pairs_by_its_own_steps():
    pairs = {"teacher": "map1", "n": 200, "shard": 100, "micro_batch": 50, "solver": "flow-map",
             "nfe": 2}  # fmt: skip
    config = params.parse(with_map(("pairs.pairs3", pairs)))
    assert config.pairs["pairs3"].solver == "flow-map"
    inverting = {"teacher": "map1", "source": "images", "solver": "flow-map"}
    assert "flow-map has no inverse" in refused(with_map(("pairs.back", inverting)))


def test_a_teacher_has_weights():
    params.parse(with_map(recipe=teaching()))
    line = refused(with_map(recipe=teaching(), start="unet"))
    assert "flows.map1 learns from the weights it starts from" in line
    params.parse(with_map(start="unet"))  # MeanFlow, from the beginning


def test_forwards_count_the_derivative_and_the_teacher():
    assert Recipe().forwards == 3
    assert Recipe.model_validate(MAP).forwards == 5
    recipe = Recipe.model_validate(teaching())
    assert (recipe.forwards, recipe.frozen_start) == (6, True)
    assert not Recipe.model_validate(MAP).frozen_start
    unused = Recipe.model_validate({"flow_map": {"velocity": "teacher"}})
    assert (unused.forwards, unused.frozen_start) == (3, False)
