"""The schema of ``params.yaml``: what is wrong is named with what is allowed; presets."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
import yaml

from pipeline.cli import presets
from rfpp_core.config import build, params, yaml_file
from rfpp_core.config.evaluate import Evaluate
from rfpp_core.config.pairs import PairSet
from rfpp_core.errors import UserError
from rfpp_core.sampling.solver_table import SOLVERS
from tests.helpers import ROOT, SMOKE


def preset(name: str) -> params.Params:
    return params.parse(yaml_file.parse(presets.composed(name), name))


def changed(*changes: tuple[str, Any], base: str = SMOKE) -> dict[str, Any]:
    """A params file with values put in their places."""
    raw = yaml.safe_load(base)
    for name, value in changes:
        *sections, last = name.split(".")
        at = raw
        for section in sections:
            at = at[section]
        at[last] = value
    return raw


def refused(raw: dict[str, Any]) -> str:
    """The line that params are refused with."""
    with pytest.raises(UserError) as error:
        params.parse(raw, "params.yaml")
    assert "\n" not in str(error.value)
    return str(error.value)


def flow(recipe="reflow", data="pairs2", mix="images", start="flow1") -> dict[str, str]:
    return {"recipe": recipe, "data": data, "mix": mix, "start": start}


@pytest.mark.parametrize(
    ("name", "value", "parts"),
    [
        ("recipes.reflow.lrr", 1, ["unknown param 'recipes.reflow.lrr'", "lr,", "allowed:"]),
        ("recipes.reflow.times.law", "u_shape",
         ["unknown param 'recipes.reflow.times.law' (allowed: a, antithetic, distribution,"]),
        ("extra", 1, ["unknown param 'extra'", "recipes"]),
        ("flows.flow2.teacher", "x", ["unknown param 'flows.flow2.teacher'", "start"]),
        ("networks.unet.width", 1, ["unknown param 'networks.unet.width'", "channels"]),
        ("pairs.pairs2.count", 1, ["unknown param 'pairs.pairs2.count'", "micro_batch"]),
        ("recipes.reflow.times.distribution", "u",
         ["recipes.reflow.times.distribution is 'u'", "'u_shape', 'uniform'"]),
        ("recipes.reflow.loss.name", "lpips_huber", ["'l2', 'l2_root' or 'pseudo_huber'"]),
        ("recipes.reflow.lr", -1, ["recipes.reflow.lr is -1", "greater than 0"]),
        ("recipes.reflow.lr", float("inf"), ["recipes.reflow.lr", "finite"]),
        ("recipes.reflow.ema", 1.0, ["recipes.reflow.ema", "less than 1"]),
        ("recipes.pretrain.steps", -1, ["recipes.pretrain.steps is -1", "greater than or equal"]),
        ("recipes.pretrain.steps", 35, ["recipes.pretrain: steps (35) must be a multiple of lo"]),
        ("recipes.reflow.accumulate", 3, ["batch (64) must be a multiple of accumulate (3)"]),
        ("recipes.reflow.times.a", 3000.0, ["less than or equal to 100"]),
        ("recipes.reflow.batch", 4000,
         ["recipes.reflow.batch (4000) is larger than the set of pairs (pairs.pairs2.n = 1200)"]),
        ("pairs.pairs2.n", 650, ["pairs.pairs2: n (650) must be a multiple of shard (100)"]),
        ("pairs.pairs2.n", None, ["pairs.pairs2: source: noise needs n, the number of pairs"]),
        ("pairs.pairs2.source", "images", ["n is for source: noise alone; source: images takes"]),
        ("pairs.pairs2.micro_batch", 30, ["shard (100) must be a multiple of micro_batch (30)"]),
        ("pairs.pairs2.solver", "rk45x", ["unknown solver 'rk45x'; there are euler, heun,"]),
        ("pairs.pairs2.guidance", 2.0,
         ["pairs.pairs2.guidance other than 1 needs conditional: true in networks.unet"]),
        ("pairs.pairs2.solver", "edm-heun", ["is infinite at t = 1: it is for an imported teacher",
                                             "flow1 is trained here"]),
        ("pairs.pairs2.teacher", "flow9",
         ["pairs.pairs2.teacher is flow9; there is no such row (flows: flow1, flow2)"]),
        ("flows.flow2.recipe", "refine",
         ["flows.flow2.recipe is refine; there is no such row (recipes: pretrain, reflow)"]),
        ("flows.flow2.data", "pairs9",
         ["flows.flow2.data is pairs9; there is no such row (data: images, pairs2)"]),
        ("flows.flow2.mix", "pairs9", ["flows.flow2.mix is pairs9; there is no such row"]),
        ("flows.flow2.start", "flow9",
         ["flows.flow2.start is flow9", "(networks and flows: unet, flow1, flow2)"]),
        ("flows.flow2.start", None, ["flows.flow2.start is None: input should be a valid string"]),
        ("flows.flow2", {"recipe": "reflow"}, ["flows.flow2.data is missing"]),
        ("networks.unet.channels", 30, ["networks.unet.channels is 30", "multiple of 4"]),
        ("networks.unet.checkpoint", "x.pkl", ["checkpoint needs sha256, its digest"]),
        ("networks", {}, ["networks is {}: dictionary should have at least 1 item"]),
        ("flows", {}, ["flows is {}: dictionary should have at least 1 item"]),
        ("evaluate.nfe", [0, 1], ["evaluate.nfe.0 is 0", "greater than 0"]),
        ("evaluate.grids", {"2": [0.8, 1.0]}, ["grids.2 must be 2 times falling"]),
        ("evaluate.grids", {"2": [0.8, 0.4]}, ["grids.2 must be 2 times falling from 1"]),
        ("evaluate.grids", {"7": [1.0]}, ["grids.7 must be 7 times", "[1, 2]"]),
        ("evaluate.n", 3, ["n (3) must exceed neighbours + 1 (4)"]),
        ("features.nets", ["pixels", "pixels"], ["nets names one twice"]),
        ("features.nets", ["clip"], ["features.nets.0 is 'clip'", "'classifier', 'inception'"]),
        ("seed", "abc", ["seed is 'abc'", "integer"]),
    ],
)  # fmt: skip
def test_a_wrong_param_is_named_with_what_is_allowed(name, value, parts):
    said = refused(changed((name, value)))
    for part in parts:
        assert part in said


@pytest.mark.parametrize("section", ["networks", "recipes", "pairs", "flows"])
@pytest.mark.parametrize("name", ["2", "Flow", "a-b", "a/b", "../x", "", "x" * 65, "é", "a b", 2])
def test_a_row_is_named_as_a_file_can_be(section, name):
    raw = changed()
    raw[section] = {**raw[section], name: next(iter(raw[section].values()))}
    said = refused(raw)
    assert f"{section} has a row named {name!r}" in said or len(str(name)) > 60
    assert "a name is made of a-z, 0-9 and _, a letter first" in said


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


def test_the_two_step_grid_of_the_paper_is_legal():
    parsed = params.parse(changed(("evaluate.grids", {"2": [1.0, 0.8]})))
    assert parsed.evaluate.grids["2"] == (1, 0.8)


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


def test_pairs_that_need_a_file_or_an_inverse():
    images = {"teacher": "flow1", "source": "images", "shard": 100, "micro_batch": 50}
    assert params.parse(changed(("pairs.inverted", images))).pairs["inverted"].n is None
    for change, said in (
        ({"solver": "anchored"}, "pairs.inverted: anchored has no inverse; take heun or midpoint"),
        ({"guidance": 2.0}, "guidance is not for source: images"),
        ({"source": "import"}, "source: import needs path, a store made by `rfpp pairs import`"),
        ({"source": "import", "path": "x"}, "and digest, which that printed"),
        ({"n": 100}, "n is for source: noise alone"),
    ):
        assert said in refused(changed(("pairs.inverted", {**images, **change})))


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


def test_a_perceptual_term_over_t_needs_a_time_above_0():
    loss = {"name": "pseudo_huber", "perceptual": "lpips", "weighting": "over_t"}
    fixed = ("recipes.reflow.times", {"distribution": "fixed", "t": 0.0})
    said = refused(changed(("recipes.reflow.loss", loss), fixed))
    assert "times.t must be above 0" in said
    assert params.parse(changed(("recipes.reflow.loss", {**loss, "weighting": "constant"}), fixed))


def test_mirrored_times_need_a_symmetric_distribution():
    times = {"distribution": "logit_normal", "antithetic": True, "mean": -0.5}
    assert "times.mean must be 0" in refused(changed(("recipes.reflow.times", times)))
    assert params.parse(changed(("recipes.reflow.times", {**times, "mean": 0.0})))


@pytest.mark.parametrize("solver", [*SOLVERS, "rk2:0.5", "rk2:1", "rk2:0.75"])
def test_params_name_the_solvers_that_there_are(solver):
    row = PairSet(teacher="flow1", n=2000, solver=solver)
    assert row.solver == solver
    if SOLVERS.get(solver, SOLVERS["heun"]).starts_at_1:
        assert Evaluate(solver=solver).solver == solver


@pytest.mark.parametrize(
    "solver", ["", "rk45", "rk2", "rk2:0", "rk2:0.0", "rk2:1.5", "Heun", "heun "]
)
def test_other_solvers_are_refused_with_the_list(solver):
    for said in (refused(changed(("pairs.pairs2.solver", solver))),
                 refused(changed(("evaluate.solver", solver)))):  # fmt: skip
        assert f"solver: unknown solver '{solver}'; there are {', '.join(SOLVERS)}" in said
        assert "rk2:<delta>, 0 < delta <= 1" in said


EARLIER = """
seed: 0
dataset: {name: digits, held_out: 0.2}
network: {arch: small_unet, channels: 32}
pretrain: {source: train, steps: 1300, times: {law: uniform}}
generate: {n: 20000, solver: midpoint}
reflow: {steps: 2500, loss: {name: lpips_huber}}
rounds: {"2": {teacher: flow1}}
evaluate: {teacher_nfe: 35}
"""


def test_an_earlier_params_file_is_named_as_such(tmp_path):
    (tmp_path / "params.yaml").write_text(EARLIER)
    with pytest.raises(UserError) as error:
        params.load(tmp_path / "params.yaml")
    said = str(error.value)
    assert said.isprintable()
    assert "is of an earlier version (network, pretrain, generate, reflow, rounds)" in said
    assert "networks, recipes, pairs and flows" in said
    assert "`rfpp preset` puts a new file in place" in said


@pytest.mark.parametrize(
    "text", ["", "- a\n", "a: [", "!!python/object/apply:os.system [ls]", "\0"]
)
def test_what_is_not_params_is_one_line(tmp_path, text):
    path = tmp_path / "params.yaml"
    path.write_text(text)
    with pytest.raises(UserError) as error:
        params.load(path)
    assert "\n" not in str(error.value)


def test_a_missing_file_names_the_command(tmp_path):
    with pytest.raises(UserError, match="rfpp preset digits"):
        params.load(tmp_path / "params.yaml")


@pytest.mark.parametrize("name", presets.names())
def test_a_preset_says_the_same_with_and_without_its_defaults(name):
    config = preset(name)
    assert params.parse(config.model_dump(mode="json")) == config
    assert params.parse(config.model_dump(mode="json", exclude_defaults=True)) == config


def test_the_params_file_of_the_project_is_a_preset():
    assert (ROOT / "params.yaml").read_text() == presets.composed("digits")


@pytest.mark.parametrize("name", presets.names())
def test_presets_have_every_key_that_dvc_reads(name):
    """DVC refuses a pipeline whose ``params`` or ``${item.key}`` are not in params.yaml."""
    raw = yaml_file.parse(presets.composed(name), name)
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
    for stage in stages.values():
        rows = raw[stage["foreach"][2:-1]] if "foreach" in stage else {"": {}}
        for key, item in rows.items():
            text = yaml.safe_dump(stage.get("do", stage))
            text = re.sub(r"\$\{item\.(\w+)\}", lambda m, item=item: item[m[1]], text)
            for param in yaml.safe_load(text.replace("${key}", key)).get("params", []):
                at = raw
                for part in param.split("."):
                    assert part in at, param
                    at = at[part]


# name: parameters, steps, batch, lr, warmup, dropout, pairs, NFE, weight of LPIPS, precision,
# side, classes
PUBLISHED = {
    "cifar10": (56_397_827, 800_000, 512, 2e-4, 5000, 0.13, 10**6, 35, "over_t", "fp32", 32, 0),
    "afhq64": (62_761_091, 10**6, 256, 2e-4, 5000, 0.25, 5 * 10**6, 79, "over_t", "fp32", 64, 0),
    "ffhq64": (62_761_091, 10**6, 256, 2e-4, 5000, 0.25, 5 * 10**6, 79, "constant", "fp32", 64, 0),
    "imagenet64": (295_899_267, 700_000, 2048, 1e-4, 2500, 0.1, 5 * 10**6, 79, "constant", "fp16",
                   64, 1000),
}  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED)
def test_presets_are_the_published_runs(name):
    """The table of RF++ (arXiv 2405.20320, sec. 5.2 and app. E; official README)."""
    config = preset(name)
    row = PUBLISHED[name]
    size, steps, batch, lr, warmup, dropout, n, nfe, weighting, precision, side, classes = row
    with torch.device("meta"):
        net = build.field(build.architecture(config.network_of("flow2"), (3, side, side), classes))
    assert sum(p.numel() for p in net.parameters()) == size
    reflow, pairs = config.recipe_of("flow2"), config.pairs["pairs2"]
    assert (reflow.steps, reflow.batch, reflow.lr, reflow.warmup) == (steps, batch, lr, warmup)
    assert (reflow.dropout, reflow.precision, reflow.mix) == (dropout, precision, 0)
    assert (reflow.decay, reflow.clip) == ("constant", 0)
    assert (reflow.ema, reflow.ema_ramp) == (0.9999, False)
    assert (reflow.times.distribution, reflow.times.a) == ("u_shape", 4.0)
    assert (reflow.loss.name, reflow.loss.c) == ("pseudo_huber", 0.00054)
    assert (reflow.loss.perceptual, reflow.loss.weighting) == ("lpips", weighting)
    assert (reflow.loss.pooling, reflow.loss.resize) == ("average", 224)
    assert (reflow.warmup_from_zero, reflow.nonfinite, reflow.times.antithetic) == (
        True, "skip", True)  # fmt: skip
    assert (pairs.n, pairs.nfe, pairs.solver, pairs.grid) == (n, nfe, "edm-heun", "karras")
    assert (pairs.teacher, config.flows["flow2"].start) == ("flow1", "flow1")
    assert config.is_imported("flow1")
    assert config.evaluate.n == 50_000
    assert config.evaluate.grids == {"2": (1.0, 0.8)}
    assert (config.evaluate.nfe, config.evaluate.many_nfe) == ((1, 2), nfe)
    assert config.features.nets == ("inception",)
    assert (config.dataset.channels, config.dataset.held_out) == (3, 0.05)
    assert config.dataset.resolution == (None if name == "cifar10" else side)


def test_config_g_is_f_and_then_real_images():
    f, g = preset("cifar10").model_dump(), preset("cifar10-real").model_dump()
    recipe, inverted = g["recipes"].pop("finetune"), g["pairs"].pop("inverted")
    row = g["flows"].pop("flow3")
    assert g == f
    assert (recipe["steps"], recipe["lr"], recipe["mix"]) == (5000, 1e-5, 0)
    assert (inverted["source"], inverted["nfe"], inverted["teacher"]) == ("images", 128, "flow1")
    assert (row["recipe"], row["data"], row["mix"], row["start"]) == (
        "finetune", "inverted", "pairs2", "flow2")  # fmt: skip


def test_the_ablation_is_digits_and_more_flows():
    digits, rows = preset("digits"), preset("ablation")
    assert rows.recipes.items() >= digits.recipes.items()
    assert (rows.pairs, rows.networks, rows.evaluate) == (
        digits.pairs, digits.networks, digits.evaluate)  # fmt: skip
    assert {rows.teacher_of(name) for name in rows.flows if name != "flow1"} == {"flow1"}
    at_one = rows.recipe_of("control").times
    assert (at_one.distribution, at_one.t) == ("fixed", 1.0)
