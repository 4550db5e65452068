"""Params ``recipes``: how a flow is trained."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from rfpp_core.config.section import (
    Fraction,
    Natural,
    PathText,
    Positive,
    PositiveFloat,
    Section,
    described,
)


class Times(Section):
    """The distribution of the training time."""

    distribution: Literal["u_shape", "uniform", "logit_normal", "fixed"] = Field(
        default="u_shape", description="of the training time t in [0, 1]"
    )
    a: Annotated[float, Field(gt=0, le=100)] = Field(default=4.0, description="of u_shape: its steepness")
    mean: float = Field(default=0.0, description="of logit_normal")
    std: PositiveFloat = Field(default=1.0, description="of logit_normal")
    t: Annotated[float, Field(ge=0, le=1)] = Field(default=1.0, description="of fixed: the time")
    antithetic: bool = Field(
        default=False, description="about half of a batch has its mirror image 1 - t in it, as in RF++"
    )


class Loss(Section):
    """A distance of velocities, and a perceptual term beside it.

    LPIPS-Huber of RF++ is ``{name: pseudo_huber, perceptual: lpips}``, and LPIPS-Huber-1/t has
    ``weighting: over_t`` besides.  With a perceptual term the distance is weighted by 1 - t.
    """

    name: Literal["l2", "l2_root", "pseudo_huber"] = Field(
        default="pseudo_huber", description="distance of velocities; l2 is the mean square, l2_root its "
        "root (what the RF++ code calls l2)",
    )  # fmt: skip
    c: PositiveFloat = Field(default=0.00054, description="of pseudo_huber, per value of an image")
    perceptual: Literal["none", "lpips", "classifier"] = Field(
        default="none", description="distance of images: LPIPS, or, for data far from photographs, a net "
        "trained on the labels",
    )  # fmt: skip
    weighting: Literal["constant", "over_t"] = Field(
        default="constant", description="weight of the perceptual term: 1 or 1 / t"
    )
    pooling: Literal["average", "max"] = Field(
        default="average", description="of LPIPS: average as in RF++, max as LPIPS was published"
    )
    resize: Annotated[int, Field(ge=0, le=1024)] = Field(
        default=224, description="side that LPIPS sees; 0 for the images' own"
    )
    vgg_path: PathText | None = Field(
        default=None, description="torchvision's VGG16 file; null for the cache, filled by download"
    )
    chunk: Annotated[int, Field(ge=0)] = Field(
        default=0, description="images at a time through the perceptual net, to save memory; 0 for all"
    )


class Recipe(Section):
    """How a flow is trained.  ``steps: 0`` keeps the weights it starts from."""

    steps: Natural = Field(default=2500, description="updates; 0 keeps the initial weights")
    batch: Positive = Field(default=128, description="images an update, over all processes")
    lr: PositiveFloat = Field(default=1e-3, description="peak learning rate of Adam")
    warmup: Natural = Field(default=100, description="updates of linear warm-up")
    warmup_from_zero: bool = Field(
        default=False, description="update i has i / warmup of the rate, as in RF++; else (i + 1) / warmup"
    )
    decay: Literal["constant", "cosine"] = Field(default="cosine", description="of the rate after warm-up")
    beta1: Fraction = Field(default=0.9, description="of Adam")
    beta2: Fraction = Field(default=0.999, description="of Adam")
    eps: PositiveFloat = Field(default=1e-8, description="of Adam")
    clip: Annotated[float, Field(ge=0)] = Field(default=0.0, description="gradient norm limit; 0 for none")
    accumulate: Positive = Field(
        default=1, description="parts of a batch whose gradients are added up, to save memory"
    )
    ema: Fraction = Field(default=0.998, description="decay of the average of the weights")
    ema_ramp: bool = Field(default=True, description="whether the decay rises from 1/10 at the beginning")
    dropout: Fraction = Field(default=0.0, description="probability inside the network")
    label_dropout: Fraction = Field(
        default=0.0, description="share of labels hidden, so that guidance can be used"
    )
    precision: Literal["fp32", "tf32", "bf16", "fp16"] = Field(
        default="fp32", description="of the network; tf32 rounds factors of products on CUDA"
    )
    compile: bool = Field(default=False, description="torch.compile the network")
    threads: Positive = Field(default=2, description="CPU threads, on which the bits depend")
    log_every: Positive = Field(default=50, description="updates between two rows of the loss curve")
    nonfinite: Literal["stop", "skip"] = Field(
        default="stop", description="skip: leave out updates with a gradient that is not finite, as in RF++"
    )
    coupling: Literal["independent"] = Field(
        default="independent", description="noise of real images; pairs bring their own"
    )
    mix: Annotated[float, Field(ge=0, le=1)] = Field(
        default=0.0, description="share of each batch drawn from the flow's `mix` instead of its `data`"
    )
    times: Times = Times()
    loss: Loss = Loss()

    @model_validator(mode="after")
    def options_agree(self) -> Self:
        if self.steps % self.log_every:
            raise ValueError(f"steps ({self.steps}) must be a multiple of log_every "
                             f"({self.log_every})")  # fmt: skip
        if self.batch % self.accumulate:
            raise ValueError(f"batch ({self.batch}) must be a multiple of accumulate "
                             f"({self.accumulate})")  # fmt: skip
        if self.times.antithetic and self.times.distribution == "logit_normal" and self.times.mean:
            raise ValueError("times.antithetic needs a distribution that is symmetric about 1/2, "
                             "so times.mean must be 0")  # fmt: skip
        fixed_at_0 = self.times.distribution == "fixed" and not self.times.t
        if self.loss.perceptual != "none" and self.loss.weighting == "over_t" and fixed_at_0:
            raise ValueError("loss.weighting: over_t divides by t, so times.t must be above 0")
        return self

    @property
    def identity(self) -> dict[str, Any]:
        """What of the recipe determines weights: no paths, nothing that moves no bit."""
        return described(self, NOT_IN_WEIGHTS)


NOT_IN_WEIGHTS: Any = {"log_every": True, "loss": {"vgg_path"}}
