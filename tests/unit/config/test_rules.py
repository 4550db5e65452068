"""Rules across sections: names, order, and options that go together."""

from __future__ import annotations

import re

import pytest

from pipeline.cli import presets
from rfpp_core.config import params
from tests.unit.config.rows import changed, flow, refused


@pytest.mark.parametrize("section", ["networks", "pairs", "flows"])
@pytest.mark.parametrize(
    ("name", "file"),
    [("features", "models/features.safetensors"), ("images", "data/images.zarr")],
)
def test_names_of_other_outs_are_reserved(section, name, file):
    raw = changed()
    raw[section][name] = next(iter(raw[section].values()))
    assert f"{section}.{name}: this name is taken by {file}; take another" in refused(raw)


@pytest.mark.parametrize(
    ("section", "name", "other"),
    [("flows", "unet", "networks"), ("flows", "pairs2", "pairs"), ("pairs", "unet", "networks")],
)
def test_networks_pairs_and_flows_share_no_name(section, name, other):
    raw = changed()
    raw[section][name] = next(iter(raw[section].values()))
    assert f"{section}.{name} has the name of {other}.{name};" in refused(raw)


def test_a_recipe_may_have_the_name_of_a_flow_or_of_an_out():
    """A recipe is no file."""
    raw = changed()
    raw["recipes"] |= {"flow1": raw["recipes"]["reflow"], "images": raw["recipes"]["reflow"]}
    raw["flows"]["flow2"]["recipe"] = "images"
    assert params.parse(raw).recipe_of("flow2").steps == 100


PAIRS3 = {"teacher": "flow3", "n": 1200, "shard": 100, "micro_batch": 50, "nfe": 5}


@pytest.mark.parametrize(
    ("changes", "circle"),
    [
        ([("flows.flow1.start", "flow1")], {"flow1"}),
        ([("flows.flow1.start", "flow2")], {"flow1", "flow2"}),
        ([("pairs.pairs2.teacher", "flow2")], {"flow2"}),
        ([("flows.flow1.mix", "pairs2")], {"flow1"}),
        ([("pairs.pairs3", PAIRS3), ("flows.flow3", flow()), ("flows.flow1.data", "pairs3")],
         {"flow1", "flow3"}),
        ([("flows.flow2.start", "flow3"), ("flows.flow3", flow(start="flow4")),
          ("flows.flow4", flow(start="flow2"))], {"flow2", "flow3", "flow4"}),
    ],
    ids=["own start", "starts", "own pairs", "own mix", "pairs", "three"],
)  # fmt: skip
def test_a_flow_that_needs_itself_is_refused(changes, circle):
    said = refused(changed(*changes))
    found = re.search(r"flows\.(\w+) needs itself \((.*)\); a start, and the teacher", said)
    names = found.group(2).split(" <- ")
    assert (names[0], names[-1]) == (found.group(1), found.group(1))
    assert set(names) == circle


def test_a_chain_of_any_length_is_legal():
    raw = changed()
    for i in range(3, 3000):
        raw["flows"][f"flow{i}"] = flow(start=f"flow{i - 1}")
    raw["recipes"]["keep"] = {"steps": 0}
    parsed = params.parse(raw)
    assert parsed.network_of("flow2999") == parsed.networks["unet"]
    assert not parsed.is_imported("flow2999")
    raw["flows"]["flow1"]["start"] = "flow2999"
    assert "needs itself" in refused(raw)


def test_a_third_round_is_legal():
    raw = changed(("pairs.pairs3", {**PAIRS3, "teacher": "flow2"}),
                  ("flows.flow3", flow(data="pairs3")))  # fmt: skip
    parsed = params.parse(raw)
    assert [parsed.teacher_of(name) for name in parsed.flows] == [None, "flow1", "flow2"]


def test_rows_may_stand_in_any_order():
    raw = changed()
    raw["flows"] = dict(reversed(raw["flows"].items()))
    assert params.parse(raw).teacher_of("flow2") == "flow1"


def test_no_steps_without_a_checkpoint_are_refused():
    said = refused(changed(("recipes.pretrain.steps", 0)))
    assert "flows.flow1 has 0 steps and starts from networks.unet, which has no checkpoint" in said
    keep = ("recipes.keep", {"steps": 0})  # a copy of a trained flow is one
    assert params.parse(changed(keep, ("flows.flow2.recipe", "keep"))).flows


def test_a_set_is_not_mixed_with_itself():
    said = refused(changed(("recipes.reflow.mix", 0.5), ("flows.flow2.mix", "pairs2")))
    assert "flows.flow2 mixes pairs2 with itself; name another set in mix, or take" in said
    parsed = params.parse(changed(("recipes.reflow.mix", 0.5)))
    assert (parsed.uses_mix("flow1"), parsed.uses_mix("flow2")) == (False, True)
    assert params.parse(changed(("flows.flow2.mix", "pairs2"))).flows  # a share of 0


CONDITIONAL, GUIDED = ("networks.unet.conditional", True), ("pairs.pairs2.guidance", 2.0)
DROPS = ("recipes.pretrain.label_dropout", 0.1)


@pytest.mark.parametrize(
    ("changes", "lacks"),
    [
        ([CONDITIONAL, DROPS], None),
        ([CONDITIONAL], "in the recipes of flow1;"),
        ([DROPS], "conditional: true in networks.unet"),
        ([CONDITIONAL, DROPS, ("flows.flow0", flow("reflow", "images", start="unet")),
          ("flows.flow1.start", "flow0")], "in the recipes of flow1, flow0;"),
        ([CONDITIONAL, DROPS, ("flows.flow0", flow("pretrain", "images", start="unet")),
          ("flows.flow1.start", "flow0")], None),
        ([CONDITIONAL, DROPS, ("recipes.keep", {"steps": 0}), ("pairs.pairs2.teacher", "kept"),
          ("flows.kept", flow("keep", "images"))], None),
    ],
    ids=["all", "no dropout", "no labels", "start without", "start with", "a copy"],
)  # fmt: skip
def test_guidance_needs_labels_and_their_dropout_all_along(changes, lacks):
    """A teacher that never saw a hidden label has no field without one."""
    raw = changed(*changes, GUIDED)
    if lacks is None:
        assert params.parse(raw).pairs["pairs2"].guidance == 2
    else:
        said = refused(raw)
        assert "guidance other than 1 needs conditional: true in networks.unet" in said
        assert lacks in said


CIFAR = presets.composed("cifar10")


def test_edm_heun_drops_its_last_correction():
    raw = changed(("pairs.pairs2.nfe", 36), base=CIFAR)
    assert "pairs.pairs2: nfe is 36; edm-heun drops the last correction" in refused(raw)
    assert "an odd number" in refused(raw)
    raw["pairs"]["pairs2"] |= {"nfe": 199, "solver": "heun", "grid": "uniform"}
    assert "starts above t = 80/81, the first time of an imported EDM; take karras" in refused(raw)
    raw["pairs"]["pairs2"] |= {"nfe": 160}
    assert params.parse(raw).pairs


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("pairs.pairs2.guidance", 2.0, "an imported teacher has neither"),
        ("pairs.pairs3", {"teacher": "flow2", "n": 10000, "solver": "edm-heun"},
         "it is for an imported teacher, and flow2 is trained here"),
        ("pairs.back", {"teacher": "flow2", "source": "images", "solver": "edm-heun"},
         "pairs.back.solver edm-heun integrates over sigma"),
        ("evaluate", {"solver": "edm-heun"}, "evaluate: solver edm-heun cannot start at t = 1"),
        ("networks.edm.sigma_data", 0.75, "checkpoint needs precond: edm and sigma_data: 0.5"),
        ("networks.edm.precond", "velocity", "checkpoint needs precond: edm"),
        ("networks.edm.sha256", None, "checkpoint needs sha256, its digest"),
    ],
)  # fmt: skip
def test_what_an_imported_teacher_cannot_do(name, value, said):
    assert said in refused(changed((name, value), base=CIFAR))


def test_a_conditional_import_has_no_guidance_until_it_is_trained():
    teacher = [("networks.edm.conditional", True), GUIDED, ("pairs.pairs2.teacher", "tuned"),
               ("flows.tuned", flow("tune", "images"))]  # fmt: skip
    tune = {"steps": 1000, "label_dropout": 0.1}
    solver = ("pairs.pairs2.solver", "heun")
    raw = changed(("recipes.tune", {**tune, "steps": 0}), *teacher, base=CIFAR)
    assert "an imported teacher has neither" in refused(raw)
    assert params.parse(changed(("recipes.tune", tune), *teacher, solver, base=CIFAR)).flows
