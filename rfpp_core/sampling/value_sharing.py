"""RF-Edit: a translated image keeps attention values of the image's own inversion.

An image is inverted under its label and re-generated under another.  In the first n steps of the
re-generation, which are the last n of the inversion, every attention takes the values that it had
in the inversion (RF-Edit, arXiv 2411.04746):

    softmax(Q K^T / sqrt(d)) V_inv    instead of    softmax(Q K^T / sqrt(d)) V,

queries and keys being those of the re-generation.  n = 0 is the plain solver; the larger n, the
more of the image is to stay.

A step has as many evaluations as its solver has stages, and values are kept for each: by the
step, counted from the noise in either direction, and the stage in it.  So values of a midpoint
come from the same time, and those of a step's start from the other end of the same interval, at
which the inversion starts its step; so do those of Heun's second stage.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from rfpp_core.errors import UserError
from rfpp_core.model.attention_values import Handler, ValueTap
from rfpp_core.model.path import Field
from rfpp_core.runtime import map_exact, memory
from rfpp_core.sampling.flow import MICRO_BATCH, Flow
from rfpp_core.sampling.sampler import SamplerConfig, draw, threads_for
from rfpp_core.sampling.solver_table import ADAPTIVE, properties_of, steps_for


class Evaluation(NamedTuple):
    """Which evaluation of a trajectory: its step, counted from the noise, and its stage there."""

    step: int
    stage: int


@dataclass(frozen=True)
class Values:
    """Attention values of one trajectory of a batch, over the steps nearest to the noise.

    Attributes:
        solver: name of the solver that took it.
        times: its grid, decreasing.
        share: of how many steps values are kept.
        kept: them, each (B, C, H, W), by evaluation and number of the attention block.
    """

    solver: str
    times: tuple[float, ...]
    share: int
    kept: dict[tuple[Evaluation, int], Tensor] = field(default_factory=dict)

    def keep(self, evaluation: Evaluation, block: int, values: Tensor) -> None:
        """Stores values, as the handler of an evaluation of the inversion."""
        self.kept[evaluation, block] = values.clone()  # without the queries and keys beside them

    def give(self, evaluation: Evaluation, block: int, values: Tensor) -> Tensor:
        """The stored values, as the handler of an evaluation of the re-generation.

        Raises:
            UserError: if they are not of so many images.
        """
        found = self.kept[evaluation, block]
        if found.shape != values.shape:
            raise UserError(f"values of shape {tuple(found.shape)} were recorded, but "
                            f"{tuple(values.shape)} are needed; re-generate the same images "
                            f"with the same network")  # fmt: skip
        return found


class Translated(NamedTuple):
    """The noise of images, and the images of it under another label: (B, C, H, W) on the CPU."""

    noise: Tensor
    images: Tensor


class _Handled:
    """A field whose calls have a handler of attention values each, in their order."""

    def __init__(self, field: Field, tap: ValueTap, handlers: Iterable[Handler | None]) -> None:
        self.field, self._tap, self._handlers = field, tap, iter(handlers)

    def __call__(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        with self._tap.handled(next(self._handlers)):
            return self.field(x, t, y)


def translate(
    flow: Flow, x: Tensor, source: int, target: int, sampler: SamplerConfig, share: int
) -> Translated:
    """Translates images from one class to another with shared attention values.

    Values live as long as the micro-batch that they belong to, on the flow's device.

    Args:
        flow: a conditional flow whose network has attention.
        x: images in [-1, 1], float32 (B, C, H, W).
        source: label of the images.
        target: label to translate them to.
        sampler: of both directions; its guidance is of the target alone, since guided paths are
            no paths of the flow to invert.
        share: the number n of steps with shared values, from 0 to all.

    Raises:
        UserError: see :func:`check`; and if a label is out of range, the flow has none, or the
            values do not fit into this machine's memory.
    """
    labels = [flow.labels(len(x), 0, [label]) for label in (source, target)]
    y_source, y_target = (torch.tensor(found, device=flow.device) for found in labels)
    check(flow, sampler, share)
    threads = threads_for(flow.device)
    _check_memory(flow, sampler, share, min(len(x), threads * MICRO_BATCH))

    def one(first: int) -> Translated:
        part = slice(first, first + MICRO_BATCH)
        state = x[part].to(flow.device)
        z, values = record(flow, tap, state, y_source[part], sampler, share)
        images = replay(flow, tap, z, y_target[part], sampler, values)
        return Translated(z.cpu(), images.cpu())

    with ValueTap(flow.field) as tap:
        parts = map_exact(one, range(0, len(x), MICRO_BATCH), threads)
    return Translated(*map(torch.cat, zip(*parts, strict=True)))


def record(
    flow: Flow,
    tap: ValueTap,
    state: Tensor,
    y: Tensor | None,
    sampler: SamplerConfig,
    share: int,
    backwards: bool = True,
) -> tuple[Tensor, Values]:
    """Inverts images without guidance and keeps attention values.

    Args:
        flow: the flow.
        tap: of its field, open.
        state: images, or noise unless ``backwards``; float32 (B, C, H, W) on the flow's device.
        y: labels (B,) or None.
        sampler: solver and grid.
        share: of how many steps to keep them, those nearest to the noise.
        backwards: from images to noise; else the values of a re-generation are kept.

    Returns:
        The noise (or the images) and the values, both on the flow's device.

    Raises:
        UserError: see :func:`check`.
    """
    check(flow, sampler, share)
    values = Values(sampler.solver, _times(flow, sampler), share)
    handlers = [partial(values.keep, at) if at is not None and at.step < share else None
                for at in evaluations(sampler, backwards)]  # fmt: skip
    watched = _Handled(flow.field, tap, handlers)
    end = draw(watched, state, y, replace(sampler, guidance=1.0), backwards, flow.start).x
    return end.float(), values


def replay(
    flow: Flow,
    tap: ValueTap,
    z: Tensor,
    y: Tensor | None,
    sampler: SamplerConfig,
    values: Values,
) -> Tensor:
    """Images of noise, with recorded attention values in the first steps.

    With guidance both forwards of an evaluation take them, so that the labels alone make the
    difference of the two.

    Args:
        flow: the flow.
        tap: of its field, open.
        z: noise, float32 (B, C, H, W) on the flow's device.
        y: labels (B,) or None.
        sampler: solver and grid, those of the recording; and guidance.
        values: of :func:`record`, for the same B images.

    Returns:
        float32 (B, C, H, W) on the flow's device.

    Raises:
        UserError: if solver, steps or times are not those of the recording.
    """
    times = _times(flow, sampler)
    if (sampler.solver, times) != (values.solver, values.times):
        raise UserError(
            f"values of {len(values.times) - 1} steps of {values.solver} were recorded, and "
            f"{len(times) - 1} of {sampler.solver} are to take them; invert and re-generate with "
            f"one solver, NFE and grid"
        )
    forwards = 1 if sampler.guidance == 1 or y is None else 2
    handlers = [partial(values.give, at) if at is not None and at.step < values.share else None
                for at in evaluations(sampler) for _ in range(forwards)]  # fmt: skip
    return draw(_Handled(flow.field, tap, handlers), z, y, sampler, start=flow.start).x.float()


def evaluations(sampler: SamplerConfig, backwards: bool = False) -> list[Evaluation | None]:
    """Every evaluation of a trajectory, in the order in which the solver makes them.

    ``fireflow`` evaluates once more before its first step, at the data in the one direction and
    at the noise in the other: None, for there is nothing to share.

    Raises:
        UserError: if the solver has no steps that lead both ways, or not all are whole.
    """
    steps, properties = _whole_steps(sampler), properties_of(sampler.solver)
    order = range(steps)[:: -1 if backwards else 1]
    found = [Evaluation(step, stage) for step in order for stage in range(properties.stages)]
    return [None, *found] if properties.reuses else [*found]


def check(flow: Flow, sampler: SamplerConfig, share: int) -> None:
    """Whether values can be shared.

    Raises:
        UserError: if the network has no attention, ``share`` is not from 0 to the number of
            steps, or the solver has no steps that lead both ways, or not all are whole.
    """
    if not ValueTap(flow.field).blocks:
        raise UserError("this flow's network has no attention, so there are no values to share; "
                        "take share 0, or a flow whose network has attention")  # fmt: skip
    steps = _whole_steps(sampler)
    if not 0 <= share <= steps:
        raise UserError(f"share is {share}, but {sampler.nfe} NFE of {sampler.solver} are {steps} "
                        f"steps; give 1 to {steps}, or 0 to share nothing")  # fmt: skip


def bytes_an_image(flow: Flow, sampler: SamplerConfig, share: int) -> int:
    """Size of the values that are kept of an image, measured by one evaluation of one."""
    sizes: list[int] = []
    x, t = (torch.zeros(1, *shape, device=flow.device) for shape in (flow.shape, ()))

    def measure(_block: int, values: Tensor) -> None:
        sizes.append(values.nbytes)

    with torch.inference_mode(), ValueTap(flow.field) as tap, tap.handled(measure):
        flow.field(x, t)
    return sum(sizes) * share * properties_of(sampler.solver).stages


def _check_memory(flow: Flow, sampler: SamplerConfig, share: int, images: int) -> None:
    """Refuses what a CPU would be killed for; a GPU says itself that it is full."""
    size = images * bytes_an_image(flow, sampler, share)
    if flow.device.type == "cpu" and size > memory():
        raise UserError(f"the values of {share} steps of {images} images at a time take "
                        f"{size / 1e9:.3g} GB, more than there is; share fewer steps, or give "
                        f"fewer images")  # fmt: skip


def _times(flow: Flow, sampler: SamplerConfig) -> tuple[float, ...]:
    return tuple(sampler.plan(flow.start)[0].tolist())


def _whole_steps(sampler: SamplerConfig) -> int:
    """The number of steps; raises as :func:`evaluations` does."""
    if sampler.solver == ADAPTIVE or not properties_of(sampler.solver).invertible:
        raise UserError(f"{sampler.solver} has no steps that lead both ways, so none can share "
                        f"values; take euler, midpoint, heun, rf-solver or fireflow")  # fmt: skip
    steps, last = steps_for(sampler.solver, sampler.nfe)
    if last == "euler":
        raise UserError(
            f"{sampler.nfe} NFE of {sampler.solver} end in a step of one evaluation, whose values "
            f"fit no whole step of the way back; give {sampler.nfe + 1}"
        )
    return steps
