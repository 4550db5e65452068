"""Params ``features`` and ``evaluate``: what is measured, and with which feature nets."""

from __future__ import annotations

import re
from itertools import pairwise
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from rfpp_core.config.section import (
    Natural,
    PathText,
    Positive,
    PositiveFloat,
    Section,
    Sha256,
    SolverName,
)
from rfpp_core.sampling.solver_table import properties_of, steps_for


class Features(Section):
    """The feature nets of the metrics; the primary metric uses the first."""

    nets: Annotated[
        tuple[Literal["classifier", "inception", "inception_clean", "pixels"], ...],
        Field(min_length=1),
    ] = Field(
        default=("classifier",),
        description="classifier: trained here on the labels; inception: FID by clean-fid; "
        "inception_clean: FID with clean-fid's own resizing; pixels: a last resort",
    )
    steps: Positive = Field(default=800, description="updates of the classifier")
    batch: Positive = Field(default=128, description="of the classifier")
    lr: PositiveFloat = Field(default=4e-3, description="of the classifier")
    inception_path: PathText | None = Field(
        default=None, description="clean-fid's Inception file; null: cached, or downloaded"
    )
    inception_sha256: Sha256 | None = Field(
        default=None, description="digest of `inception_path`, if it is not clean-fid's own file"
    )

    @model_validator(mode="after")
    def each_once(self) -> Self:
        if len(set(self.nets)) < len(self.nets):
            raise ValueError(f"nets names one twice: {', '.join(self.nets)}")
        return self


class GridSearch(Section):
    """Search for the best grid of Euler steps of each flow (BOSS), with rows beside `nfe`'s."""

    n: Natural = Field(
        default=0, description="noise samples of the search, 100 are plenty; 0: no search"
    )
    anchors: Annotated[int, Field(ge=2, le=1000)] = Field(
        default=100, description="steps of the fine solution, at whose times a grid may stop"
    )


class Evaluate(Section):
    """What is measured of every flow."""

    n: Positive = Field(default=5000, description="samples per row")
    seeds: Positive = Field(default=3, description="sampling seeds of each row of `nfe`")
    nfe: Annotated[tuple[Positive, ...], Field(min_length=1)] = Field(
        default=(1, 2, 4, 8), description="numbers of network evaluations (NFE), one row each"
    )
    solver: SolverName = Field(
        default="euler", description="of the rows of `nfe`; a flow map has its own"
    )
    grids: dict[str, tuple[float, ...]] = Field(
        default={}, description='times by NFE, such as {"2": [1.0, 0.8]}; otherwise uniform'
    )
    grid_search: GridSearch = GridSearch()
    many_nfe: Positive = Field(default=35, description="NFE of one more row, by Heun")
    many_seeds: Positive = Field(default=1, description="sampling seeds of that row")
    adaptive: bool = Field(default=False, description="adds a row by RK45, with its average NFE")
    neighbours: Positive = Field(default=3, description="of precision and recall")
    straightness_n: Positive = Field(default=200, description="trajectories of the straightness")

    @model_validator(mode="after")
    def enough_samples(self) -> Self:
        if self.n <= self.neighbours + 1:
            raise ValueError(f"n ({self.n}) must exceed neighbours + 1 ({self.neighbours + 1})")
        return self

    @model_validator(mode="after")
    def the_solver_fits(self) -> Self:
        if not properties_of(self.solver).starts_at_1:
            raise ValueError(f"solver {self.solver} cannot start at t = 1; take another (the row "
                             f"of many_nfe of an imported teacher uses it anyway)")  # fmt: skip
        for name, times in self.grids.items():
            known = re.fullmatch("[1-9][0-9]{0,8}", name)
            steps = steps_for(self.solver, int(name))[0] if known else 0
            inner = times[:-1] if times and times[-1] == 0 else times
            falling = inner[:1] == (1.0,) and all(a > b for a, b in pairwise((*inner, 0.0)))
            if not falling or len(inner) != steps or int(name) not in self.nfe:
                raise ValueError(f"grids.{name} must be {steps} times falling from 1, for one "
                                 f"of nfe {list(self.nfe)}; it is {list(times)}")  # fmt: skip
        return self

    @model_validator(mode="after")
    def there_are_steps_to_search(self) -> Self:
        if self.grid_search.n and not self.searched:
            raise ValueError(f"grid_search finds grids of 2 to {self.grid_search.anchors} (its "
                             f"anchors) steps, and nfe names none: "
                             f"it is {list(self.nfe)}")  # fmt: skip
        return self

    @property
    def searched(self) -> tuple[int, ...]:
        """The numbers of steps, each an NFE of Euler's, for which a grid is searched."""
        if not self.grid_search.n:
            return ()
        return tuple(nfe for nfe in self.nfe if 2 <= nfe <= self.grid_search.anchors)
