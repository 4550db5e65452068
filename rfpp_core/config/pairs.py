"""Params ``pairs``: sets of noise/image pairs."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from rfpp_core.config.section import (
    Name,
    PathText,
    Positive,
    Section,
    Sha256,
    SolverName,
)
from rfpp_core.runtime import Precision
from rfpp_core.sampling.solver_table import properties_of


class PairSet(Section):
    """A row of ``pairs``: made by a teacher of drawn noise or of real images, or imported."""

    teacher: Name = Field(description="the flow that makes them")
    source: Literal["noise", "images", "domain", "import"] = Field(
        default="noise",
        description="noise: images are made of drawn noise; images: noise is made of real images "
        "(inversion); domain: images of the teacher's source domain, all for training, in the "
        "place of noise, and their translations; import: a store made by `rfpp pairs import`",
    )
    n: Positive | None = Field(default=None, description="number of pairs, of source: noise")
    shard: Positive = Field(
        default=2000, description="pairs per shard, the unit of work and of resuming"
    )
    micro_batch: Positive = Field(default=250, description="pairs per network call")
    solver: SolverName = Field(default="heun", description="of the teacher's ODE")
    nfe: Positive = Field(default=35, description="network evaluations per pair")
    grid: Literal["uniform", "karras", "vp", "vp_sd"] = Field(
        default="uniform",
        description="times of the solver; vp and vp_sd are for teachers on those paths",
    )
    guidance: Annotated[float, Field(ge=0)] = Field(
        default=1.0, description="guidance scale of a conditional teacher; 1: no guidance"
    )
    precision: Precision = Field(
        default="fp32",
        description="of the teacher's network; bf16 is several times faster on recent GPUs, and "
        "makes slightly other images",
    )
    compile: bool = Field(
        default=False, description="compile the teacher's network, by torch.compile"
    )
    codec: Literal["blosc", "delta-zstd"] = Field(
        default="blosc",
        description="of the stored images; delta-zstd is an eighth smaller, half as fast to "
        "read, and for zarr-python alone",
    )
    path: PathText | None = Field(default=None, description="the store, of source: import")
    digest: Sha256 | None = Field(default=None, description="digest that `path` must have")

    @model_validator(mode="after")
    def options_agree(self) -> Self:
        if self.shard % self.micro_batch:
            raise ValueError(f"shard ({self.shard}) must be a multiple of micro_batch "
                             f"({self.micro_batch})")  # fmt: skip
        if self.source == "noise" and self.n is None:
            raise ValueError("source: noise needs n, the number of pairs")
        if self.source != "noise" and self.n is not None:
            raise ValueError(f"n is for source: noise alone; source: {self.source} takes all "
                             f"there are")  # fmt: skip
        if self.n is not None and self.n % self.shard:
            raise ValueError(f"n ({self.n}) must be a multiple of shard ({self.shard})")
        drops_last = self.source in ("noise", "domain") and properties_of(self.solver).drops_last
        if drops_last and self.nfe % 2 == 0:
            raise ValueError(f"nfe is {self.nfe}; {self.solver} drops the last correction, so N "
                             f"steps take 2N - 1 evaluations: an odd number")  # fmt: skip
        if self.source == "import" and not (self.path and self.digest):
            raise ValueError("source: import needs path, a store made by `rfpp pairs import`, and "
                             "digest, which that printed")  # fmt: skip
        return self

    @model_validator(mode="after")
    def images_can_be_inverted(self) -> Self:
        if self.source == "domain" and self.guidance != 1:
            raise ValueError("guidance is not for source: domain")
        if self.source != "images":
            return self
        if not properties_of(self.solver).invertible:
            raise ValueError(f"{self.solver} has no inverse; take heun or midpoint")
        if self.guidance != 1:
            raise ValueError("guidance is not for source: images")
        return self
