"""Annealed noise: the noise of a pair with a share of fresh noise, which falls during training.

SlimFlow's annealing reflow (arXiv 2407.12718): with the noise z of a pair and fresh z',

    z^beta = sqrt(1 - beta^2) z + beta z'

is standard normal as both are, and its correlation with z is sqrt(1 - beta^2).  At beta = 1 it is
independent of the teacher's image, so a network learns a first flow on these images; at beta = 0
it is plain reflow.  So the training of a student that cannot start from its teacher's weights,
because it is smaller, moves from the one to the other.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from rfpp_core.images.loader import Batch
from rfpp_core.rng import StepRNG
from rfpp_core.training.couplings import Coupled, Coupling
from rfpp_core.training.couplings.independent import independent

Schedule = Callable[[int], float]  # beta in [0, 1] by update, from 0


def linear(step: int, steps: int) -> float:
    """``1 - min(1, step / steps)``, the schedule of the paper: 1 at the first update, 0 from
    update ``steps`` on."""
    return 1 - min(1.0, step / steps)


def cosine(step: int, steps: int) -> float:
    """``(1 + cos(pi min(1, step / steps))) / 2``, with the same ends."""
    return (1 + math.cos(math.pi * min(1.0, step / steps))) / 2


def exponential(step: int, steps: int) -> float:
    """``exp(-step / steps)``: 1 at the first update, and never quite 0."""
    return math.exp(-step / steps)


def annealed(coupling: Coupling, beta: Schedule) -> Coupling:
    """The pairs of a coupling with z^beta in the place of their noise z.

    The fresh noise is that of :func:`independent`, so at beta = 1 this is the independent
    coupling, and at beta = 0 the given one, bit for bit.
    """

    def pair(batch: Batch, draws: StepRNG) -> Coupled:
        x, z, y = coupling(batch, draws)
        share = beta(draws.step)
        if not share:
            return Coupled(x, z, y)
        fresh = independent(batch, draws).z
        return Coupled(x, math.sqrt(1 - share**2) * z + share * fresh, y)

    return pair
