"""``rfpp coupling``: what matching noise with images changes, before anything is trained.

The first pool of a flow's training, with the noise as it was drawn, matched by ``dansm``, and
assigned by ``ot``: the same images and noises, so all differences are the matching's.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer
from pydantic import ValidationError

from pipeline import artifacts
from rfpp_core import runtime
from rfpp_core.config import params
from rfpp_core.config.flow import IMAGES
from rfpp_core.config.params import Params
from rfpp_core.config.recipe import MOST_ASSIGNED, Recipe
from rfpp_core.errors import UserError, quoted
from rfpp_core.rng import subkey
from rfpp_core.storage import files

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from rfpp_core.training.couplings.matched import Source

WARM, TIMED = 2, 5  # training steps before the clock, and by it


class Arm(NamedTuple):
    """A way to deal ``size`` noises to as many images.

    Attributes:
        coupling: its name.
        size: number of images, and of noises.
        path_length: mean of ``||x - z||^2 / d``.
        between: mean distance of two paths where they are nearest; None: not measured.
        nearest: mean distance from a path to the nearest other; None: not measured.
        ms: milliseconds to get the noise of a training step.
    """

    coupling: str
    size: int
    path_length: float
    between: float | None
    nearest: float | None
    ms: float


@runtime.enough_memory("lower --match, free the device or set RFPP_DEVICE=cpu")
def coupling(
    flow: Annotated[
        str | None, typer.Option(help="row of flows [the first that is trained on images]")
    ] = None,
    match: Annotated[
        int | None,
        typer.Option(help="images and noises to match [as its recipe, or 8 batches]"),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="JSON file to write as well")] = None,
) -> None:
    """Measures what matching noise with images changes, and what it costs.

    On the first images and noises of a flow's training, which is not run.  Matched paths are
    shorter and farther apart; whether a flow trained on them is better, only its metrics say.
    """
    config = params.load()
    name = _flow(config, flow)
    found = measured(config, name, _recipe(config, name, match))
    print(f"{name}: the first pool of its training on {found['images']} images\n")
    print(*_table(found["arms"]), sep="\n")
    print(f"\n{_summary(found)}")
    if out is not None:
        files.write_json(out, {**found, "arms": [arm._asdict() for arm in found["arms"]]})


def _flow(config: Params, given: str | None) -> str:
    """The named flow, or the first on images."""
    on_images = [name for name, row in config.flows.items()
                 if row.data == IMAGES and config.recipe_of(name).steps
                 and config.domains_of(name) is None]  # fmt: skip
    if not on_images:
        raise UserError("no flow of params.yaml is trained on images; noise is matched for those "
                        "alone")  # fmt: skip
    if given is not None and given not in on_images:
        raise UserError(f"--flow is '{quoted(given)}'; the flows that are trained on images are "
                        f"{', '.join(on_images)}")  # fmt: skip
    return given or on_images[0]


def _recipe(config: Params, flow: str, match: int | None) -> Recipe:
    """The flow's recipe with the coupling dansm, at its own M; refused as params would be."""
    from rfpp_core.config import objective

    given = config.recipe_of(flow)
    if match is None and given.coupling in objective.MATCHINGS:
        match = objective.MATCHINGS[given.coupling](given).size
    changed = {**given.model_dump(), "coupling": "dansm", "match": match or 0, "mix": 0.0}
    try:
        return Recipe.model_validate(changed)
    except ValidationError as error:
        raise UserError(f"--match: {params.explained(error)}") from None


def measured(config: Params, flow: str, recipe: Recipe) -> dict[str, Any]:
    """The arms, what ``dansm`` has of the exact gain, and times, of a flow's first pool.

    Raises:
        UserError: if there are no images, or a batch is too large to be assigned.
    """
    import torch

    from pipeline.work import training_data
    from rfpp_core.config import objective
    from rfpp_core.images import store

    size = objective.MATCHINGS["dansm"](recipe).size
    probe = size if size <= MOST_ASSIGNED else MOST_ASSIGNED // recipe.batch * recipe.batch
    if not probe:
        raise UserError(f"batch is {recipe.batch}, and rfpp coupling compares with the best "
                        f"assignment of at most {MOST_ASSIGNED} images; lower batch")  # fmt: skip
    device = runtime.device()
    runtime.exact_training(device)
    torch.set_num_threads(recipe.threads)
    found = store.read(artifacts.IMAGES, "train")
    source = training_data.source_of(found, recipe, config.network_of(flow).conditional)
    seed = subkey(config.seed, "pretrain")  # of the stream that trainings on images draw from
    arms = list(_arms(source, probe, seed, device))
    if size > probe:
        arms += _arms(source, size, seed, device, between=False)
    drawn, greedy, best = arms[:3]
    gain = drawn.path_length - best.path_length
    step = _step_ms(config, flow, recipe, source, device)
    added = max(0.0, arms[-1 if size > probe else 1].ms - drawn.ms)
    return {
        "flow": flow,
        "images": len(source.images),
        "batch": recipe.batch,
        "device": device.type,
        "arms": arms,
        "share_of_exact_gain": (drawn.path_length - greedy.path_length) / gain if gain else None,
        "step_ms": step,
        "added_ms": added,
        "share_of_step": added / (step + added),
    }


def _arms(
    source: Source, size: int, seed: int, device: torch.device, between: bool = True
) -> Iterator[Arm]:
    """Noise as drawn, by ``dansm``, and by ``ot`` where it can be, for the same images."""
    import torch

    from rfpp_core.evaluation import coupling_metrics, flow_metrics
    from rfpp_core.training.couplings import dansm, matched, ot

    steps = size // source.share
    x = torch.cat([batch.x for batch in islice(source.batches(seed, 0, device), steps)])

    def by(rule: matched.Rule) -> Tensor:
        found = matched.noise_from(source, matched.Matching(rule, size), seed, 0, x)
        return torch.cat(list(islice(found, steps)))

    ways: dict[str, Callable[[], Tensor]] = {
        "independent": lambda: matched.noise_of_pool(seed, 0, size, source.rank, x),
        "dansm": lambda: by(dansm.dansm),
    }
    if size <= MOST_ASSIGNED:
        ways["ot"] = lambda: by(ot.ot)
    for name, way in ways.items():
        seconds = []
        for _ in range(2):  # the first warms up
            began = time.perf_counter()
            z = way()
            length = flow_metrics.transport_cost(x, z)  # which waits for the device
            seconds.append(time.perf_counter() - began)
        mean, nearest = coupling_metrics.between(x, z) if between else (None, None)
        yield Arm(name, size, length, mean, nearest, 1e3 * min(seconds) / steps)


def _step_ms(
    config: Params, flow: str, recipe: Recipe, source: Source, device: torch.device
) -> float:
    """Milliseconds of a plain training step: independent noise, and no perceptual term."""
    import numpy as np

    from rfpp_core.config import build, objective
    from rfpp_core.training.couplings.independent import independent
    from rfpp_core.training.trainer import TrainState, train

    loss = recipe.loss.model_copy(update={"perceptual": "none"})
    plain = recipe.model_copy(update={
        "steps": WARM + TIMED, "log_every": 1, "loss": loss, "objective": "flow_matching",
    })  # fmt: skip
    classes = 0 if source.labels is None else int(source.labels.max()) + 1
    shape = tuple(source.images.shape[1:])
    field = build.field(build.architecture(config.network_of(flow), shape, classes))
    setup = build.train_config(plain, 0)
    state, times = TrainState(field, setup, device), []
    batches = source.batches(0, 0, device)
    for _ in train(state, batches, objective.loss(plain, independent), setup):
        times.append(time.perf_counter())
    return 1e3 * float(np.median(np.diff(times)[WARM - 1 :]))


def _table(arms: list[Arm]) -> Iterator[str]:
    yield (f"{'coupling':12} {'M':>7} {'path length':>12} {'between':>9} {'nearest':>9} "
           f"{'ms a step':>10}")  # fmt: skip
    for arm in arms:
        apart = [f"{value:9.3f}" if value is not None else f"{'':9}"
                 for value in (arm.between, arm.nearest)]  # fmt: skip
        yield (f"{arm.coupling:12} {arm.size:7} {arm.path_length:12.4f} {' '.join(apart)} "
               f"{arm.ms:10.2f}")  # fmt: skip


def _summary(found: dict[str, Any]) -> str:
    share = found["share_of_exact_gain"]
    best = "" if share is None else f"dansm shortens the paths by {share:.0%} of what is possible"
    return (f"{best}; it adds {found['added_ms']:.1f} ms to a plain training step of "
            f"{found['step_ms']:.1f} ms here ({found['share_of_step']:.1%} of it)")  # fmt: skip
