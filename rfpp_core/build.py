"""The composition root: params -> network, field, loss, sampler.  It alone knows both sides."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor, nn

from rfpp_core import checkpoint, losses, timesteps
from rfpp_core.couplings import Coupling
from rfpp_core.errors import UserError
from rfpp_core.nets.dhariwal_unet import DhariwalUNet
from rfpp_core.nets.small_unet import SmallUNet
from rfpp_core.nets.song_unet import Embedding, Encoder, SongUNet
from rfpp_core.noise import subkey
from rfpp_core.params import Architecture, Loss, Network, Params, Times, Training, explained
from rfpp_core.precond import Conditioned, EDMVelocity, PlainVelocity
from rfpp_core.sampling import Flow
from rfpp_core.trainer import LossFunction, TrainConfig


def architecture(params: Network, shape: tuple[int, ...], classes: int) -> dict[str, Any]:
    """The JSON document that :func:`field` builds from; it travels in every model file.

    Raises:
        UserError: if it is to be conditional and there are no labels.
    """
    document = params.model_dump(mode="json")
    conditional = document.pop("conditional")
    if conditional and not classes:
        raise UserError("network.conditional needs labels: put the images in a folder per class, "
                        "or name a CSV of name,label rows in dataset.labels")  # fmt: skip
    return {**document, "shape": list(shape), "classes": classes if conditional else 0}


def field(arch: Mapping[str, Any], dropout: float = 0.0, seed: int = 0) -> Conditioned:
    """The preconditioned network of an architecture document, its weights drawn from ``seed``.

    Raises:
        UserError: if the document is not one, the image does not halve often enough, or a width
            does not split into the groups of its normalisation or the heads of its attention.
    """
    try:
        network = Architecture.model_validate(arch)
    except ValidationError as error:
        raise UserError(f"not an architecture of this version: {explained(error)}") from None
    c, h, w = network.shape
    halvings = 2 ** (len(network.multipliers) - 1)
    if h != w or h % halvings:
        raise UserError(
            f"network.multipliers has {len(network.multipliers)} levels, so images must be square "
            f"with sides a multiple of {halvings}; they are {h}x{w}"
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(subkey(seed, "weights"))
        try:
            model = _model(network, c, h, network.classes, dropout)
        except ValueError as error:  # of torch's GroupNorm, or of attention
            raise UserError(
                f"network.channels {network.channels} with multipliers {[*network.multipliers]} "
                f"makes no {network.arch}: {error}; take a multiple of 32"
            ) from None
    edm = network.precond == "edm"
    return EDMVelocity(model, network.sigma_data) if edm else PlainVelocity(model)


def _model(network: Network, c: int, side: int, classes: int, dropout: float) -> nn.Module:
    width, multipliers, blocks = network.channels, network.multipliers, network.blocks
    if network.arch == "small_unet":
        return SmallUNet(c, width, multipliers, blocks, network.attention, classes, dropout)
    sides, augment = network.attention_resolutions, network.augment
    if network.arch == "adm":
        return DhariwalUNet(side, c, width, multipliers, blocks, sides, classes, augment, dropout)
    plus: dict[str, tuple[Embedding, Encoder]] = {
        "ncsnpp": ("fourier", "residual"),
        "ddpmpp": ("positional", "standard"),
    }
    return SongUNet(
        side, c, width, multipliers, blocks, sides, classes, augment, dropout, *plus[network.arch]
    )


def load_flow(path: str | Path, device: str | torch.device = "cpu") -> Flow:
    """Loads a flow from one model file.

    Raises:
        UserError: if the file is missing, damaged, or its weights do not fit its architecture.
    """
    return flow_of(checkpoint.load(Path(path)), Path(path), device)


def flow_of(loaded: checkpoint.Loaded, path: Path, device: str | torch.device) -> Flow:
    """The flow of weights and a document that were read from ``path``, as :func:`load_flow`."""
    about = loaded.about
    arch = about.get("architecture")
    if not isinstance(arch, dict):
        raise UserError(f"{path} is not a model file (no architecture in its metadata)")
    start = about.get("start", 1.0)
    if not isinstance(start, float | int) or not 0 < start <= 1:
        raise UserError(f"{path} starts at {start!r}; a flow starts at a time in (0, 1]")
    with torch.device("meta"):  # nothing is allocated for what the file does not hold
        net = field(arch)
    checkpoint.load_into(net, loaded.tensors, str(path), assign=True)
    net.requires_grad_(False).eval()
    net = net.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    return Flow(net, tuple(arch["shape"]), arch["classes"], loaded.flow, about)


def train_config(params: Training, seed: int) -> TrainConfig:
    """The trainer's config of a training section; ``seed`` is the stage's own."""
    shared = TrainConfig.__dataclass_fields__.keys() & type(params).model_fields.keys()
    return TrainConfig(seed=seed, **{name: getattr(params, name) for name in shared})


def time_law(params: Times) -> Callable[[Tensor], Tensor]:
    """Maps uniform draws (B,) in (0, 1) to training times; random ones keep off 0 and 1."""
    laws: dict[str, Callable[[Tensor], Tensor]] = {
        "u_shape": partial(timesteps.u_shape, a=params.a),
        "uniform": timesteps.uniform,
        "logit_normal": partial(timesteps.logit_normal, mean=params.mean, std=params.std),
        "fixed": partial(timesteps.fixed, t=params.t),
    }
    law = laws[params.law]
    return law if params.law == "fixed" else lambda u: timesteps.inside(law(u))


def distance(params: Loss) -> Callable[[Tensor, Tensor], Tensor]:
    """Per-sample distance (B,) of a velocity to its target."""
    if params.name == "l2":
        return losses.l2
    return partial(losses.pseudo_huber, c=params.c)


def loss(
    params: Training, coupling: Coupling, perceptual: losses.Distance | None = None
) -> LossFunction:
    """Flow matching on a coupling, with the params' times, distances and label dropout.

    Args:
        params: the training section.
        coupling: gives (x, z, y).
        perceptual: the distance of images that the params name, if they name one.
    """
    section = params.loss
    term = "huber" if section.is_perceptual else section.name
    seen = None
    if section.is_perceptual:
        assert perceptual is not None
        over_t = section.name == "lpips_huber_over_t"
        seen = losses.Perceptual(section.perceptual, perceptual, over_t)
    return losses.flow_matching(
        coupling, time_law(params.times), distance(section), term, params.label_dropout, seen
    )


def provenance_params(params: Params, section: Training) -> dict[str, Any]:
    """What of the params goes into a model file: no paths, nothing that moves no bit."""
    return {
        "dataset": params.dataset.model_dump(mode="json", exclude={"path", "labels"}),
        "training": training_params(section),
    }


def training_params(section: Training) -> dict[str, Any]:
    """What of a training section determines weights: no path, nothing that moves no bit."""
    apart = {"log_every", "source", "checkpoint", "checkpoint_sha256"}
    document = section.model_dump(mode="json", exclude=apart)
    del document["loss"]["vgg_path"]
    return document
