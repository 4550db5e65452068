"""The schema of ``params.yaml``: what is wrong is named with what is allowed."""

from __future__ import annotations

import pytest

from rfpp_core.config import params
from rfpp_core.config.evaluate import Evaluate
from rfpp_core.config.pairs import PairSet
from rfpp_core.errors import UserError
from rfpp_core.sampling.solver_table import SOLVERS
from tests.unit.config.rows import changed, refused


@pytest.mark.parametrize(
    ("name", "value", "parts"),
    [
        ("recipes.reflow.lrr", 1, ["unknown param 'recipes.reflow.lrr'", "lr,", "allowed:"]),
        ("recipes.reflow.times.law", "u_shape",
         ["unknown param 'recipes.reflow.times.law' (allowed: a, antithetic, at_one,"]),
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


def test_the_two_step_grid_of_the_paper_is_legal():
    parsed = params.parse(changed(("evaluate.grids", {"2": [1.0, 0.8]})))
    assert parsed.evaluate.grids["2"] == (1, 0.8)


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
