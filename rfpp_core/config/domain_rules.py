"""What flows between two sets of images need of the rows around them; ``rules`` checks it last."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rfpp_core.config.flow import IMAGES

if TYPE_CHECKING:
    from rfpp_core.config.params import Params


def check(params: Params) -> None:
    """Checks all rules; each may rely on those before it.

    Raises:
        ValueError: of the first rule that is broken.
    """
    _domains_are_of_images(params)
    _sets_agree(params)
    _starts_agree(params)
    _nothing_needs_noise(params)
    _pairs_translate(params)


def _domains_are_of_images(params: Params) -> None:
    """A flow on pairs has the domains of their teacher, and one of 0 steps those of its start."""
    for name, row in params.flows.items():
        if not row.domains.source:
            continue
        if not params.recipe_of(name).steps:
            raise ValueError(f"flows.{name}.domains says what to train on, and flows.{name} has 0 "
                             f"steps; leave domains out")  # fmt: skip
        if IMAGES not in params.sets_of(name):
            raise ValueError(f"flows.{name}.domains is for data: images; pairs have the domains "
                             f"of their teacher, so leave it out")  # fmt: skip


def _sets_agree(params: Params) -> None:
    for name, row in params.flows.items():
        first, *others = (params.domains_of_set(data, name) for data in params.sets_of(name))
        if any(other != first for other in others):
            raise ValueError(f"flows.{name} mixes {row.data} and {row.mix}, which are of other "
                             f"domains; name sets of the same, or set mix: 0")  # fmt: skip


def _starts_agree(params: Params) -> None:
    """Weights that translate are for the same domains; those of a flow from noise are for any, but
    not its paths."""
    for name, row in params.flows.items():
        own, recipe = params.domains_of(name), params.recipe_of(name)
        if row.start not in params.flows or not recipe.steps:
            continue
        before = params.domains_of(row.start)
        if before is not None and before != own:
            raise ValueError(f"flows.{name} starts from {row.start}, which translates classes "
                             f"{before.words}, and itself "
                             f"{f'translates {own.words}' if own else 'starts from noise'}; give "
                             f"it the same domains, or another start")  # fmt: skip
        if before != own and recipe.frozen_start:
            raise ValueError(f"flows.{name} learns from the paths of its start, {row.start}, "
                             f"which begin in noise; let it start from a flow with the same "
                             f"domains")  # fmt: skip


def _nothing_needs_noise(params: Params) -> None:
    for name, row in params.flows.items():
        recipe, network = params.recipe_of(name), params.network_of(name)
        if params.domains_of(name) is None or not recipe.steps:
            continue
        where = f"flows.{name} translates between domains"
        if network.conditional:
            raise ValueError(f"{where}, whose labels it must not be given; take a network with "
                             f"conditional: false")  # fmt: skip
        if network.path != "rf":
            raise ValueError(f"{where}, and path: {network.path} of its network ends in noise; "
                             f"take path: rf")  # fmt: skip
        if IMAGES in params.sets_of(name) and recipe.coupling != "independent":
            raise ValueError(f"{where}, and recipes.{row.recipe}.coupling: {recipe.coupling} "
                             f"deals out noise; set coupling: independent")  # fmt: skip
        if recipe.anneal.schedule != "none":
            raise ValueError(f"{where}, and recipes.{row.recipe}.anneal adds noise to one; set "
                             f"anneal.schedule: none")  # fmt: skip


def _pairs_translate(params: Params) -> None:
    for name, pairs in params.pairs.items():
        domains = params.domains_of(pairs.teacher)
        if domains is None and pairs.source == "domain":
            raise ValueError(f"pairs.{name}.source: domain translates images, and {pairs.teacher} "
                             f"starts from noise; take source: noise, or a teacher with "
                             f"domains")  # fmt: skip
        if domains is not None and pairs.source != "domain":
            raise ValueError(f"pairs.{name}.source is {pairs.source}, and {pairs.teacher} "
                             f"translates images of classes {domains.words}; set source: domain, "
                             f"and leave n out")  # fmt: skip
