"""Params ``dataset``: the real images and how they are split."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from rfpp_core.config.section import PathText, Positive, Section, Seed


class Dataset(Section):
    """Real images and how they are split into a training and a held-out part."""

    name: Literal["digits", "cifar10", "folder"] = Field(
        default="digits",
        description="scikit-learn's digits, CIFAR-10, or a folder or zip of images",
    )
    seed: Seed = Field(
        default=0,
        description="of the split and of the metrics' classifier, apart from `seed`",
    )
    path: PathText = Field(
        default="data/raw",
        description="folder or zip of images; of cifar10, where it is or is downloaded to",
    )
    held_out: Annotated[float, Field(gt=0, lt=1)] = Field(
        default=0.2, description="held-out share of each class, unless the set has its own split"
    )
    channels: Literal[1, 3] = Field(default=1, description="1 for grey, 3 for RGB")
    resolution: Annotated[int, Field(ge=4, le=1024)] | None = Field(
        default=None, description="side in pixels after resizing; null keeps the images' own"
    )
    labels: PathText = Field(
        default="folders",
        description="folders: a sub-folder per class; none; or a CSV of name,label rows",
    )
    limit: Positive | None = Field(
        default=None, description="at most this many images, spread over the set"
    )
    skip_corrupt: bool = Field(
        default=False, description="skip images that cannot be read, instead of failing"
    )
