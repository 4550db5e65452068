"""Presets: valid, readable by DVC, and the published runs."""

from __future__ import annotations

import re

import pytest
import torch
import yaml

from pipeline.cli import presets
from rfpp_core.config import build, objective, params, yaml_file
from tests.helpers import ROOT
from tests.unit.config.rows import preset


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


def test_family_and_transfer_have_a_row_of_every_objective_and_coupling():
    rows, others = preset("family"), preset("transfer")
    recipes = [run.recipe_of(name) for run in (rows, others) for name in run.flows]
    assert {recipe.objective for recipe in recipes} == set(objective.OBJECTIVES)
    assert {recipe.coupling for recipe in recipes} == {
        *objective.COUPLINGS, *objective.MATCHINGS}  # fmt: skip
    assert {rows.teacher_of(name) for name in ("control", "rfpp", "slim_annealed")} == {
        "flow1"}  # fmt: skip


def test_the_ablation_is_digits_and_more_flows():
    digits, rows = preset("digits"), preset("ablation")
    assert rows.recipes.items() >= digits.recipes.items()
    assert (rows.pairs, rows.networks, rows.evaluate) == (
        digits.pairs, digits.networks, digits.evaluate)  # fmt: skip
    assert {rows.teacher_of(name) for name in rows.flows if name != "flow1"} == {"flow1"}
    at_one = rows.recipe_of("control").times
    assert (at_one.distribution, at_one.t) == ("fixed", 1.0)
