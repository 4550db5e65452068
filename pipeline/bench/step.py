"""A training step: images a second, and what of its time is the network, forward and backward."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import replace
from itertools import count
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from pipeline.bench.measure import Action, Figure, in_turns, waiting
from rfpp_core import runtime
from rfpp_core.config import build, objective
from rfpp_core.config.flow import IMAGES
from rfpp_core.config.params import Params
from rfpp_core.config.recipe import Recipe
from rfpp_core.errors import UserError
from rfpp_core.images import loader
from rfpp_core.model.path import interpolate
from rfpp_core.rng import StepRNG
from rfpp_core.training import perceptual, trainer
from rfpp_core.training.couplings import Coupling
from rfpp_core.training.train_config import TrainConfig
from rfpp_core.training.trainer import StepReport, TrainState

N = 2048  # images of the set
STEPS = 10  # of the whole step's turn
ON_CUDA = (("fp32", False), ("tf32", False), ("bf16", False), ("bf16", True))  # and compiled


class Setup(NamedTuple):
    """A flow's training on synthetic images, as its recipe says."""

    state: TrainState
    net: torch.nn.Module  # what is called: compiled, if so
    coupling: Coupling
    loss: Any
    recipe: Recipe
    config: TrainConfig
    images: Tensor


def run(params: Params, shape: tuple[int, int, int]) -> list[Figure]:
    """The first flow that is trained on images, and the first on pairs.

    Args:
        params: of the run.
        shape: of an image, (C, H, W).
    """
    device, found = runtime.device(), []
    trained = [name for name in params.flows if params.recipe_of(name).steps]
    for on_images in (True, False):
        rows = [name for name in trained if (params.flows[name].data == IMAGES) is on_images]
        for name in rows[:1]:
            for recipe in _variants(params.recipe_of(name), device):
                found += _of_flow(params, name, recipe, shape, device)
    if not found:
        raise UserError("no flow of params.yaml is trained")
    return found


def _variants(recipe: Recipe, device: torch.device) -> list[Recipe]:
    """On CUDA a recipe in every precision."""
    if device.type == "cpu":
        return [recipe]
    return [recipe.model_copy(update={"precision": precision, "compile": compiled})
            for precision, compiled in ON_CUDA]  # fmt: skip


def _of_flow(
    params: Params, name: str, recipe: Recipe, shape: tuple[int, int, int], device: torch.device
) -> list[Figure]:
    setup = _setup(params, name, recipe, shape, device)
    parts = _parts(setup, device)
    seconds = in_turns({part: waiting(act, device) for part, act in parts.items()})
    seconds["the whole step"] /= STEPS
    whole = seconds.pop("the whole step")
    how = f"{recipe.precision}{', compiled' * recipe.compile}"
    group = f"a step of {name} on {device}, batch {recipe.batch}, {how}"
    found = [Figure(group, "the whole step", recipe.batch / whole, "images/s", 1.0)]
    found += [Figure(group, part, 1e3 * value, "ms", value / whole)
              for part, value in seconds.items()]  # fmt: skip
    rest = whole - sum(seconds.values())
    found.append(Figure(group, "all else", 1e3 * rest, "ms", rest / whole))
    if device.type == "cuda":
        found += _of_peak(group, setup, seconds["the network, forward and backward"], device)
    return found


def seconds(
    params: Params, name: str, recipe: Recipe, shape: tuple[int, int, int], device: torch.device
) -> float:
    """Seconds of an update of a flow's training."""
    setup = _setup(params, name, recipe, shape, device)
    steps = _whole(setup, device)
    return in_turns({"": waiting(lambda: next(steps), device)}, 3)[""] / STEPS


def _setup(
    params: Params, name: str, recipe: Recipe, shape: tuple[int, int, int], device: torch.device
) -> Setup:
    runtime.exact_training(device, tf32=recipe.precision == "tf32")
    network = params.network_of(name)
    arch = build.architecture(network, shape, 10 * network.conditional)
    field = build.field(build.trained_architecture(recipe, arch), recipe.dropout)
    frozen = None
    if recipe.frozen_start:
        frozen = copy.deepcopy(field).requires_grad_(False).eval().to(device)
    config = replace(build.train_config(recipe, 0), steps=1 << 40, log_every=STEPS)
    on_images = params.flows[name].data == IMAGES
    coupling = (objective.COUPLINGS["independent"](recipe) if on_images
                else objective.PAIRED["seeded"](0, None))  # fmt: skip
    draws = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (max(N, 2 * recipe.batch), *shape), dtype=torch.uint8,
                           generator=draws)  # fmt: skip
    state = TrainState(field, config, device)
    net: torch.nn.Module = torch.compile(state.net) if recipe.compile else state.net  # type: ignore[assignment]
    loss = objective.loss(recipe, coupling, _perceptual(recipe, shape, device), frozen)
    return Setup(state, net, coupling, loss, recipe, config, images)


def _perceptual(
    recipe: Recipe, shape: tuple[int, int, int], device: torch.device
) -> perceptual.Perceptual | None:
    """The recipe's perceptual net with random weights, which are as fast."""
    params = recipe.loss
    if params.perceptual == "none":
        return None
    net: perceptual.Perceptual = perceptual.label_net(shape[0], 10, 0)
    if params.perceptual == "lpips":
        net = perceptual.LPIPS(None, params.pooling, params.resize)
    net.chunk = params.chunk
    return net.requires_grad_(False).eval().to(device)


def _whole(setup: Setup, device: torch.device) -> Iterator[StepReport]:
    """The trainer's own loop, ``STEPS`` updates at a time; what is compiled is so already."""
    batches = loader.batches(
        loader.place(setup.images, device), None, setup.recipe.batch, 0, device
    )
    setup.state.net.train()
    steps = trainer.train(setup.state, batches, setup.loss, setup.config)
    next(steps)
    return steps


def _parts(setup: Setup, device: torch.device) -> dict[str, Action]:
    """The whole step, and its parts by themselves, on the same batch."""
    state, recipe, config = setup.state, setup.recipe, setup.config
    whole, steps = _whole(setup, device), count()
    batches = loader.batches(loader.place(setup.images, device), None, recipe.batch, 0, device)
    batch = next(batches)
    times = objective.training_times(recipe.times)
    x, z, _ = setup.coupling(batch, _draws(config, 0, device))
    t = times(_draws(config, 0, device)).to(x.dtype)
    parts = list(zip(interpolate(x, z, t).chunk(recipe.accumulate), t.chunk(recipe.accumulate),
                     strict=True))  # fmt: skip

    def network() -> None:
        state.optimizer.zero_grad(set_to_none=True)
        for x_t, at in parts:
            with runtime.autocast(device, config.precision):
                v = setup.net(x_t, at, None)
            v.float().backward(torch.ones_like(v, dtype=torch.float32))

    def couple() -> None:
        draws = _draws(config, next(steps), device)
        x, z, _ = setup.coupling(batch, draws)
        interpolate(x, z, times(draws).to(x.dtype))

    network()
    return {
        "the whole step": lambda: next(whole),
        "the network, forward and backward": network,
        "the loader": lambda: next(batches),
        "noise, times and x_t": couple,
        "gradient norm, Adam and average": lambda: trainer.update(state, config, 1e-6),
    }


def _draws(config: TrainConfig, step: int, device: torch.device) -> StepRNG:
    return StepRNG(config.seed, step, config.batch, 0, config.batch, device)


def _of_peak(group: str, setup: Setup, seconds: float, device: torch.device) -> list[Figure]:
    """TFLOP/s of the network, and of a large matrix product, which is the peak here."""
    shape = setup.images.shape[1:]
    size = setup.recipe.batch // setup.recipe.accumulate
    x = torch.zeros(size, *shape, device=device)
    with FlopCounterMode(display=False) as counter:
        setup.state.net(x, x.new_full((size,), 0.5), None).sum().backward()
    operations = counter.get_total_flops() * setup.recipe.accumulate
    a = torch.randn(8192, 8192, device=device, dtype=runtime.dtype_of(setup.config.precision))
    product = in_turns({"": waiting(lambda: a @ a, device)})[""]
    reached, peak = operations / seconds / 1e12, 2 * 8192**3 / product / 1e12
    return [Figure(group, "the network's operations", reached, "TFLOP/s", reached / peak),
            Figure(group, "a large matrix product", peak, "TFLOP/s", 1.0)]  # fmt: skip
