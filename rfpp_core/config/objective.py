"""Builds what a training minimises from its recipe: times, distances, couplings, the objective.

Alternatives are in tables keyed by the value of their param and annotated ``Choices``: the
identity of a training covers the entries that it uses, and no others
(``pipeline.work.identity``).  A new method is a row here (CONTRIBUTING.md).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple, TypeAlias

from torch import Tensor

from rfpp_core.choices import Choices
from rfpp_core.config.methods import Anneal
from rfpp_core.config.recipe import Loss, Recipe, Times
from rfpp_core.model import vp
from rfpp_core.model.path import Field
from rfpp_core.rng import StepRNG
from rfpp_core.training import flow_map, losses, phased, spaces, times
from rfpp_core.training.couplings import Coupling, annealed
from rfpp_core.training.couplings.dansm import dansm
from rfpp_core.training.couplings.independent import independent
from rfpp_core.training.couplings.matched import Matching
from rfpp_core.training.couplings.ot import ot
from rfpp_core.training.couplings.paired import seeded, stored
from rfpp_core.training.couplings.transfer import transfer
from rfpp_core.training.features import feature_weighted
from rfpp_core.training.guided import flow_guided
from rfpp_core.training.perceptual import Perceptual
from rfpp_core.training.segments import straightening

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

TRANSFERS: Choices[Callable[[Tensor], Coupling]] = {  # of real images, by those of the source
    "transfer": lambda source: transfer(source),
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

    Times of a continuous distribution keep off 0 and 1; those of a discrete one and of ``at_one``
    are exact.
    """
    inverse = TIMES[params.distribution](params)
    exact = params.distribution in ("fixed", "grid")
    whole = inverse if exact else lambda u: times.inside(inverse(u))
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


def _features(parts: Parts) -> losses.LossFunction:
    recipe, net = parts.recipe, parts.perceptual
    assert isinstance(net, Perceptual)  # the recipe names one
    times = training_times(recipe.times)
    return feature_weighted(parts.coupling, times, net.layers, recipe.label_dropout)


OBJECTIVES: Choices[Callable[[Parts], losses.LossFunction]] = {
    "flow_matching": _flow_matching,
    "segments": _segments,
    "flow_guided": _flow_guided,
    "diffusion": _diffusion,
    "phased": _phased,
    "flow_map": _flow_map,
    "features": _features,
}


def _there(noise: Tensor | None) -> Tensor:
    assert noise is not None
    return noise
