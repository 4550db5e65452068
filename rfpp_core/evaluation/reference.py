"""Features of real images, which sample sets are compared with.

Every table has two rows of real images, as many as there are samples: a bootstrap of the training
split (the floor, below which no generator is expected) and one of the held-out split.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rfpp_core.evaluation import distances
from rfpp_core.rng import subkey, uniform

ROWS = ("floor", "held_out_row")  # the two rows of real images in a table
MOST = 10_000  # images of a set for KID, precision and recall, whose cost is the square of it


class Real(NamedTuple):
    """Real images by one feature net: features (N, D) of both splits, and their moments, on the
    device where they are compared."""

    train: Tensor
    held_out: Tensor
    moments: tuple[distances.Gaussian, distances.Gaussian]


def real_of(train: Tensor, held_out: Tensor) -> Real:
    """Features of both splits with their moments."""
    return Real(train, held_out, (distances.gaussian(train), distances.gaussian(held_out)))


def compare(real: Real, fake: Tensor, neighbours: int) -> tuple[float, float, float, float, float]:
    """Metrics of a sample set, in the order of ``distances.columns``.

    KID (on standardised features), precision and recall are to the training split, and of at most
    10,000 images of each set.

    Args:
        real: features of real images.
        fake: features (N, D) of the samples, on any device.
        neighbours: k of precision and recall.
    """
    fake = fake.to(real.train.device)
    of_fake = distances.gaussian(fake)
    fd, fd_held_out = (distances.frechet(of_fake, to) for to in real.moments)
    train, fakes = _spread(real.train), _spread(fake)
    kid = distances.kid(fakes, train, distances.standardizer(train))
    return fd, fd_held_out, kid, *distances.precision_recall(train, fakes, neighbours)


def real_rows(
    real: Real, n: int, seeds: int, neighbours: int, seed: int
) -> dict[str, NDArray[Any]]:
    """Metrics of real images, (seeds, 5) for each of ``ROWS``.

    Frechet distances are those of bootstraps of n images.  A bootstrap repeats images, which
    distorts KID and makes copies each other's neighbours; so KID, precision and recall of the
    held-out split are those of its distinct images, and the training split against itself has
    none (NaN).

    Args:
        real: features of both splits.
        n: images of a bootstrap.
        seeds: bootstraps.
        neighbours: of precision and recall.
        seed: of the bootstraps.
    """
    rows = {}
    distinct = compare(real, real.held_out, neighbours)
    for row, part in zip(ROWS, (real.train, real.held_out), strict=True):
        found = []
        for i in range(seeds):
            some = distances.gaussian(_resample(part, n, seed, f"{row} {i}"))
            fd, fd_held_out = (distances.frechet(some, to) for to in real.moments)
            others = distinct[2:] if part is real.held_out else (np.nan,) * 3
            found.append((fd, fd_held_out, *others))
        rows[row] = np.array(found)
    return rows


def _spread(rows: Tensor) -> Tensor:
    """At most 10,000 rows, evenly spread."""
    if len(rows) <= MOST:
        return rows
    return rows[torch.linspace(0, len(rows) - 1, MOST, dtype=torch.float64).round().long()]


def _resample(rows: Tensor, n: int, seed: int, purpose: str) -> Tensor:
    """A bootstrap sample of n rows."""
    pick = uniform(subkey(seed, purpose), torch.arange(n)) * len(rows)
    return rows[pick.long().to(rows.device)]
