"""Whether noise is what it should be: standard normal, and no sample there twice."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

SIGMAS = 6.0  # standard errors that the mean and the standard deviation may be off
KEY = 8  # values that tell two noise samples apart


class NoiseCheck:
    """Mean, standard deviation and repetitions of noise that is added part by part."""

    def __init__(self) -> None:
        self.seen: set[bytes] = set()
        self.samples = self.values = 0
        self.total = self.squares = 0.0

    def add(self, z: NDArray[np.float32]) -> bool:
        """Adds noise samples (N, ...); whether one of them repeats another."""
        rows, before = z.reshape(len(z), -1), self.repeats
        self.seen |= {row.tobytes() for row in rows[:, :KEY]}
        self.samples += len(z)
        wide = rows.astype(np.float64)
        self.values += wide.size
        self.total += float(wide.sum())
        self.squares += float(np.square(wide).sum())
        return self.repeats > before

    @property
    def repeats(self) -> int:
        """How many samples repeat another."""
        return self.samples - len(self.seen)

    @property
    def mean(self) -> float:
        return self.total / self.values

    @property
    def std(self) -> float:
        """The root of the mean square."""
        return math.sqrt(self.squares / self.values)

    @property
    def normal(self) -> bool:
        """Whether mean and standard deviation are within sampling error of 0 and 1."""
        near = abs(self.mean) <= SIGMAS / math.sqrt(self.values)
        return near and abs(self.std - 1) <= SIGMAS / math.sqrt(2 * self.values)
