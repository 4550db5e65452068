"""Params ``networks``: architectures, their preconditioning, and where initial weights are from."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from rfpp_core.config.section import PathText, Positive, PositiveFloat, Section, Sha256, Side


class Network(Section):
    """Architecture and preconditioning.

    ``ncsnpp``, ``ddpmpp`` and ``adm`` are EDM's networks; they attend at the sides in
    ``attention_resolutions`` and, as published, reserve weights for ``augment`` labels.
    """

    arch: Literal["small_unet", "ncsnpp", "ddpmpp", "adm"] = Field(
        default="small_unet", description="a small U-Net, or one of EDM's: NCSN++, DDPM++, ADM"
    )
    channels: Annotated[int, Field(ge=4, le=4096, multiple_of=4)] = Field(
        default=32, description="unit of the widths"
    )
    multipliers: Annotated[
        tuple[Annotated[int, Field(gt=0, le=64)], ...], Field(min_length=1, max_length=6)
    ] = Field(default=(1, 2), description="width of each level in `channels`; a halving between levels")
    blocks: Annotated[int, Field(gt=0, le=64)] = Field(default=1, description="residual blocks a level")
    attention: Annotated[int, Field(ge=0)] = Field(
        default=0, description="coarsest levels of a small_unet with attention"
    )
    attention_resolutions: tuple[Positive, ...] = Field(
        default=(16,), description="sides with attention, of EDM's networks"
    )
    augment: Annotated[int, Field(ge=0, le=1000)] = Field(
        default=9, description="augmentation labels of EDM's networks, which are taken as zero"
    )
    conditional: bool = Field(default=False, description="whether the network sees the labels")
    precond: Literal["velocity", "edm"] = Field(
        default="edm", description="network output: the velocity itself, or EDM's preconditioning"
    )
    sigma_data: PositiveFloat = Field(
        default=0.5, description="standard deviation of the data, of EDM's preconditioning"
    )


class Architecture(Network):
    """The document of a network in a model file: what :class:`Network` says, and for what data."""

    conditional: bool = False  # told by ``classes``
    shape: tuple[Side, Side, Side]
    classes: Annotated[int, Field(ge=0, le=1_000_000)]


class NetworkRow(Network):
    """A row of ``networks``: initial weights drawn by ``seed``, or those of a checkpoint."""

    checkpoint: PathText | None = Field(
        default=None, description="EDM checkpoint whose weights it takes (NVlabs pickle, state dict)"
    )
    sha256: Sha256 | None = Field(default=None, description="digest that the checkpoint must have")

    @model_validator(mode="after")
    def a_checkpoint_is_vouched_for(self) -> Self:
        if self.checkpoint and not self.sha256:
            raise ValueError("checkpoint needs sha256, its digest (`sha256sum` prints it)")
        if self.checkpoint and (self.precond, self.sigma_data) != ("edm", 0.5):
            raise ValueError("checkpoint needs precond: edm and sigma_data: 0.5")
        return self
