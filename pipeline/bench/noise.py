"""Counted noise beside ``torch.randn`` and NumPy's Philox; times drawn one by one and ahead."""

from __future__ import annotations

import math
from itertools import count, islice

import numpy as np
import torch

from pipeline.bench.measure import Action, Figure, costs, in_turns, waiting
from rfpp_core import rng
from rfpp_core.rng import box_muller

DRAWS = {"images of 3x32x32": (342, (3, 32, 32)), "a batch of digits": (128, (1, 8, 8))}
BATCH = 512  # of the times


def run() -> list[Figure]:
    """Nanoseconds a value, by device."""
    devices = [torch.device("cpu")]
    devices += [torch.device("cuda")] if torch.cuda.is_available() else []
    found = []
    for device in devices:
        for name, (n, shape) in DRAWS.items():
            seconds = in_turns(_noise(n, shape, device))
            values = n * math.prod(shape)
            found += costs(f"noise on {device}: {values:,} values, {name}", "ns", values, seconds)
    seconds = in_turns({"a step at a time": _one_by_one(), "ahead": _ahead()})
    return found + costs(f"times of a batch of {BATCH}, antithetic", "ms", rng.AHEAD, seconds)


def _noise(n: int, shape: tuple[int, ...], device: torch.device) -> dict[str, Action]:
    index, size = torch.arange(n, device=device), math.prod(shape)
    numpy = np.random.Generator(np.random.Philox(1))

    actions: dict[str, Action] = {"torch.randn": lambda: torch.randn(n, *shape, device=device)}
    if device.type == "cpu":
        actions["NumPy Philox"] = lambda: numpy.standard_normal((n, *shape), dtype=np.float32)
    actions["as drawn here"] = lambda: rng.normal(1, index, shape)
    actions["the definition"] = lambda: box_muller.normal(1, index, size)
    return {name: waiting(act, device) for name, act in actions.items()}


def _one_by_one() -> Action:
    """The times of ``rng.AHEAD`` steps, new ones at every call."""
    steps, device = count(), torch.device("cpu")
    return lambda: [rng.antithetic_rows(0, "t", step, 1, BATCH, device)
                    for step in islice(steps, rng.AHEAD)]  # fmt: skip


def _ahead() -> Action:
    """The same, as a training draws them."""
    steps = count()
    return lambda: [rng.StepRNG(1, step, BATCH).antithetic("t")
                    for step in islice(steps, rng.AHEAD)]  # fmt: skip
