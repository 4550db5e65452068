"""What must hold across the sections of the params: names, order, and options that go together.

Every rule raises ValueError with one line: what is wrong, what is allowed, what to do.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from typing import TYPE_CHECKING, Any

from rfpp_core.config.flow import IMAGES
from rfpp_core.model.vp import SCHEDULES
from rfpp_core.sampling.solver_table import FLOW_MAP, properties_of, steps_for

if TYPE_CHECKING:
    from rfpp_core.config.params import Params

EARLIER = (
    "network", "pretrain", "generate", "reflow", "rounds", "invert", "finetune", "finetunes",
)  # fmt: skip
MOST_ROWS = 50_000  # of a loss curve
RESERVED = {"features": "models/features.safetensors", IMAGES: "data/images.zarr"}


def check(params: Params) -> None:
    """Checks all rules; each may rely on those before it.

    Raises:
        ValueError: of the first rule that is broken.
    """
    _names_do_not_clash(params)
    _rows_exist(params)
    _nothing_goes_in_circles(params)
    _zero_steps_are_imports(params)
    _curves_fit_their_states(params)
    _batches_fit_their_pairs(params)
    _mixing_has_a_second_set(params)
    _guidance_has_labels(params)
    _pairs_are_there_for_what_needs_them(params)
    _guiding_flows_are_trained(params)
    _annealing_ends(params)
    _digits_are_not_mirrored(params)
    _imported_teachers_keep_their_start(params)
    _segments_are_of_a_trained_flow(params)
    _frozen_starts_are_trained(params)
    _times_are_those_of_the_path(params)
    _shuffling_has_pairs(params)
    _grids_of_pairs_start_with_their_teacher(params)
    _flow_maps_stay_flow_maps(params)
    _flow_map_steps_are_of_flow_maps(params)
    _flow_maps_have_a_teacher(params)


def earlier_sections(raw: Mapping[str, Any]) -> list[str]:
    """The sections of an earlier version that a params file has."""
    return [name for name in EARLIER if name in raw]


def _names_do_not_clash(params: Params) -> None:
    """Networks and flows share models/, pairs and images share data/."""
    maps: dict[str, Collection[str]] = {
        "networks": params.networks, "pairs": params.pairs, "flows": params.flows,
    }  # fmt: skip
    seen: dict[str, str] = {}
    for section, rows in maps.items():
        for name in rows:
            if name in RESERVED:
                raise ValueError(f"{section}.{name}: this name is taken by {RESERVED[name]}; take "
                                 f"another")  # fmt: skip
            if name in seen:
                raise ValueError(f"{section}.{name} has the name of {seen[name]}.{name}; "
                                 f"networks, pairs and flows need different names")  # fmt: skip
            seen[name] = section


def _rows_exist(params: Params) -> None:
    data = [IMAGES, *params.pairs]
    for name, row in params.flows.items():
        _known(f"flows.{name}.recipe", row.recipe, params.recipes, "recipes")
        _known(f"flows.{name}.data", row.data, data, "data")
        _known(f"flows.{name}.mix", row.mix, data, "data")
        starts = [*params.networks, *params.flows]
        _known(f"flows.{name}.start", row.start, starts, "networks and flows")
    for name, pairs in params.pairs.items():
        _known(f"pairs.{name}.teacher", pairs.teacher, params.flows, "flows")


def _known(where: str, name: str, rows: Collection[str], what: str) -> None:
    if name not in rows:
        raise ValueError(f"{where} is {name}; there is no such row ({what}: {', '.join(rows)})")


def _nothing_goes_in_circles(params: Params) -> None:
    """A flow's start and the teacher of its pairs must be made before it."""
    needs = {name: set(_needs(params, name)) for name in params.flows}
    try:
        TopologicalSorter(needs).prepare()
    except CycleError as error:
        circle = error.args[1][::-1]  # each needs the next
        raise ValueError(f"flows.{circle[0]} needs itself ({' <- '.join(circle)}); a start, and "
                         f"the teacher of its pairs, must be made before") from None  # fmt: skip


def _needs(params: Params, flow: str) -> Iterator[str]:
    row = params.flows[flow]
    if row.start in params.flows:
        yield row.start
    for data in (row.data, row.mix):
        if data in params.pairs:
            yield params.pairs[data].teacher


def _zero_steps_are_imports(params: Params) -> None:
    for name in params.flows:
        if not params.recipe_of(name).steps and not params.is_imported(name):
            start = params.flows[name].start
            if start in params.networks:
                raise ValueError(f"flows.{name} has 0 steps and starts from networks.{start}, "
                                 f"which has no checkpoint: its weights would be random; give the "
                                 f"recipe steps, or the network a checkpoint")  # fmt: skip


def _curves_fit_their_states(params: Params) -> None:
    """The loss curve is in every training state, and a reader limits its metadata."""
    for name, recipe in params.recipes.items():
        if recipe.steps > MOST_ROWS * recipe.log_every:
            raise ValueError(f"recipes.{name}: {recipe.steps} steps with log_every "
                             f"{recipe.log_every} make a loss curve of more than {MOST_ROWS:,} "
                             f"rows; raise log_every")  # fmt: skip


def _batches_fit_their_pairs(params: Params) -> None:
    for name, row in params.flows.items():
        n = params.pairs[row.data].n if row.data in params.pairs else None
        batch = params.recipe_of(name).batch
        if n is not None and n < batch and params.recipe_of(name).steps:
            raise ValueError(f"recipes.{row.recipe}.batch ({batch}) is larger than the set of "
                             f"pairs (pairs.{row.data}.n = {n})")  # fmt: skip


def _mixing_has_a_second_set(params: Params) -> None:
    for name, row in params.flows.items():
        if params.uses_mix(name) and row.mix == row.data:
            raise ValueError(f"flows.{name} mixes {row.mix} with itself; name another set in mix, "
                             f"or take a recipe with mix: 0")  # fmt: skip


def _guidance_has_labels(params: Params) -> None:
    """Guidance needs a teacher that was also trained without labels, in each of its trainings."""
    for name, pairs in params.pairs.items():
        if pairs.guidance == 1 or pairs.source == "import":
            continue
        *flows, network = (pairs.teacher, *params.starts_of(pairs.teacher))
        trained = [flow for flow in flows if params.recipe_of(flow).steps]
        dropped = trained and all(params.recipe_of(flow).label_dropout for flow in trained)
        if not params.networks[network].conditional or not dropped:
            raise ValueError(f"pairs.{name}.guidance other than 1 needs conditional: true in "
                             f"networks.{network}, and label_dropout above 0 in the recipes of "
                             f"{', '.join(trained or flows)}; an imported teacher has "
                             f"neither")  # fmt: skip


def _pairs_are_there_for_what_needs_them(params: Params) -> None:
    """Annealing mixes fresh noise into that of pairs; distillation copies pairs."""
    for name, row in params.flows.items():
        recipe = params.recipe_of(name)
        sets = {row.data, row.mix} if params.uses_mix(name) else {row.data}
        if recipe.steps and recipe.objective == "flow_guided" and IMAGES in sets:
            raise ValueError(f"recipes.{row.recipe}.objective: flow_guided copies pairs, and "
                             f"flows.{name} learns from images; name a row of pairs")  # fmt: skip
        if recipe.steps and recipe.anneal.schedule != "none" and sets == {IMAGES}:
            raise ValueError(f"recipes.{row.recipe}.anneal is for the noise of pairs, and "
                             f"flows.{name} learns from images, whose noise is fresh anyway; set "
                             f"anneal.schedule: none")  # fmt: skip


def _guiding_flows_are_trained(params: Params) -> None:
    """The flow that guides a distillation is the one that it starts from."""
    for name, row in params.flows.items():
        recipe = params.recipe_of(name)
        if not recipe.steps or recipe.objective != "flow_guided":
            continue
        *flows, network = params.starts_of(name)
        trained = any(params.recipe_of(flow).steps for flow in flows)
        if not trained and not params.networks[network].checkpoint:
            raise ValueError(f"flows.{name} is guided by what it starts from, and {row.start} has "
                             f"random weights; start from the flow that is to be "
                             f"distilled")  # fmt: skip


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


def _imported_teachers_keep_their_start(params: Params) -> None:
    """EDM's checkpoints are trained up to t = 80/81; only they can use its own sampler."""
    for name, pairs in params.pairs.items():
        if pairs.source == "import":
            continue
        imported = params.is_imported(pairs.teacher)
        if not imported and not properties_of(pairs.solver).starts_at_1:
            raise ValueError(f"pairs.{name}.solver {pairs.solver} integrates over sigma, which is "
                             f"infinite at t = 1: it is for an imported teacher, and "
                             f"{pairs.teacher} is trained here")  # fmt: skip
        if imported and pairs.grid == "uniform" and steps_for(pairs.solver, pairs.nfe)[0] > 80:
            raise ValueError(f"pairs.{name}.grid: uniform with more than 80 steps starts above "
                             f"t = 80/81, the first time of an imported EDM; take "
                             f"karras")  # fmt: skip


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
        sets = {row.data, row.mix} if params.uses_mix(name) else {row.data}
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


def _flow_maps_have_a_teacher(params: Params) -> None:
    for name, row in params.flows.items():
        recipe, drawn = params.recipe_of(name), params.networks.get(row.start)
        if recipe.steps and recipe.from_teacher and drawn and not drawn.checkpoint:
            raise ValueError(f"flows.{name} learns from the velocity of its start, but "
                             f"networks.{row.start} has random weights; start from a flow, or set "
                             f"flow_map.velocity: data in recipes.{row.recipe}")  # fmt: skip
