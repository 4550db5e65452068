"""Params ``networks``: architecture, preconditioning and initial weights."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from rfpp_core.config.section import PathText, Positive, PositiveFloat, Section, Sha256, Side
from rfpp_core.model.vp import SCHEDULES


class Network(Section):
    """Architecture and preconditioning.

    ``ncsnpp``, ``ddpmpp`` and ``adm`` are EDM's networks; they have attention at
    ``attention_resolutions`` and, as published, weights for ``augment`` augmentation labels.
    """

    arch: Literal["small_unet", "ncsnpp", "ddpmpp", "adm"] = Field(
        default="small_unet", description="a small U-Net, or EDM's NCSN++, DDPM++ or ADM"
    )
    channels: Annotated[int, Field(ge=4, le=4096, multiple_of=4)] = Field(
        default=32, description="base width"
    )
    multipliers: Annotated[
        tuple[Annotated[int, Field(gt=0, le=64)], ...], Field(min_length=1, max_length=6)
    ] = Field(
        default=(1, 2),
        description="width of each level, in `channels`; each level halves the resolution",
    )
    blocks: Annotated[int, Field(gt=0, le=64)] = Field(
        default=1, description="residual blocks per level"
    )
    attention: Annotated[int, Field(ge=0)] = Field(
        default=0, description="how many of the coarsest levels have attention, of small_unet"
    )
    attention_resolutions: tuple[Positive, ...] = Field(
        default=(16,), description="resolutions with attention, of EDM's networks"
    )
    augment: Annotated[int, Field(ge=0, le=1000)] = Field(
        default=9, description="augmentation labels of EDM's networks; zeros are given"
    )
    conditional: bool = Field(default=False, description="whether the network is given the labels")
    precond: Literal["velocity", "edm", "plain", "velocity_map", "edm_map"] = Field(
        default="edm",
        description="network output: the velocity itself, EDM's preconditioning, or plain: what "
        "`prediction` says, on `path`; the two with _map, which take an end time, are in model "
        "files of flow maps alone",
    )
    path: Literal["rf", "vp", "vp_sd"] = Field(
        default="rf",
        description="of precond: plain; the straight path of rectified flow, or a "
        "variance-preserving diffusion: vp is DDPM's, vp_sd has the betas of Stable Diffusion, "
        "linear",
    )
    prediction: Literal["v", "eps", "x"] = Field(
        default="v",
        description="of precond: plain; the velocity of the path, the noise, or the image",
    )
    sigma_data: PositiveFloat = Field(
        default=0.5, description="standard deviation of the data, of precond: edm"
    )

    @model_validator(mode="after")
    def the_prediction_gives_a_velocity(self) -> Self:
        if self.precond != "plain" and (self.path, self.prediction) != ("rf", "v"):
            raise ValueError(f"path: {self.path} and prediction: {self.prediction} need precond: "
                             f"plain; precond: {self.precond} has its own")  # fmt: skip
        if (self.path, self.prediction) == ("rf", "eps"):
            raise ValueError("prediction: eps divides by alpha = 1 - t, which is 0 at t = 1, "
                             "where path: rf starts; take prediction v or x, or path vp or "
                             "vp_sd")  # fmt: skip
        return self

    @property
    def start(self) -> float:
        """The first time of the path: 1, or less for one that ends with alpha > 0."""
        return SCHEDULES[self.path].start if self.path in SCHEDULES else 1.0

    @property
    def names(self) -> tuple[str, ...]:
        """The rows of tables that the network uses."""
        plain = (self.path, self.prediction) if self.precond == "plain" else ()
        return (self.arch, self.precond, *plain)


WITH_END_TIME = {"velocity": "velocity_map", "edm": "edm_map"}  # of a flow, of a flow map


class Architecture(Network):
    """The architecture in a model file: a :class:`Network`, and the data that it is for."""

    conditional: bool = False  # ``classes`` says it
    shape: tuple[Side, Side, Side]
    classes: Annotated[int, Field(ge=0, le=1_000_000)]


class NetworkRow(Network):
    """A row of ``networks``: initial weights drawn by ``seed``, or those of a checkpoint."""

    checkpoint: PathText | None = Field(
        default=None,
        description="EDM checkpoint of the initial weights (NVlabs pickle, state dict)",
    )
    sha256: Sha256 | None = Field(default=None, description="digest that `checkpoint` must have")

    @model_validator(mode="after")
    def it_is_no_flow_map(self) -> Self:
        if self.precond in WITH_END_TIME.values():
            raise ValueError(f"precond: {self.precond} is of flow maps; write "
                             f"{self.precond.removesuffix('_map')}: a recipe with objective: "
                             f"flow_map adds the end time to any network")  # fmt: skip
        return self

    @model_validator(mode="after")
    def a_checkpoint_is_vouched_for(self) -> Self:
        if self.checkpoint and not self.sha256:
            raise ValueError("checkpoint needs sha256, its digest (`sha256sum` prints it)")
        if self.checkpoint and (self.precond, self.sigma_data) != ("edm", 0.5):
            raise ValueError("checkpoint needs precond: edm and sigma_data: 0.5")
        return self
