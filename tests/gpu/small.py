"""Small networks, sets and trainings that the tests here share."""

from __future__ import annotations

import torch

from rfpp_core.config import build, objective
from rfpp_core.config.network import Network
from rfpp_core.config.recipe import Recipe
from rfpp_core.images import loader
from rfpp_core.training.couplings.independent import independent
from rfpp_core.training.trainer import TrainState, train

SHAPE = (3, 16, 16)
NETS = {
    "small_unet": Network(channels=16, attention=1),
    "ncsnpp": Network(arch="ncsnpp", channels=16, attention_resolutions=(8,)),
    "ddpmpp": Network(arch="ddpmpp", channels=16, attention_resolutions=(8,)),
    "adm": Network(arch="adm", channels=64, multipliers=(1, 1), attention_resolutions=(8,),
                   augment=0),
}  # fmt: skip
RECIPE = Recipe(steps=12, batch=8, lr=4e-3, warmup=0, decay="constant", log_every=3, threads=1)


def images(n=16):
    """Blobs of colour, uint8 (n, 3, 16, 16)."""
    coarse = torch.rand(n, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    return (255 * torch.nn.functional.interpolate(coarse, SHAPE[1])).to(torch.uint8)


def architecture(arch):
    return build.architecture(NETS[arch], SHAPE, 0)


def start(arch, recipe, device, seed=0):
    """A training at its start: a network of a seed, not trained yet."""
    field = build.field(architecture(arch), recipe.dropout, seed)
    return TrainState(field, build.train_config(recipe, 5), device)


def reports_of(state, recipe, coupling=independent, data=None):
    """Trains a state to the end of its recipe; yields its reports."""
    data = images() if data is None else data
    source = loader.batches(
        loader.place(data, state.device), None, recipe.batch, 1, state.device, state.step
    )
    yield from train(
        state, source, objective.loss(recipe, coupling), build.train_config(recipe, 5)
    )


def go(state, recipe, until=None, **kwargs):
    """Trains a state to a step; its reports."""
    reports = []
    for report in reports_of(state, recipe, **kwargs):
        reports.append(report)
        if report.step == until:
            break
    return reports


def with_(**changes):
    return RECIPE.model_copy(update=changes)
