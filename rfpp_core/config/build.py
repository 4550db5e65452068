"""Builds objects from params: networks, fields, flows, and the trainer's config.

Alternatives are in tables keyed by the value of their param and annotated ``Choices``: an
identity covers the entries that it uses, and no others (``pipeline.work.identity``).  The parts
of a training are in ``objective``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import nn

from rfpp_core.choices import Choices
from rfpp_core.config.network import WITH_END_TIME, Architecture, Network
from rfpp_core.config.params import Params, explained
from rfpp_core.config.recipe import NOT_IN_WEIGHTS, Recipe
from rfpp_core.config.section import described
from rfpp_core.errors import UserError, quoted
from rfpp_core.model import prediction
from rfpp_core.model.flow_map import EDMFlowMap, PlainFlowMap
from rfpp_core.model.nets.dhariwal_unet import DhariwalUNet
from rfpp_core.model.nets.edm_unet import UNetShape
from rfpp_core.model.nets.small_unet import SmallUNet
from rfpp_core.model.nets.song_unet import SongUNet
from rfpp_core.model.precond import Conditioned, EDMVelocity, PlainVelocity
from rfpp_core.rng import subkey
from rfpp_core.sampling.flow import Flow
from rfpp_core.sampling.flow_map import as_map
from rfpp_core.sampling.transfer import as_transfer
from rfpp_core.storage import checkpoint, files
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
    return as_transfer(as_map(flow_of(checkpoint.load(Path(path)), Path(path), device)))


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


def provenance_params(params: Params, recipe: Recipe) -> dict[str, Any]:
    """The params in a model file: without paths and options that change no weight."""
    return {
        "dataset": params.dataset.model_dump(mode="json", exclude={"path", "labels"}),
        "training": recipe.model_dump(mode="json", exclude=NOT_IN_WEIGHTS),
    }
