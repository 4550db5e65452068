"""How a flow looks, wherever it is shown: a colour, a dash and a marker.

The eight colours differ for people who confuse red with green, or blue with yellow, and stand out
from white and from black alike; after eight flows they come again with another dash.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

COLOURS = ("#0077bb", "#dd5500", "#12a795", "#b4277d", "#9977ff", "#8800ff", "#997766", "#c975c9")
MARKERS = "os^DvPX*"
DASHES = (("-", "solid"), ("--", "dashed"), (":", "dotted"), ("-.", "double"))  # figure, page
NEUTRAL = "#7a7e85"  # text and axes of figures, legible on white and on black
PAPER, NIGHT = "#ffffff", "#111417"  # backgrounds of the page


class Look(NamedTuple):
    """Colour, dash and marker in figures, and dash on the page."""

    colour: str
    dash: str
    marker: str
    border: str


def look(i: int) -> Look:
    """Of flow i of a run."""
    dash, border = DASHES[i // len(COLOURS) % len(DASHES)]
    return Look(COLOURS[i % len(COLOURS)], dash, MARKERS[i % len(MARKERS)], border)


def looks(flows: Iterable[str]) -> dict[str, Look]:
    """Of each flow of a run, in the order of the params."""
    return {flow: look(i) for i, flow in enumerate(flows)}
