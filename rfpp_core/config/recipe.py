"""Params ``recipes``: how a flow is trained."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from rfpp_core.config.methods import Anneal, FlowMap, Phased, Segments, TwoStep
from rfpp_core.config.section import (
    Fraction,
    Natural,
    PathText,
    Positive,
    PositiveFloat,
    Section,
    described,
)
from rfpp_core.model.vp import SCHEDULES
from rfpp_core.runtime import Precision


class Times(Section):
    """The distribution of the training time."""

    distribution: Literal[
        "u_shape", "uniform", "logit_normal", "fixed", "grid", "vp", "vp_sd"
    ] = Field(
        default="u_shape",
        description="of the training time t in [0, 1]; grid: those of `k` Euler steps; vp and "
        "vp_sd are uniform in the time of the network's `path`",
    )  # fmt: skip
    a: Annotated[float, Field(gt=0, le=100)] = Field(
        default=4.0, description="steepness of u_shape"
    )
    mean: float = Field(default=0.0, description="of logit_normal")
    std: PositiveFloat = Field(default=1.0, description="of logit_normal")
    t: Annotated[float, Field(ge=0, le=1)] = Field(default=1.0, description="time of fixed")
    k: Annotated[int, Field(ge=1, le=1000)] = Field(
        default=2,
        description="of grid: the times are 1/k, 2/k, ..., 1, those of k Euler steps",
    )
    at_one: Annotated[float, Field(ge=0, le=1)] = Field(
        default=0.0,
        description="share of the times that are 1 exactly, where every path begins; the rest "
        "follow `distribution`",
    )
    antithetic: bool = Field(
        default=False,
        description="for about half of its times t, a batch holds 1 - t too, as in RF++",
    )


class Loss(Section):
    """A distance between velocities and, if wanted, a perceptual term.

    RF++'s LPIPS-Huber is ``{name: pseudo_huber, perceptual: lpips}``; its LPIPS-Huber-1/t adds
    ``weighting: over_t``.  With a perceptual term the distance is weighted by 1 - t.
    """

    name: Literal["l2", "l2_root", "pseudo_huber"] = Field(
        default="pseudo_huber",
        description="distance between velocities; l2 is the mean square, l2_root its root (the l2 "
        "of the RF++ code)",
    )
    c: PositiveFloat = Field(default=0.00054, description="of pseudo_huber, per value of an image")
    perceptual: Literal["none", "lpips", "classifier"] = Field(
        default="none",
        description="distance between images: lpips, or classifier, a net trained on the labels, "
        "for images that are not photographs",
    )
    weighting: Literal["constant", "over_t"] = Field(
        default="constant", description="weight of the perceptual term: 1 or 1 / t"
    )
    space: Literal["v", "eps", "x"] = Field(
        default="v",
        description="of objective: diffusion; what the distance compares: velocities, noise, "
        "images",
    )
    pooling: Literal["average", "max"] = Field(
        default="average", description="of LPIPS: average as in RF++, max as LPIPS was published"
    )
    resize: Annotated[int, Field(ge=0, le=1024)] = Field(
        default=224, description="side of the images that LPIPS is given; 0: as they are"
    )
    vgg_path: PathText | None = Field(
        default=None, description="torchvision's VGG16 file; null: cached, or downloaded"
    )
    chunk: Annotated[int, Field(ge=0)] = Field(
        default=0, description="images per call of the perceptual net, to save memory; 0: all"
    )


class Recipe(Section):
    """How a flow is trained.  With ``steps: 0`` it has the weights that it starts from."""

    steps: Natural = Field(default=2500, description="updates; 0: the initial weights as they are")
    batch: Positive = Field(default=128, description="images per update, over all processes")
    lr: PositiveFloat = Field(default=1e-3, description="peak learning rate of Adam")
    warmup: Natural = Field(default=100, description="updates of linear warm-up")
    warmup_from_zero: bool = Field(
        default=False,
        description="update i has i / warmup of the rate, as in RF++; otherwise (i + 1) / warmup",
    )
    decay: Literal["constant", "cosine"] = Field(
        default="cosine", description="of the learning rate after warm-up"
    )
    beta1: Fraction = Field(default=0.9, description="of Adam")
    beta2: Fraction = Field(default=0.999, description="of Adam")
    eps: PositiveFloat = Field(default=1e-8, description="of Adam")
    clip: Annotated[float, Field(ge=0)] = Field(
        default=0.0, description="limit of the gradient norm; 0: none"
    )
    accumulate: Positive = Field(
        default=1, description="parts of a batch whose gradients are summed, to save memory"
    )
    ema: Fraction = Field(
        default=0.998, description="decay of the exponential moving average of the weights"
    )
    ema_ramp: bool = Field(
        default=True, description="whether the decay rises from 1/10 at the beginning"
    )
    dropout: Fraction = Field(default=0.0, description="dropout probability in the network")
    label_dropout: Fraction = Field(
        default=0.0, description="share of labels that are hidden; guidance needs some"
    )
    precision: Precision = Field(
        default="fp32", description="of the network; tf32 is TensorFloat-32 products on CUDA"
    )
    compile: bool = Field(default=False, description="whether to use torch.compile")
    threads: Positive = Field(
        default=2, description="CPU threads; another number gives other bits on a CPU"
    )
    log_every: Positive = Field(default=50, description="updates per row of the loss curve")
    nonfinite: Literal["stop", "skip"] = Field(
        default="stop", description="what to do with a gradient that is not finite; RF++ skips it"
    )
    objective: Literal[
        "flow_matching", "diffusion", "phased", "flow_guided", "segments", "flow_map", "features"
    ] = Field(
        default="flow_matching",
        description="what is minimised; diffusion: a distance in `loss.space`; phased: the flow "
        "that it starts from is made straight in each of `phased.phases`; flow_guided distils "
        "the flow it starts from into one step; segments: the chords of the start's own paths "
        "on a grid; flow_map: the average velocity between two times; features: the error of the "
        "velocity as the net of `loss.perceptual` sees it",
    )
    coupling: Literal["independent", "dansm", "ot"] = Field(
        default="independent",
        description="noise of real images; pairs have their own.  dansm: each image takes the "
        "nearest noise left in a pool; ot: the assignment of least squared distance",
    )
    match: Annotated[int, Field(ge=0, le=10**6)] = Field(
        default=0,
        description="noises that dansm and ot match with as many images at a time, a multiple of "
        "batch; 0: eight batches for dansm, one for ot",
    )
    mix: Annotated[float, Field(ge=0, le=1)] = Field(
        default=0.0, description="share of each batch from the flow's `mix` instead of its `data`"
    )
    flip: bool = Field(
        default=False,
        description="mirror each image horizontally with probability 1/2, and with it the noise "
        "of its pair",
    )
    anneal: Anneal = Anneal()
    two_step: TwoStep = TwoStep()
    shuffled: bool = Field(
        default=False,
        description="a control: each image of the pairs is given the noise of another pair",
    )
    phased: Phased = Phased()
    times: Times = Times()
    loss: Loss = Loss()
    segments: Segments = Segments()
    flow_map: FlowMap = FlowMap()

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
        if self.times.antithetic and self.times.at_one:
            raise ValueError("times.antithetic mirrors every time about 1/2, so times.at_one must "
                             "be 0")  # fmt: skip
        if self.times.antithetic and self.times.distribution == "grid":
            raise ValueError("times.antithetic needs a distribution that is symmetric about 1/2, "
                             "which grid is not")  # fmt: skip
        at_1 = self.times.distribution == "fixed" and self.times.t == 1
        if self.objective == "flow_guided" and not at_1:
            raise ValueError("objective: flow_guided trains at t = 1 alone, so times must be "
                             "{distribution: fixed, t: 1.0}")  # fmt: skip
        fixed_at_0 = self.times.distribution == "fixed" and not self.times.t
        if self.loss.perceptual != "none" and self.loss.weighting == "over_t" and fixed_at_0:
            raise ValueError("loss.weighting: over_t divides by t, so times.t must be above 0")
        return self

    @model_validator(mode="after")
    def segments_have_a_grid(self) -> Self:
        if self.objective != "segments":
            return self
        grid = self.segments.whole
        if grid[0] != 1 or not all(a > b for a, b in pairwise(grid)):
            raise ValueError(f"segments.times must be times falling from 1, such as [1.0, 0.8]; "
                             f"it is {list(self.segments.times)}")  # fmt: skip
        if self.loss.perceptual != "none" or self.label_dropout:
            raise ValueError("objective: segments compares velocities, with every label: "
                             "loss.perceptual must be none, and label_dropout 0")  # fmt: skip
        return self

    @model_validator(mode="after")
    def noise_can_be_matched(self) -> Self:
        if self.coupling == "independent":
            return self
        if rest := self.match % self.batch:
            below = self.match - rest
            fitting = f"{below} or {below + self.batch}" if below else f"{self.batch}"
            raise ValueError(f"match ({self.match}) must be a multiple of batch ({self.batch}), "
                             f"such as {fitting}")  # fmt: skip
        size = self.match or self.batch
        if self.coupling == "ot" and size > MOST_ASSIGNED:
            raise ValueError(f"coupling: ot assigns at most {MOST_ASSIGNED} images at a time, not "
                             f"{size}; lower {'match' if self.match else 'batch'}, or take "
                             f"coupling: dansm")  # fmt: skip
        if self.mix:
            raise ValueError(f"coupling: {self.coupling} matches whole batches of real images, so "
                             f"mix must be 0")  # fmt: skip
        return self

    @model_validator(mode="after")
    def the_objective_fits(self) -> Self:
        times, loss = self.times, self.loss
        if loss.space != "v" and self.objective != "diffusion":
            raise ValueError(f"loss.space: {loss.space} needs objective: diffusion; objective: "
                             f"{self.objective} compares velocities")  # fmt: skip
        if loss.perceptual != "none" and self.objective in ("diffusion", "phased"):
            raise ValueError(f"objective: {self.objective} has no perceptual term; set "
                             f"loss.perceptual: none, or objective: flow_matching")  # fmt: skip
        own = (loss.name, loss.weighting, loss.chunk) == (Loss().name, Loss().weighting, 0)
        if self.objective == "features" and not own:
            raise ValueError("objective: features has a distance of its own; leave loss.name, "
                             "loss.weighting and loss.chunk at their defaults")  # fmt: skip
        if loss.perceptual == "none" and self.objective == "features":
            raise ValueError("objective: features compares velocities through a net; set "
                             "loss.perceptual to classifier or lpips")  # fmt: skip
        moved = times.antithetic or times.at_one
        if times.distribution in SCHEDULES and moved:
            raise ValueError(f"times.distribution: {times.distribution} ends below t = 1 and is "
                             f"not symmetric about 1/2, so times.at_one must be 0 and "
                             f"times.antithetic false")  # fmt: skip
        even = times.distribution in ("uniform", *SCHEDULES)
        if self.objective == "phased" and (moved or not even):
            raise ValueError(f"objective: phased needs times.distribution uniform, or "
                             f"{' or '.join(SCHEDULES)} on such a path, with at_one: 0 and "
                             f"antithetic: false")  # fmt: skip
        return self

    @model_validator(mode="after")
    def a_flow_map_fits(self) -> Self:
        if self.objective != "flow_map":
            return self
        if self.dropout:
            raise ValueError("objective: flow_map needs dropout: 0, since its derivative and its "
                             "regression would be of different networks")  # fmt: skip
        if self.loss.perceptual != "none":
            raise ValueError("objective: flow_map has no perceptual term; set loss.perceptual: "
                             "none")  # fmt: skip
        if self.times.distribution == "fixed" and self.flow_map.end == "drawn":
            raise ValueError("objective: flow_map with flow_map.end: drawn needs times that vary; "
                             "take another times.distribution, or flow_map.end: zero")  # fmt: skip
        return self

    @property
    def from_teacher(self) -> bool:
        """Whether it trains a flow map from the velocity of the flow that it starts from."""
        return self.objective == "flow_map" and self.flow_map.velocity == "teacher"

    @property
    def frozen_start(self) -> bool:
        """Whether the objective uses the weights that the flow starts from, frozen."""
        return self.objective in FROZEN_START or self.from_teacher

    @property
    def forwards(self) -> int:
        """Network forwards an image of an update costs; a backward pass counts as two."""
        extra = EXTRA_FORWARDS.get(self.objective, 0)
        return 3 + (extra if isinstance(extra, int) else extra(self))

    @property
    def identity(self) -> dict[str, Any]:
        """The part of the recipe that determines the weights."""
        return described(self, NOT_IN_WEIGHTS)


MOST_ASSIGNED = 1024  # images: an assignment takes O(M^3), a third of a second for so many
# objectives that use the initial weights, frozen
FROZEN_START: frozenset[str] = frozenset({"flow_guided", "phased", "segments"})
# of an objective, beyond a forward and a backward pass; by recipe where its options say how many
EXTRA_FORWARDS: dict[str, int | Callable[[Recipe], int]] = {
    # the student forward and backward on fresh noise, and the frozen flow once or twice
    "flow_guided": lambda recipe: 4 if recipe.two_step.own else 5,
    # its derivative, a forward pass with tangents or two passes, counted for all samples, though
    # those with r = t need none; and the teacher
    "flow_map": lambda recipe: 2 + recipe.from_teacher,
    "phased": lambda recipe: recipe.phased.substeps,  # of the frozen teacher
    # the frozen flow's fine steps, and a forward and a backward pass for each further segment
    "segments": lambda recipe: sum(recipe.segments.parts) + 3 * len(recipe.segments.parts) - 3,
}

NOT_IN_WEIGHTS: Any = {"log_every": True, "loss": {"vgg_path"}}
