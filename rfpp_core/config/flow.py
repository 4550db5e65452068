"""Params ``flows``: the flows of a run, each with its recipe, its data and where it starts."""

from __future__ import annotations

from pydantic import Field

from rfpp_core.config.section import Name, Positive, Section

IMAGES = "images"  # the name of the real images among data


class FlowRow(Section):
    """A row of ``flows``.  ``dvc.yaml`` reads the first four keys, so every row needs them."""

    recipe: Name = Field(description="a row of recipes")
    data: Name = Field(description="images, or a row of pairs")
    mix: Name = Field(
        description="images, or a row of pairs: the second set, if the recipe's `mix` is above 0"
    )
    start: Name = Field(description="initial weights: a row of networks, or another flow")
    seeds: Positive | None = Field(default=None, description="of this flow; null: evaluate.seeds")
    many_seeds: Positive | None = Field(
        default=None, description="of this flow; null: evaluate.many_seeds"
    )
