"""Params ``recipes.RECIPE.flow_map``: which flow map is trained, and from what."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from rfpp_core.config.section import Fraction, PositiveFloat, Section


class FlowMap(Section):
    """A flow map, of ``objective: flow_map``: the average velocity u between t and an end time r.

    The distance is the mean square, weighted by 1 / (e + c)^p, where e is that of a sample;
    ``loss`` is not used.
    """

    end: Literal["drawn", "zero"] = Field(
        default="drawn",
        description="the end time: drawn from `times` like t, the earlier of the two; or 0, which "
        "makes a consistency model",
    )
    same: Fraction = Field(
        default=0.75, description="share of the samples with r = t, which learn the velocity"
    )
    velocity: Literal["data", "teacher"] = Field(
        default="data",
        description="what u averages: z - x of the data, images with fresh noise or pairs; or the "
        "velocity of the flow that the training starts from",
    )
    derivative: Literal["jvp", "difference"] = Field(
        default="jvp", description="of u along the path: forward-mode, or a difference"
    )
    step: Annotated[float, Field(ge=1e-4, le=0.5)] = Field(
        default=0.002, description="of the difference, in time to either side"
    )
    p: Annotated[float, Field(ge=0, le=1)] = Field(
        default=1.0, description="power of the adaptive weight; 0: all samples weigh the same"
    )
    c: PositiveFloat = Field(default=1e-3, description="of the adaptive weight")
