"""What must hold across the sections of the params: names, order, and options that go together.

Every rule raises ValueError with one line: what is wrong, what is allowed, what to do.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from typing import TYPE_CHECKING, Any

from rfpp_core.config import domain_rules, method_rules
from rfpp_core.config.flow import IMAGES
from rfpp_core.sampling.solver_table import properties_of, steps_for

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
    _imported_teachers_keep_their_start(params)
    method_rules.check(params)
    domain_rules.check(params)


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
