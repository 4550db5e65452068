"""Noise matched with images: pools of noise that outlive a batch.

A pool of M noises meets the next M images of a process, and each noise goes to exactly one of
them; to which one is what a matching decides (``dansm``, ``ot``).  Whole pools are used up, so a
training sees the noise of independent draws, only dealt out otherwise.  (To drop a pool half used
would leave out the noises far from all images, and shrink the rest.)

Of a conditional flow, the noise of every class must be standard normal, since sampling starts
there whatever the label.  So each class has a pool of its own: noise j of the M belongs to the
class of image j of the M.  A class has as many noises as images, and all drain together.

A checkpoint holds nothing of this.  Pool k is a function of (seed, process, k), and the loader
gives the batches of any step again, so a training that resumes matches from the first step of the
pool on, as the one before it did.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import count, islice
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

from rfpp_core.images import loader
from rfpp_core.images.loader import Batch
from rfpp_core.rng import StepRNG, normal, subkey
from rfpp_core.runtime import Rank
from rfpp_core.training.couplings import Coupled

# (batches of M images in all, noise (M, *), class of each noise (M,) or None) -> for each batch,
# which noise its images get (B,); over all batches a permutation of range(M)
Rule: TypeAlias = Callable[[Iterable[Batch], Tensor, Tensor | None], Iterator[Tensor]]

DRAWN = 256  # noises drawn at a time: the generator needs some twenty times their memory


class Matching(NamedTuple):
    """A rule, and the number M of images and noises that it matches at a time."""

    rule: Rule
    size: int


class Source(NamedTuple):
    """Where the trainer's batches come from.

    Attributes:
        images: uint8 (N, C, H, W).
        labels: int64 (N,) of a conditional flow, otherwise None.
        batch: images of a step, over all processes.
        rank: this process, which gets ``batch / rank.world`` of them.
    """

    images: Tensor
    labels: Tensor | None
    batch: int
    rank: Rank = Rank()

    @property
    def share(self) -> int:
        """Images of a step that are this process's."""
        return self.batch // self.rank.world

    def batches(self, seed: int, start: int, device: torch.device) -> Iterator[Batch]:
        """The batches of steps ``start``, ``start + 1``, ... that the trainer has or will get."""
        key = subkey(seed, "order")
        images, labels, batch, rank = self
        return loader.batches(images, labels, batch, key, device, start, rank)

    def classes(self, seed: int, start: int, steps: int, device: torch.device) -> Tensor | None:
        """The labels of some steps, (steps * share,); no image is read for them."""
        if self.labels is None:
            return None
        bare = self._replace(images=self.images[:, :0])
        found = islice(bare.batches(seed, start, device), steps)
        return torch.cat([batch.y for batch in found if batch.y is not None])


class Matched:
    """The coupling of a matching.

    Noise is matched for a whole step of this process, whatever the parts in which the trainer
    asks for it.  From one step to the next it goes on; at any other step it begins with that
    step's pool.
    """

    def __init__(self, source: Source, matching: Matching) -> None:
        self.source, self.matching = source, matching
        self.at: tuple[int, int] | None = None  # seed and step of ``z``
        self.z = torch.empty(0)
        self.following: Iterator[Tensor] = iter(())

    def __call__(self, batch: Batch, draws: StepRNG) -> Coupled:
        if self.at != (draws.seed, draws.step):
            self._go_to(draws.seed, draws.step, batch.x)
        first = draws.start - self.source.rank.rank * self.source.share
        return Coupled(batch.x, self.z[first : first + len(batch.x)], batch.y)

    def _go_to(self, seed: int, step: int, like: Tensor) -> None:
        ahead = 0
        if self.at != (seed, step - 1):
            pool, ahead = divmod(step, self.matching.size // self.source.share)
            self.following = noise_from(self.source, self.matching, seed, pool, like)
        self.z = next(islice(self.following, ahead, None))
        self.at = (seed, step)


def noise_from(
    source: Source, matching: Matching, seed: int, pool: int, like: Tensor
) -> Iterator[Tensor]:
    """The noise (share, *) of each step, from the first of a pool on, without end.

    Args:
        source: of the images.
        matching: which noise an image gets.
        seed: of the training.
        pool: number of the first pool.
        like: images of a step, for their shape and device.
    """
    steps, device = matching.size // source.share, like.device
    for k in count(pool):
        z = noise_of_pool(seed, k, matching.size, source.rank, like)
        classes = source.classes(seed, k * steps, steps, device)
        batches = islice(source.batches(seed, k * steps, device), steps)
        for chosen in matching.rule(batches, z, classes):
            yield z[chosen]


def noise_of_pool(seed: int, pool: int, size: int, rank: Rank, like: Tensor) -> Tensor:
    """Noise of a pool, float32 (size, *): a function of (seed, process, number of the pool)."""
    key = subkey(seed, "pool" if rank.first else f"pool:{rank.rank}")
    index = torch.arange(size, dtype=torch.int64, device=like.device) + pool * size
    shape = tuple(like.shape[1:])
    return torch.cat([normal(key, some, shape) for some in torch.split(index, DRAWN)])


def squared_distances(x: Tensor, z: Tensor) -> Tensor:
    """``||x_i - z_j||^2 / d`` of (B, *) and (M, *), float32 (B, M), by one product of matrices.

    In float32 whatever the precision of the network: in bfloat16 the product would be rounded by
    more than the distances differ.
    """
    x, z = x.flatten(1), z.flatten(1)
    with torch.autocast(x.device.type, enabled=False):
        squares = x.square().sum(1)[:, None] + z.square().sum(1)
        return torch.addmm(squares, x, z.T, alpha=-2) / x.shape[1]
