"""Numbers, durations and counts as text."""

from __future__ import annotations

import math

MISSING = "–"


def short(value: float | None, digits: int = 4) -> str:
    """A number of so many digits, those at its end included: 3.480."""
    if value is None or not math.isfinite(value):
        return MISSING
    if value == 0 or abs(value) >= 1000:
        text = f"{value:,.0f}"
    elif abs(value) < 1e-4:
        text = f"{value:.{min(digits, 2)}g}"
    else:
        text = f"{value:#.{digits}g}".rstrip(".")
    return f"−{text[1:]}" if text.startswith("-") else text


def spread(value: float) -> str:
    """A standard deviation; nothing if there is none."""
    return f"± {short(value, 2)}" if math.isfinite(value) and value > 0 else ""


def multiple(value: float) -> str:
    """A ratio: 3.62×."""
    return f"{short(value, 3)}×" if math.isfinite(value) else MISSING


def duration(seconds: float) -> str:
    """Seconds in the units that people use."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 120:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 120:
        return f"{minutes} min"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def plural(n: int, one: str, many: str = "") -> str:
    """A count with its noun: 1 flow, 2 flows."""
    return f"{n:,} {one if n == 1 else many or one + 's'}"


def evaluations(nfe: int) -> str:
    """A number of network evaluations, one as a word."""
    return "one network evaluation" if nfe == 1 else f"{nfe} network evaluations"
