"""Batches of images, and the device that the images are on.

The order is stateless: batch = f(seed, step), so the data state of a checkpoint is one integer.
Epoch e visits ``permutation(seed, e)``; the last n mod batch images of an epoch are dropped.
Images stay uint8 until they are on the device.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from rfpp_core.errors import UserError
from rfpp_core.images.pixels import to_float
from rfpp_core.rng import permutation
from rfpp_core.runtime import Rank


class Batch(NamedTuple):
    """Images (B, C, H, W) in [-1, 1], their positions in the set (B,), labels (B,) or None."""

    x: Tensor
    position: Tensor
    y: Tensor | None


def place(images: Tensor, device: torch.device) -> Tensor:
    """Puts uint8 images on the device if they take at most an eighth of its memory, otherwise
    leaves them: copying batches costs little, and how much memory the training needs is not
    known yet."""
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        # so CIFAR-10's million pairs (3 GB) fit on 24 GiB; activations need the rest
        if images.numel() <= min(total / 8, free / 2):
            return images.to(device)
    return images


class Picked(NamedTuple):
    """The images of a batch as they are stored, uint8 (B, C, H, W) where the set is, with their
    positions (B,) on the CPU, and labels (B,) or None."""

    images: Tensor
    position: Tensor
    y: Tensor | None


def picked(
    images: Tensor,
    labels: Tensor | None,
    batch: int,
    key: int,
    start: int = 0,
    rank: Rank = Rank(),  # noqa: B008
) -> Iterator[Picked]:
    """Yields the batches of steps ``start``, ``start + 1``, ... without end; see :func:`batches`
    for arguments and errors."""
    if batch % rank.world:
        raise UserError(f"batch is {batch}, which {rank.world} processes do not share evenly")
    share = batch // rank.world
    per_epoch = len(images) // batch
    if per_epoch < 1:
        raise UserError(f"batch is {batch} but there are only {len(images)} images to train on; "
                        f"lower batch")  # fmt: skip
    step, epoch, order = start, -1, torch.empty(0)
    while True:
        now, k = divmod(step, per_epoch)
        if now != epoch:
            epoch, order = now, permutation(key, now, len(images))
        first = k * batch + rank.rank * share
        index = order[first : first + share]
        found = images.index_select(0, index.to(images.device))
        yield Picked(found, index, None if labels is None else labels[index])
        step += 1


def batches(
    images: Tensor,
    labels: Tensor | None,
    batch: int,
    key: int,
    device: torch.device,
    start: int = 0,
    rank: Rank = Rank(),  # noqa: B008
) -> Iterator[Batch]:
    """Yields the batches of steps ``start``, ``start + 1``, ... without end, channels last.

    Args:
        images: uint8 (N, C, H, W) on any device.
        labels: int64 (N,) or None.
        batch: batch size, at most N.
        key: key of the order.
        device: where the batches go.
        start: first step.
        rank: this process, which gets its slice of each batch.

    Raises:
        UserError: if the batch is larger than the set, or the processes do not share it evenly.
    """
    found = picked(images, labels, batch, key, start, rank)
    if device.type == "cuda":
        found = _copied_ahead(found, device)
    for images_, position, y in found:
        x = to_float(images_.to(device)).to(memory_format=torch.channels_last)
        yield Batch(x, position.to(device), None if y is None else y.to(device))


def _copied_ahead(batches: Iterator[Picked], device: torch.device) -> Iterator[Picked]:
    """The same batches on a CUDA device: the next is copied there, from pinned memory by a stream
    of its own, while the step before computes."""
    stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def copied(batch: Picked) -> Picked:
        with torch.cuda.stream(stream):
            there = [t if t is None or t.is_cuda else t.pin_memory().to(device, non_blocking=True)
                     for t in batch]  # fmt: skip
        return Picked(*there)  # type: ignore[arg-type]

    following = copied(next(batches))
    while True:
        current = torch.cuda.current_stream(device)
        current.wait_stream(stream)
        for tensor in following:
            if tensor is not None:
                tensor.record_stream(current)
        now, following = following, copied(next(batches))
        yield now
