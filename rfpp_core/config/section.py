"""What the sections of ``params.yaml`` share: strict models, and types with their ranges."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from rfpp_core.sampling.solver_table import properties_of

Positive = Annotated[int, Field(gt=0, le=10**14)]
Natural = Annotated[int, Field(ge=0, le=10**14)]
PositiveFloat = Annotated[float, Field(gt=0)]
Fraction = Annotated[float, Field(ge=0, lt=1)]
Side = Annotated[int, Field(gt=0, le=4096)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]
PathText = Annotated[str, Field(pattern=r"^[^\x00]*$")]  # no file name can hold a NUL
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Name = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,63}$")]  # of a row, chosen by the user


def _solver(name: str) -> str:
    properties_of(name)
    return name


SolverName = Annotated[str, AfterValidator(_solver)]


class Section(BaseModel):
    """A section of the params; unknown keys, NaN and infinities are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


def described(section: Section, exclude: Any = None) -> dict[str, Any]:
    """The options of a section that are not at their default, as JSON for an identity.

    So a new option changes no identity; hence a default must never change
    (tests/unit/work/test_identity.py holds them all).
    """
    return section.model_dump(mode="json", exclude=exclude, exclude_defaults=True)
