"""Params of single methods in ``recipes``: the options of an objective, or of annealed noise."""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from rfpp_core.config.section import Fraction, Positive, PositiveFloat, Section


class Segments(Section):
    """The grid of few Euler steps that objective `segments` straightens a flow on."""

    times: tuple[float, ...] = Field(
        default=(), description="falling from 1, such as a searched grid's; 0 ends them unwritten"
    )
    fine: Annotated[int, Field(ge=1, le=10_000)] = Field(
        default=100, description="Euler steps of the frozen flow's paths from t = 1 to 0"
    )

    @property
    def whole(self) -> tuple[float, ...]:
        """The grid, with the 0 that ends it."""
        return self.times if self.times[-1:] == (0.0,) else (*self.times, 0.0)

    @property
    def parts(self) -> tuple[int, ...]:
        """Fine steps of each segment."""
        return tuple(max(1, round(self.fine * (t - s))) for t, s in pairwise(self.whole))


class Anneal(Section):
    """Annealed noise: a share beta of fresh noise in that of pairs, which falls during training.

    SlimFlow's annealing reflow, for a flow that cannot start from the weights of its teacher.
    """

    schedule: Literal["none", "linear", "cos", "exp", "fixed"] = Field(
        default="none",
        description="of the share: linear and cos fall from 1 to 0 in `steps` updates, exp is "
        "exp(-update / steps), fixed is `beta`",
    )
    steps: Positive = Field(default=1000, description="of linear, cos and exp, in updates")
    beta: Annotated[float, Field(ge=0, le=1)] = Field(default=0.0, description="of fixed")


class TwoStep(Section):
    """The second term of ``objective: flow_guided``: two Euler steps on fresh noise."""

    low: Annotated[float, Field(ge=0, le=1)] = Field(
        default=0.2, description="least time t between the two steps"
    )
    high: Annotated[float, Field(ge=0, le=1)] = Field(
        default=0.8, description="greatest time t between the two steps"
    )
    own: bool = Field(
        default=True,
        description="whether the first of the two steps is the student's own; otherwise both are "
        "the teacher's, for one evaluation more",
    )

    @model_validator(mode="after")
    def they_are_in_order(self) -> Self:
        if self.low > self.high:
            raise ValueError(f"low ({self.low}) must not exceed high ({self.high})")
        return self


class Phased(Section):
    """The phases of ``objective: phased``; its times must be uniform, or those of a VP path."""

    phases: Annotated[int, Field(gt=0, le=1000)] = Field(
        default=4, description="phases, each straight; as many Euler steps sample the flow"
    )
    substeps: Annotated[int, Field(gt=0, le=1000)] = Field(
        default=10, description="Euler steps of the frozen teacher in a phase"
    )


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
