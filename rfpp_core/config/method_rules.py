"""What single methods need of the rows around them; ``rules`` checks it last, in its way."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rfpp_core.config.flow import IMAGES
from rfpp_core.model.vp import SCHEDULES
from rfpp_core.sampling.solver_table import FLOW_MAP, steps_for

if TYPE_CHECKING:
    from rfpp_core.config.params import Params


def check(params: Params) -> None:
    """Checks all rules; each may rely on those before it.

    Raises:
        ValueError: of the first rule that is broken.
    """
    _pairs_are_there_for_what_needs_them(params)
    _annealing_ends(params)
    _digits_are_not_mirrored(params)
    _segments_are_of_a_trained_flow(params)
    _frozen_starts_are_trained(params)
    _times_are_those_of_the_path(params)
    _shuffling_has_pairs(params)
    _grids_of_pairs_start_with_their_teacher(params)
    _flow_maps_stay_flow_maps(params)
    _flow_map_steps_are_of_flow_maps(params)


def _pairs_are_there_for_what_needs_them(params: Params) -> None:
    """Annealing mixes fresh noise into that of pairs; distillation copies pairs."""
    for name, row in params.flows.items():
        recipe = params.recipe_of(name)
        sets = set(params.sets_of(name))
        if recipe.steps and recipe.objective == "flow_guided" and IMAGES in sets:
            raise ValueError(f"recipes.{row.recipe}.objective: flow_guided copies pairs, and "
                             f"flows.{name} learns from images; name a row of pairs")  # fmt: skip
        if recipe.steps and recipe.anneal.schedule != "none" and sets == {IMAGES}:
            raise ValueError(f"recipes.{row.recipe}.anneal is for the noise of pairs, and "
                             f"flows.{name} learns from images, whose noise is fresh anyway; set "
                             f"anneal.schedule: none")  # fmt: skip


def _annealing_ends(params: Params) -> None:
    for name, recipe in params.recipes.items():
        anneal = recipe.anneal
        if anneal.schedule in ("linear", "cos") and 0 < recipe.steps <= anneal.steps:
            raise ValueError(f"recipes.{name} has {recipe.steps} steps, so annealing in "
                             f"{anneal.steps} never reaches the noise of the pairs; lower "
                             f"anneal.steps")  # fmt: skip


def _digits_are_not_mirrored(params: Params) -> None:
    for name, recipe in params.recipes.items():
        if recipe.flip and params.dataset.name == "digits":
            raise ValueError(f"recipes.{name}.flip mirrors images, and mirrored digits are no "
                             f"digits; set flip: false")  # fmt: skip


def _segments_are_of_a_trained_flow(params: Params) -> None:
    """The paths that are straightened are those of the start, from pure noise at t = 1."""
    for name, row in params.flows.items():
        recipe = params.recipe_of(name)
        if recipe.objective != "segments" or not recipe.steps:
            continue
        if row.start not in params.flows or params.is_imported(row.start):
            raise ValueError(f"flows.{name} straightens the paths of its start, {row.start}, "
                             f"which is not trained here; let it start from a trained "
                             f"flow")  # fmt: skip


def _frozen_starts_are_trained(params: Params) -> None:
    """An objective with a frozen teacher learns from the weights that the flow starts from."""
    for name, row in params.flows.items():
        recipe = params.recipe_of(name)
        *flows, network = params.starts_of(name)
        made = params.networks[network].checkpoint or any(params.recipe_of(f).steps for f in flows)
        if recipe.steps and recipe.frozen_start and not made:
            raise ValueError(f"flows.{name} learns from the weights it starts from (recipes."
                             f"{row.recipe}.objective: {recipe.objective}), and those of "
                             f"{row.start} are random; start from a trained flow")  # fmt: skip


def _times_are_those_of_the_path(params: Params) -> None:
    """A variance-preserving path ends below t = 1, and its network sees its own time."""
    for name, row in params.flows.items():
        recipe, network = params.recipe_of(name), params.network_of(name)
        times, vp = recipe.times, network.path in SCHEDULES
        inside = times.distribution == "fixed" and times.t <= network.start
        if not recipe.steps or times.distribution == network.path or (vp and inside):
            continue
        if vp:
            raise ValueError(f"flows.{name} has path: {network.path}, which ends at t = "
                             f"{network.start:.4f}; set recipes.{row.recipe}.times.distribution "
                             f"to {network.path}, or to fixed with t up to that")  # fmt: skip
        if times.distribution in SCHEDULES:
            raise ValueError(f"recipes.{row.recipe}.times.distribution: {times.distribution} is "
                             f"for networks with that path, and flows.{name} has path: "
                             f"{network.path}; take uniform or u_shape")  # fmt: skip


def _shuffling_has_pairs(params: Params) -> None:
    for name, row in params.flows.items():
        sets = set(params.sets_of(name))
        if params.recipe_of(name).shuffled and not sets & set(params.pairs):
            raise ValueError(f"recipes.{row.recipe}.shuffled is for pairs, and flows.{name} "
                             f"learns from images, whose noise is fresh anyway")  # fmt: skip


def _grids_of_pairs_start_with_their_teacher(params: Params) -> None:
    """On a variance-preserving path a teacher starts below t = 1, and a grid must follow."""
    for name, pairs in params.pairs.items():
        network = params.network_of(pairs.teacher)
        if pairs.source == "import" or pairs.grid == network.path:
            continue
        if pairs.grid in SCHEDULES:
            raise ValueError(f"pairs.{name}.grid: {pairs.grid} is for teachers with that path, "
                             f"and {pairs.teacher} has path: {network.path}; take "
                             f"uniform")  # fmt: skip
        steps = steps_for(pairs.solver, pairs.nfe)[0]
        few = pairs.grid == "uniform" and 1 - 1 / steps < network.start
        if network.path in SCHEDULES and not few:
            raise ValueError(f"pairs.{name}.grid: {pairs.grid} with {steps} steps does not fit "
                             f"{pairs.teacher}, whose path: {network.path} starts at t = "
                             f"{network.start:.4f}; take grid: {network.path}")  # fmt: skip


def _flow_maps_stay_flow_maps(params: Params) -> None:
    """Flow matching would leave the steps of a flow map untrained."""
    for name, row in params.flows.items():
        recipe = params.recipe_of(name)
        on_map = row.start in params.flows and params.is_flow_map(row.start)
        if on_map and recipe.steps and recipe.objective != "flow_map":
            raise ValueError(f"flows.{name} starts from the flow map {row.start}, and "
                             f"recipes.{row.recipe} has objective: {recipe.objective}, which "
                             f"trains no end times; take objective: flow_map, or another "
                             f"start")  # fmt: skip


def _flow_map_steps_are_of_flow_maps(params: Params) -> None:
    for name, pairs in params.pairs.items():
        made = pairs.source != "import"
        if made and pairs.solver == FLOW_MAP and not params.is_flow_map(pairs.teacher):
            raise ValueError(f"pairs.{name}.solver {FLOW_MAP} takes the steps of a flow map, and "
                             f"{pairs.teacher} is none; take heun or midpoint, or a teacher "
                             f"trained with objective: flow_map")  # fmt: skip
    if params.evaluate.solver == FLOW_MAP:
        for name in params.flows:
            if not params.is_flow_map(name):
                raise ValueError(f"evaluate.solver {FLOW_MAP} takes the steps of a flow map, and "
                                 f"{name} is none; take another: the rows of flow maps are by "
                                 f"{FLOW_MAP} anyway")  # fmt: skip
