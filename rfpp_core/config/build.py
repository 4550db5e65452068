"""Builds objects from params: network, field, times, loss, coupling.

Alternatives are in tables keyed by the value of their param and annotated ``Choices``: the
identity of a training covers the entries that it uses, and no others
(``pipeline.work.identity``).  A new method is a row here (CONTRIBUTING.md).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import torch
from pydantic import ValidationError
from torch import Tensor, nn

from rfpp_core.choices import Choices
from rfpp_core.config.network import WITH_END_TIME, Architecture, Network
from rfpp_core.config.params import Params, explained
from rfpp_core.config.recipe import NOT_IN_WEIGHTS, Anneal, Loss, Recipe, Times
from rfpp_core.config.section import described
from rfpp_core.errors import UserError, quoted
from rfpp_core.model import prediction, vp
from rfpp_core.model.flow_map import EDMFlowMap, PlainFlowMap
from rfpp_core.model.nets.dhariwal_unet import DhariwalUNet
from rfpp_core.model.nets.edm_unet import UNetShape
from rfpp_core.model.nets.small_unet import SmallUNet
from rfpp_core.model.nets.song_unet import SongUNet
from rfpp_core.model.path import Field
from rfpp_core.model.precond import Conditioned, EDMVelocity, PlainVelocity
from rfpp_core.rng import StepRNG, subkey
from rfpp_core.sampling.flow import Flow
from rfpp_core.sampling.flow_map import as_map
from rfpp_core.storage import checkpoint, files
from rfpp_core.training import flow_map, losses, phased, spaces, times
from rfpp_core.training.couplings import Coupling, annealed
from rfpp_core.training.couplings.dansm import dansm
from rfpp_core.training.couplings.independent import independent
from rfpp_core.training.couplings.matched import Matching
from rfpp_core.training.couplings.ot import ot
from rfpp_core.training.couplings.paired import seeded, stored
from rfpp_core.training.guided import flow_guided
from rfpp_core.training.segments import straightening
from rfpp_core.training.train_config import TrainConfig


def architecture(params: Network, shape: tuple[int, ...], classes: int) -> dict[str, Any]:
    """The JSON document that :func:`field` builds from; every model file contains it.

    Raises:
        UserError: if the network is conditional and there are no labels.
    """
    document = params.model_dump(mode="json", include=set(Network.model_fields))
    conditional = document.pop("conditional")
    if conditional and not classes:
        raise UserError("conditional: true in networks needs labels: put the images in a folder "
                        "per class, or name a CSV of name,label rows in "
                        "dataset.labels")  # fmt: skip
    return {**document, "shape": list(shape), "classes": classes if conditional else 0}


def trained_architecture(recipe: Recipe, document: dict[str, Any]) -> dict[str, Any]:
    """The architecture that a recipe trains: its start's; of a flow map, with an end time."""
    if recipe.objective != "flow_map":
        return document
    precond = architecture_of(document).precond
    return {**document, "precond": WITH_END_TIME.get(precond, precond)}


def architecture_of(document: Any) -> Architecture:
    """An architecture document, checked.

    Raises:
        UserError: if it is not one.
    """
    try:
        return Architecture.model_validate(document)
    except ValidationError as error:
        raise UserError(f"not an architecture of this version: {explained(error)}") from None


def field(arch: Mapping[str, Any], dropout: float = 0.0, seed: int = 0) -> Conditioned:
    """The preconditioned network of an architecture document, its weights drawn from ``seed``.

    Raises:
        UserError: if the document is not one, the image does not halve often enough, or a width
            does not split into the groups of its normalisation or the heads of its attention.
    """
    network = architecture_of(arch)
    _, h, w = network.shape
    halvings = 2 ** (len(network.multipliers) - 1)
    if h != w or h % halvings:
        raise UserError(
            f"multipliers of the network has {len(network.multipliers)} levels, so images must be "
            f"square with sides a multiple of {halvings}; they are {h}x{w}"
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(subkey(seed, "weights"))
        try:
            model = NETWORKS[network.arch](network, dropout)
        except ValueError as error:  # of torch's GroupNorm, or of attention
            raise UserError(
                f"channels {network.channels} of the network with multipliers "
                f"{[*network.multipliers]} makes no {network.arch}: {error}; take a multiple of 32"
            ) from None
    return PRECONDITIONINGS[network.precond](model, network)


NETWORKS: Choices[Callable[[Architecture, float], nn.Module]] = {
    "small_unet": lambda a, dropout: SmallUNet(
        a.shape[0], a.channels, a.multipliers, a.blocks, a.attention, a.classes, dropout
    ),
    "ncsnpp": lambda a, dropout: SongUNet(_edm(a, dropout), "fourier", "residual"),
    "ddpmpp": lambda a, dropout: SongUNet(_edm(a, dropout), "positional", "standard"),
    "adm": lambda a, dropout: DhariwalUNet(_edm(a, dropout)),
}

PRECONDITIONINGS: Choices[Callable[[nn.Module, Architecture], Conditioned]] = {
    "velocity": lambda model, a: PlainVelocity(model),
    "edm": lambda model, a: EDMVelocity(model, a.sigma_data),
    "plain": lambda model, a: prediction.FIELDS[a.path](model, a.prediction),
    "velocity_map": lambda model, a: PlainFlowMap(model),
    "edm_map": lambda model, a: EDMFlowMap(model, a.sigma_data),
}

PREDICTIONS: Choices[prediction.ToVelocity] = {  # on the straight path
    "v": prediction.of_v,
    "x": prediction.of_x,
}

VP_PREDICTIONS: Choices[prediction.ToVelocity] = {
    "v": prediction.of_vp_v,
    "eps": prediction.of_eps,
    "x": prediction.of_x,
}


def _edm(a: Architecture, dropout: float) -> UNetShape:
    """The shape of one of EDM's networks."""
    channels, side, _ = a.shape
    return UNetShape(
        image_size=side,
        image_channels=channels,
        channels=a.channels,
        multipliers=a.multipliers,
        blocks=a.blocks,
        attention_resolutions=a.attention_resolutions,
        classes=a.classes,
        augment=a.augment,
        dropout=dropout,
    )


def load_flow(path: str | Path, device: str | torch.device = "cpu") -> Flow:
    """Loads a flow from one model file.

    Raises:
        UserError: if the file is missing, corrupted, or its weights do not fit its architecture.
    """
    return as_map(flow_of(checkpoint.load(Path(path)), Path(path), device))


def flow_of(loaded: checkpoint.Loaded, path: Path, device: str | torch.device) -> Flow:
    """The flow of a file that was read from ``path``; raises as :func:`load_flow` does."""
    metadata = loaded.metadata
    arch = metadata.get("architecture")
    if not isinstance(arch, dict):
        raise UserError(f"{path} is not a model file (no architecture in its metadata)")
    start = metadata.get("start", 1.0)
    if not isinstance(start, float | int) or not 0 < start <= 1:
        raise UserError(f"{path} starts at {quoted(start)}; a flow starts at a time in (0, 1]")
    with torch.device("meta"):  # nothing is allocated for what the file does not hold
        net = field(arch)
    checkpoint.load_into(net, loaded.tensors, str(path), assign=True)
    net.requires_grad_(False).eval()
    net = net.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    return Flow(net, tuple(arch["shape"]), arch["classes"], flow_digest(loaded), metadata)


def flow_digest(loaded: checkpoint.Loaded) -> str:
    """sha256 of weights and architecture, without the rest of the metadata.

    Raises:
        UserError: if the architecture is not one of this version.
    """
    return files.digest(
        [described(architecture_of(loaded.metadata["architecture"])), loaded.weights]
    )


def first_time(arch: Mapping[str, Any]) -> dict[str, float]:
    """What a model file says of the first time of its flow: nothing where that is t = 1."""
    start = architecture_of(arch).start
    return {"start": start} if start < 1 else {}


def train_config(recipe: Recipe, seed: int) -> TrainConfig:
    """The trainer's config of a recipe and the seed of a training."""
    shared = TrainConfig.__dataclass_fields__.keys() & Recipe.model_fields.keys()
    return TrainConfig(seed=seed, **{name: getattr(recipe, name) for name in shared})


InverseCDF: TypeAlias = Callable[[Tensor], Tensor]

TIMES: Choices[Callable[[Times], InverseCDF]] = {
    "u_shape": lambda p: partial(times.u_shape, a=p.a),
    "uniform": lambda p: times.uniform,
    "logit_normal": lambda p: partial(times.logit_normal, mean=p.mean, std=p.std),
    "fixed": lambda p: partial(times.fixed, t=p.t),
    "grid": lambda p: partial(times.grid, k=p.k),
    "vp": lambda p: partial(vp.t_of_tau, schedule=vp.SCHEDULES["vp"]),
    "vp_sd": lambda p: partial(vp.t_of_tau, schedule=vp.SCHEDULES["vp_sd"]),
}

DISTANCES: Choices[Callable[[Loss], losses.Distance]] = {
    "l2": lambda p: losses.l2,
    "l2_root": lambda p: losses.l2_root,
    "pseudo_huber": lambda p: partial(losses.pseudo_huber, c=p.c),
}

WEIGHTINGS: Choices[Callable[[Tensor], Tensor]] = {
    "constant": losses.constant,
    "over_t": losses.over_t,
}

COUPLINGS: Choices[Callable[[Recipe], Coupling]] = {  # of real images
    "independent": lambda p: independent,
}

MATCHINGS: Choices[Callable[[Recipe], Matching]] = {  # of real images, over several batches
    "dansm": lambda p: Matching(dansm, p.match or 8 * p.batch),
    "ot": lambda p: Matching(ot, p.match or p.batch),
}

PAIRED: Choices[Callable[[int, Tensor | None], Coupling]] = {  # of pairs, by their noise
    "seeded": lambda seed, noise: seeded(seed),
    "stored": lambda seed, noise: stored(_there(noise)),
}


SCHEDULES: Choices[Callable[[Anneal], annealed.Schedule]] = {  # of annealed noise
    "linear": lambda p: partial(annealed.linear, steps=p.steps),
    "cos": lambda p: partial(annealed.cosine, steps=p.steps),
    "exp": lambda p: partial(annealed.exponential, steps=p.steps),
    "fixed": lambda p: lambda step: p.beta,
}


def annealing(params: Anneal, coupling: Coupling) -> Coupling:
    """Pairs whose noise is annealed."""
    return annealed.annealed(coupling, SCHEDULES[params.schedule](params))


def time_distribution(params: Times) -> InverseCDF:
    """Maps uniform draws (B,) in (0, 1) to training times.

    Times of a continuous distribution keep off 0 and 1; those of ``at_one`` are 1 exactly.
    """
    inverse = TIMES[params.distribution](params)
    whole = inverse if params.distribution == "fixed" else lambda u: times.inside(inverse(u))
    return partial(times.with_atom, inverse=whole, p=params.at_one) if params.at_one else whole


def training_times(params: Times) -> Callable[[StepRNG], Tensor]:
    """Draws the times (B,) of a training step."""
    distribution = time_distribution(params)
    if params.antithetic:
        return lambda draws: distribution(draws.antithetic("t"))
    return lambda draws: distribution(draws.uniform("t"))


def distance(params: Loss) -> losses.Distance:
    """Per-sample distance (B,) of a velocity to its target."""
    return DISTANCES[params.name](params)


class Parts(NamedTuple):
    """What an objective is made of."""

    recipe: Recipe
    coupling: Coupling  # gives (x, z, y)
    perceptual: losses.Distance | None  # of images, if the recipe names one
    frozen: Field | None  # the weights that the flow starts from, if the objective uses them


def loss(
    recipe: Recipe,
    coupling: Coupling,
    perceptual: losses.Distance | None = None,
    frozen: Field | None = None,
) -> losses.LossFunction:
    """The objective of a recipe, on a coupling; see :class:`Parts` for the arguments."""
    return OBJECTIVES[recipe.objective](Parts(recipe, coupling, perceptual, frozen))


def _flow_matching(parts: Parts) -> losses.LossFunction:
    recipe, seen = parts.recipe, None
    params = recipe.loss
    if parts.perceptual is not None:
        weight = WEIGHTINGS[params.weighting]
        seen = losses.PerceptualTerm(params.perceptual, parts.perceptual, weight)
    term = losses.Term(params.name, distance(params))
    return losses.flow_matching(
        parts.coupling, training_times(recipe.times), term, recipe.label_dropout, seen
    )


def _segments(parts: Parts) -> losses.LossFunction:
    recipe = parts.recipe
    assert parts.frozen is not None  # the objective is in FROZEN_START
    term = losses.Term(recipe.loss.name, distance(recipe.loss))
    grid = recipe.segments
    return straightening(parts.coupling, parts.frozen, grid.whole, grid.parts, term)


def _flow_guided(parts: Parts) -> losses.LossFunction:
    recipe, steps = parts.recipe, parts.recipe.two_step
    assert parts.frozen is not None
    compared = distance(recipe.loss) if parts.perceptual is None else parts.perceptual
    between = (steps.low, steps.high)
    return flow_guided(
        parts.coupling, compared, parts.frozen, between, steps.own, recipe.label_dropout
    )


def _diffusion(parts: Parts) -> losses.LossFunction:
    recipe, params = parts.recipe, parts.recipe.loss
    term = losses.Term(params.name, distance(params))
    drawn, scale = training_times(recipe.times), spaces.SCALES[params.space]
    return spaces.diffusion(parts.coupling, drawn, term, scale, recipe.label_dropout)


def _phased(parts: Parts) -> losses.LossFunction:
    recipe = parts.recipe
    assert parts.frozen is not None
    return phased.phased(
        parts.coupling,
        TIMES[recipe.times.distribution](recipe.times),
        losses.Term(recipe.loss.name, distance(recipe.loss)),
        parts.frozen,
        recipe.phased.phases,
        recipe.phased.substeps,
        recipe.label_dropout,
    )


def _flow_map(parts: Parts) -> losses.LossFunction:
    recipe, params = parts.recipe, parts.recipe.flow_map
    other = time_distribution(recipe.times)
    intervals = flow_map.intervals(
        training_times(recipe.times),
        lambda draws: other(draws.uniform("end time")),
        flow_map.ENDS[params.end],
        params.same,
    )
    derivative = flow_map.DERIVATIVES[params.derivative](params.step)
    weight = flow_map.Weight(params.p, params.c)
    return flow_map.flow_map(
        parts.coupling, intervals, derivative, weight, recipe.label_dropout, parts.frozen
    )


OBJECTIVES: Choices[Callable[[Parts], losses.LossFunction]] = {
    "flow_matching": _flow_matching,
    "segments": _segments,
    "flow_guided": _flow_guided,
    "diffusion": _diffusion,
    "phased": _phased,
    "flow_map": _flow_map,
}


def _there(noise: Tensor | None) -> Tensor:
    assert noise is not None
    return noise


def provenance_params(params: Params, recipe: Recipe) -> dict[str, Any]:
    """The params in a model file: without paths and options that change no weight."""
    return {
        "dataset": params.dataset.model_dump(mode="json", exclude={"path", "labels"}),
        "training": recipe.model_dump(mode="json", exclude=NOT_IN_WEIGHTS),
    }
