"""Paths, predictions, phases and shuffled pairs: what goes together, and the line otherwise."""

from __future__ import annotations

import copy

import pytest

from rfpp_core.config import params
from rfpp_core.model.vp import SCHEDULES
from tests.unit.config.rows import changed, flow, refused

VP = {"channels": 16, "precond": "plain", "path": "vp_sd", "prediction": "eps"}
EPS = {"steps": 100, "objective": "diffusion", "times": {"distribution": "vp_sd"},
       "loss": {"name": "l2", "space": "eps"}}  # fmt: skip
PHASED = {"steps": 100, "objective": "phased", "times": {"distribution": "uniform"}}
ROWS = [("networks.vp", VP), ("recipes.eps", EPS),
        ("flows.vp1", flow("eps", "images", start="vp")),
        ("pairs.vp_pairs", {"teacher": "vp1", "n": 2000, "nfe": 5, "grid": "vp_sd"}),
        ("flows.vp2", flow("eps", "vp_pairs", start="vp1"))]  # fmt: skip


def with_vp(*changes):
    """Params with a flow on a VP path, its pairs and its rectified student."""
    return changed(*(copy.deepcopy(change) for change in (*ROWS, *changes)))


def test_a_vp_teacher_its_pairs_and_its_rectified_student():
    parsed = params.parse(with_vp())
    assert parsed.network_of("vp2").start == SCHEDULES["vp_sd"].start < 1
    assert parsed.network_of("flow2").start == 1
    assert parsed.network_of("vp2").names == ("small_unet", "plain", "vp_sd", "eps")
    assert parsed.network_of("flow2").names == ("small_unet", "velocity")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ([("networks.vp.precond", "edm")],
         "path: vp_sd and prediction: eps need precond: plain; precond: edm has its own"),
        ([("networks.vp.precond", "velocity")], "need precond: plain"),
        ([("networks.vp.path", "rf")],
         "prediction: eps divides by alpha = 1 - t, which is 0 at t = 1, where path: rf starts; "
         "take prediction v or x, or path vp or vp_sd"),
        ([("networks.vp.path", "vp")],
         "flows.vp1 has path: vp, which ends at t = 0.9935; set recipes.eps.times.distribution "
         "to vp, or to fixed with t up to that"),
        ([("recipes.eps.times.distribution", "uniform")], "which ends at t = 0.9613"),
        ([("recipes.eps.times", {"distribution": "fixed", "t": 1.0})], "fixed with t up to that"),
        ([("recipes.eps.times.at_one", 0.5)], "times.distribution: vp_sd ends below t = 1"),
        ([("recipes.eps.times.antithetic", True)], "not symmetric about 1/2"),
        ([("flows.flow2.recipe", "eps")],
         "recipes.eps.times.distribution: vp_sd is for networks with that path, and flows.flow2 "
         "has path: rf; take uniform or u_shape"),
        ([("pairs.vp_pairs.grid", "vp")],
         "pairs.vp_pairs.grid: vp is for teachers with that path, and vp1 has path: vp_sd"),
        ([("pairs.pairs2.grid", "vp")], "and flow1 has path: rf; take uniform"),
        ([("pairs.vp_pairs.grid", "karras")], "grid: karras with 3 steps does not fit vp1"),
        ([("pairs.vp_pairs", {"teacher": "vp1", "n": 2000, "nfe": 51, "grid": "uniform"})],
         "grid: uniform with 26 steps does not fit vp1, whose path: vp_sd starts at t = 0.9613; "
         "take grid: vp_sd"),
        ([("recipes.eps.objective", "flow_matching")],
         "loss.space: eps needs objective: diffusion; objective: flow_matching compares "
         "velocities"),
        ([("recipes.eps.loss.perceptual", "classifier")],
         "objective: diffusion has no perceptual term; set loss.perceptual: none, or objective: "
         "flow_matching"),
        ([("recipes.phased", {**PHASED, "times": {}})],
         "objective: phased needs times.distribution uniform, or vp or vp_sd on such a path"),
        ([("recipes.phased", {**PHASED, "times": {"distribution": "uniform", "at_one": 0.1}})],
         "with at_one: 0 and antithetic: false"),
        ([("recipes.phased", {**PHASED, "phased": {"phases": 0}})], "phased.phases is 0"),
        ([("recipes.phased", PHASED), ("flows.flow1.recipe", "phased")],
         "flows.flow1 learns from the weights it starts from (recipes.phased.objective: phased), "
         "and those of unet are random; start from a trained flow"),
        ([("recipes.shuffled", {"steps": 100, "shuffled": True}),
          ("flows.flow1.recipe", "shuffled")],
         "recipes.shuffled.shuffled is for pairs, and flows.flow1 learns from images"),
    ],
)  # fmt: skip
def test_what_does_not_go_together(changes, said):
    assert said in refused(with_vp(*changes))


@pytest.mark.parametrize(
    "changes",
    [
        [("networks.vp.prediction", "x")],
        [("networks.vp.prediction", "v")],
        [("networks.vp", {**VP, "path": "rf", "prediction": "x"}),
         ("recipes.eps.times.distribution", "u_shape"), ("pairs.vp_pairs.grid", "uniform")],
        [("recipes.at_end", {"steps": 100, "times": {"distribution": "fixed", "t": 0.96}}),
         ("flows.vp2.recipe", "at_end")],
        [("pairs.vp_pairs", {"teacher": "vp1", "n": 2000, "nfe": 49, "grid": "uniform"})],
        [("flows.flow2.data", "vp_pairs")],  # images and unit-variance noise fit any path
        [("flows.vp2.data", "pairs2")],
        [("recipes.phased", PHASED), ("flows.flow2", flow("phased", "images"))],
        [("recipes.phased", {**PHASED, "times": {"distribution": "vp_sd"}}),
         ("flows.vp2", flow("phased", "images", start="vp1"))],
        [("recipes.eps.shuffled", True), ("flows.vp1.recipe", "first"), ("recipes.first", EPS)],
    ],
)  # fmt: skip
def test_what_does(changes):
    assert params.parse(with_vp(*changes)).flows
