"""Errors a user can cause."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path


def quoted(text: object, most: int = 200) -> str:
    """Foreign text for a message: what a terminal would act on is escaped (line ends, ESC,
    characters that turn the direction of writing), and what is longer than ``most`` is cut."""
    try:
        raw = str(text)
    except ValueError:  # a number of thousands of digits
        raw = f"a {type(text).__name__} too long to print"
    return escaped(raw if len(raw) <= most else f"{raw[:most]}...")


def escaped(text: str) -> str:
    """Text as a line that a terminal prints and does not act on."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


class UserError(Exception):
    """One clear line: what is wrong, what is allowed, what to do.  Stages exit with code 2."""


class Several(UserError):
    """Several things are wrong: what they have in common, and a numbered line each."""

    def __init__(self, heading: str, wrong: Sequence[str]) -> None:
        self.lines = [heading, *(f"  {i}. {line}" for i, line in enumerate(wrong, 1))]
        super().__init__("\n".join(self.lines))


class Corrupted(UserError):
    """Files are not what was written to them."""

    def __init__(self, message: str, *files: Path) -> None:
        super().__init__(message)
        self.files = files
