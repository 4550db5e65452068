"""How figures are measured, and what one is."""

from __future__ import annotations

import resource
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch

Action = Callable[[], Any]


class Figure(NamedTuple):
    """A measured value.

    Attributes:
        group: what is compared with one another.
        name: of this one.
        value: in ``unit``.
        ratio: to the reference of its group, which has 1; None where there is none.
    """

    group: str
    name: str
    value: float
    unit: str
    ratio: float | None = None


def in_turns(
    actions: Mapping[str, Action], rounds: int = 5, least: float = 0.2
) -> dict[str, float]:
    """Seconds of a call of each action: the median over rounds, in which all take their turn, so
    that a busy machine slows all alike.

    Args:
        actions: by name.
        rounds: how many, after one call of each to warm up.
        least: seconds for which an action is repeated in its turn.
    """
    found: dict[str, list[float]] = {name: [] for name in actions}
    for act in actions.values():
        act()
    for _ in range(rounds):
        for name, act in actions.items():
            calls, began = 0, time.perf_counter()
            while (passed := time.perf_counter() - began) < least or not calls:
                act()
                calls += 1
            found[name].append(passed / calls)
    return {name: statistics.median(values) for name, values in found.items()}


def waiting(act: Action, device: torch.device) -> Action:
    """The action and, on CUDA, the end of what it has started."""
    if device.type != "cuda":
        return act

    def waited() -> None:
        act()
        torch.cuda.synchronize(device)

    return waited


def rates(group: str, unit: str, items: int, seconds: Mapping[str, float]) -> list[Figure]:
    """Items a second of each, and the ratio to the first."""
    first = next(iter(seconds.values()))
    return [Figure(group, name, items / value, unit, first / value)
            for name, value in seconds.items()]  # fmt: skip


def costs(group: str, unit: str, items: float, seconds: Mapping[str, float]) -> list[Figure]:
    """Time an item of each, in ``unit`` (ns, us, ms, s), and the ratio to the first."""
    scale = {"ns": 1e9, "us": 1e6, "ms": 1e3, "s": 1.0}[unit.partition(" ")[0]]
    first = next(iter(seconds.values()))
    return [Figure(group, name, scale * value / items, unit, value / first)
            for name, value in seconds.items()]  # fmt: skip


def peak_memory() -> float:
    """The most memory this process ever held, in GB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak * (1 if sys.platform == "darwin" else 1024) / 1e9


def lines(figures: list[Figure]) -> list[str]:
    """A table for people."""
    found, group = [], None
    for figure in figures:
        if figure.group != group:
            found += ["", figure.group]
            group = figure.group
        ratio = "" if figure.ratio is None else f"  x {figure.ratio:.3g}"
        found.append(f"  {figure.name:<44} {figure.value:>12,.4g} {figure.unit}{ratio}")
    return found[1:]
