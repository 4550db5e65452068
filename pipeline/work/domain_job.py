"""The evaluation of a flow between two sets of images: held-out images of its source are
translated, and compared with real images of its target.

A sample set holds each of them at most once: copies would be each other's neighbours, and would
spoil precision, recall and KID.  So it is as large as ``evaluate.n`` says, or as there are
held-out images of the source, and then every sample set is the same.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline import artifacts
from pipeline.work.feature_nets import Reference
from rfpp_core.config.flow import IMAGES, Domains
from rfpp_core.config.params import Params
from rfpp_core.errors import UserError
from rfpp_core.images import pixels
from rfpp_core.images import store as image_store
from rfpp_core.images.store import Images
from rfpp_core.sampling.flow import Flow
from rfpp_core.sampling.transfer import Transfer, with_source


class Evaluated(NamedTuple):
    """What an evaluation compares, and its params."""

    flow: Flow
    real: Reference
    held_out: Images  # images at t = 0
    config: Params


def evaluated(name: str, flow: Flow, real: Reference, config: Params) -> Evaluated:
    """A flow with what it is compared with: the images of its domains, if it has them, else all.

    Raises:
        UserError: if there are too few held-out images of a domain, or the params say otherwise
            than the model file.
    """
    held_out = image_store.read(artifacts.IMAGES, "held_out")
    domains = config.domains_of(name)
    said = None if domains is None else domains.model_dump(mode="json")
    have = flow.domains if isinstance(flow, Transfer) else None
    if said != have:
        raise UserError(f"{artifacts.model(name)} is of domains {have}, and flows.{name} of "
                        f"{said}; run `dvc repro train@{name}`")  # fmt: skip
    if domains is None or not isinstance(flow, Transfer):
        return Evaluated(flow, real, held_out, config)
    source, target = (np.isin(held_out.labels, side) for side in (domains.source, domains.target))
    train = np.isin(image_store.labels(artifacts.IMAGES, "train"), domains.target)
    for wrong in _too_few(name, config, int(source.sum()), int(target.sum()), int(train.sum())):
        raise UserError(wrong)
    config = _at_most(name, config, int(source.sum()))
    given = pixels.to_float(torch.from_numpy(held_out.images[source]))
    real = real.restricted(train, target, config.evaluate, config.dataset.seed)
    shown = Images(held_out.images[target], held_out.labels[target])
    return Evaluated(with_source(flow, given), real, shown, config)


def _at_most(name: str, config: Params, n: int) -> Params:
    """Params whose sample sets hold each of n images at most once."""
    section, row = config.evaluate, config.flows[name]
    if n <= section.n:
        row = row.model_copy(update={"seeds": 1, "many_seeds": 1})
    fewer = {"n": min(n, section.n), "straightness_n": min(n, section.straightness_n)}
    return config.model_copy(update={
        "evaluate": section.model_copy(update=fewer), "flows": {**config.flows, name: row},
    })  # fmt: skip


def problems(
    config: Params, classes: int, train: NDArray[np.integer], held_out: NDArray[np.integer]
) -> Iterator[str]:
    """A line for each thing that the flows between domains lack, before any compute.

    Args:
        config: params.
        classes: of the images.
        train, held_out: labels of the splits.
    """
    for name, row in config.flows.items():
        domains = config.domains_of(name)
        if domains is None:
            continue
        yield from _small_batches(config, name, domains, train)
        if not row.domains.source:  # those of its start or its pairs, which are checked there
            continue
        if unknown := [y for y in (*domains.source, *domains.target) if y >= classes]:
            yield (f"flows.{name} is of class {unknown[0]} (domains), and the images have "
                   f"{classes or 'no'} classes{f', 0 to {classes - 1}' if classes else ''}; name "
                   f"classes that they have")  # fmt: skip
            continue
        yield from _too_few(name, config, *(
            int(np.isin(part, side).sum()) for part, side in
            ((held_out, domains.source), (held_out, domains.target), (train, domains.target))
        ))  # fmt: skip


def _small_batches(
    config: Params, name: str, domains: Domains, train: NDArray[np.integer]
) -> Iterator[str]:
    recipe, data = config.recipe_of(name), config.flows[name].data
    side = "target" if data == IMAGES else "source"  # whose images the epochs go through
    n = int(np.isin(train, getattr(domains, side)).sum())
    if n and recipe.steps and recipe.batch > n:
        yield (f"recipes.{config.flows[name].recipe}.batch is {recipe.batch} but there are only "
               f"{n} training images of the {side} domain of flows.{name}; lower it or give "
               f"more")  # fmt: skip


def _too_few(name: str, config: Params, source: int, target: int, train: int) -> Iterator[str]:
    """``source`` and ``target``: held-out images; ``train``: training images of the target."""
    least = config.evaluate.neighbours + 1
    counts = {"held-out images of the source": source, "held-out images of the target": target,
              "training images of the target": train}  # fmt: skip
    for what, n in counts.items():
        if n < least:
            yield (f"there are {n} {what} domain of flows.{name}; evaluate.neighbours "
                   f"({config.evaluate.neighbours}) needs at least {least}: give more images, or "
                   f"raise dataset.held_out")  # fmt: skip
