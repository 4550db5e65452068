"""Params of flows between two sets of images: what goes together, and the line that says what does
not."""

import copy
from typing import Any

import pytest

from rfpp_core.config import params
from rfpp_core.config.flow import Domains
from tests.unit.config import rows
from tests.unit.config.rows import flow, refused

DOMAINS = {"source": [1, 0], "target": [3, 2]}
OTHER = {"source": [4], "target": [5]}
TRANSLATED = {"teacher": "flow1", "source": "domain", "solver": "heun", "nfe": 5, "shard": 100,
              "micro_batch": 50}  # fmt: skip
FIRST = ("flows.flow1.domains", DOMAINS)
RUN = (FIRST, ("pairs.pairs2", TRANSLATED))  # a whole run of two flows
ON_IMAGES = {**flow("pretrain", "images", "images", "flow1")}


def changed(*changes: tuple[str, Any]) -> dict[str, Any]:
    """As ``rows.changed``, which puts the values themselves in and then changes them."""
    return rows.changed(*copy.deepcopy(changes))


def test_pairs_and_what_learns_from_them_have_the_domains_of_the_teacher():
    config = params.parse(changed(*RUN))
    found = Domains(source=(0, 1), target=(2, 3))
    assert [config.domains_of(name) for name in ("flow1", "flow2")] == [found, found]
    assert found.words == "0, 1 to 2, 3"


def test_a_flow_without_domains_has_none():
    config = params.parse(changed())
    assert [config.domains_of(name) for name in ("flow1", "flow2")] == [None, None]


def test_a_flow_of_zero_steps_has_the_domains_of_its_start():
    kept = {"steps": 0}
    config = params.parse(
        changed(*RUN, ("recipes.kept", kept), ("flows.flow3", flow("kept", "images")))
    )
    assert config.domains_of("flow3") == config.domains_of("flow1")


@pytest.mark.parametrize(
    "changes",
    [
        [*RUN, ("flows.flow3", {**ON_IMAGES, "domains": DOMAINS})],
        [*RUN, ("flows.flow0", flow("pretrain", "images", "images", "unet")),
         ("flows.flow1.start", "flow0")],  # weights of a flow from noise
        [*RUN, ("recipes.reflow.mix", 0.5), ("flows.flow2.domains", DOMAINS)],
        [*RUN, ("recipes.reflow.objective", "segments"),
         ("recipes.reflow.segments", {"times": [1.0, 0.5]})],
        [*RUN, ("recipes.reflow.shuffled", True)],
    ],
)  # fmt: skip
def test_what_goes_together(changes):
    params.parse(changed(*changes))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ([("flows.flow1.domains", {"source": [0]})], "domains needs both source and target"),
        ([("flows.flow1.domains", {"source": [0, 1], "target": [1]})], "label 1 is in both"),
        ([("flows.flow1.domains", {"source": [-1], "target": [1]})], "greater than or equal to 0"),
        ([FIRST], "pairs.pairs2.source is noise, and flow1 translates images of classes 0, 1 to "
                  "2, 3; set source: domain"),
        ([*RUN, ("pairs.pairs2", {**TRANSLATED, "source": "images"})], "set source: domain"),
        ([("pairs.pairs2", TRANSLATED)], "flow1 starts from noise; take source: noise"),
        ([*RUN, ("pairs.pairs2.n", 100)], "n is for source: noise alone"),
        ([*RUN, ("pairs.pairs2.guidance", 2.0)], "guidance is not for source: domain"),
        ([*RUN, ("flows.flow2.domains", DOMAINS)], "pairs have the domains of their teacher"),
        ([*RUN, ("recipes.kept", {"steps": 0}),
          ("flows.flow3", {**flow("kept", "images"), "domains": DOMAINS})], "has 0 steps; leave"),
        ([*RUN, ("recipes.reflow.mix", 0.5)], "of other domains"),
        ([*RUN, ("flows.flow3", ON_IMAGES)], "translates classes 0, 1 to 2, 3, and itself starts "
                                             "from noise"),
        ([*RUN, ("flows.flow3", {**ON_IMAGES, "domains": OTHER})], "itself translates 4 to 5"),
        ([*RUN, ("flows.flow0", flow("reflow", "images", "images", "unet")),
          ("flows.flow1.start", "flow0"), ("recipes.pretrain.objective", "segments"),
          ("recipes.pretrain.segments", {"times": [1.0, 0.5]})], "which begin in noise"),
        ([*RUN, ("networks.unet.conditional", True)], "take a network with conditional: false"),
        ([*RUN, ("recipes.pretrain.coupling", "ot")], "coupling: ot deals out noise"),
        ([*RUN, ("recipes.reflow.anneal", {"schedule": "fixed"})], "anneal adds noise to one"),
        ([*RUN, ("networks.unet", {"precond": "plain", "path": "vp"}),
          ("recipes.pretrain.times", {"distribution": "vp"}),
          ("recipes.reflow.times", {"distribution": "vp"}), ("pairs.pairs2.grid", "vp")],
         "path: vp of its network ends in noise"),
    ],
)  # fmt: skip
def test_what_does_not_is_refused_in_one_line(changes, said):
    assert said in refused(changed(*changes))
