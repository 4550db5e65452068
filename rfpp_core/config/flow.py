"""Params ``flows``: the flows of a run, each with its recipe, its data and where it starts."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import AfterValidator, Field, model_validator

from rfpp_core.config.section import Name, Natural, Positive, Section

IMAGES = "images"  # the name of the real images among data

Labels = Annotated[tuple[Natural, ...], AfterValidator(lambda labels: tuple(sorted(set(labels))))]


class Domains(Section):
    """Of a flow that translates images: two sets of labels of the real images.

    With ``domains: {source: [0], target: [1]}`` the state at t = 1 is an image of the source in
    the place of noise, and at t = 0 one of the target.  Labels are numbers: classes in the order
    of data/summary.json, from 0.
    """

    source: Labels = Field(
        default=(), description="labels of the images at t = 1, in the place of noise"
    )
    target: Labels = Field(default=(), description="labels of the images at t = 0")

    @model_validator(mode="after")
    def both_or_neither(self) -> Self:
        if bool(self.source) != bool(self.target):
            raise ValueError("domains needs both source and target, lists of labels such as "
                             "{source: [0], target: [1]}")  # fmt: skip
        if shared := set(self.source) & set(self.target):
            raise ValueError(f"label {min(shared)} is in both source and target of domains; no "
                             f"label may be in both")  # fmt: skip
        return self

    @property
    def words(self) -> str:
        """The two sets, for messages."""
        return f"{_listed(self.source)} to {_listed(self.target)}"


class FlowRow(Section):
    """A row of ``flows``.  ``dvc.yaml`` reads the first four keys, so every row needs them."""

    recipe: Name = Field(description="a row of recipes")
    data: Name = Field(description="images, or a row of pairs")
    mix: Name = Field(
        description="images, or a row of pairs: the second set, if the recipe's `mix` is above 0"
    )
    start: Name = Field(description="initial weights: a row of networks, or another flow")
    domains: Domains = Domains()
    seeds: Positive | None = Field(default=None, description="of this flow; null: evaluate.seeds")
    many_seeds: Positive | None = Field(
        default=None, description="of this flow; null: evaluate.many_seeds"
    )


def _listed(labels: tuple[int, ...]) -> str:
    return ", ".join(map(str, labels))
