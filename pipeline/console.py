"""What people see while a stage runs."""

from __future__ import annotations

import sys
from typing import Any

from tqdm import tqdm

LINE_SECONDS = 30.0  # between two lines of progress in a log


class _Lines:
    """Each state of a bar as a line of its own, for a log that is no terminal."""

    def write(self, text: str) -> int:
        if line := text.strip("\r\n "):
            sys.stderr.write(f"{line}\n")
        return len(text)

    def flush(self) -> None:
        sys.stderr.flush()


def bar(what: str, total: int, unit: str, done: int = 0, quiet: bool = False) -> tqdm[Any]:
    """A progress bar in a terminal; in a log a line every 30 seconds, and none of what is quick.

    Args:
        what: the stage.
        total: of units.
        unit: such as img.
        done: units done before, by a run that this one resumes.
        quiet: show nothing (in all but the first of several processes).
    """
    terminal = sys.stderr.isatty()
    seconds = 1.0 if terminal else LINE_SECONDS
    return tqdm(
        desc=what, total=total, initial=done, unit=unit, unit_scale=total > 9999, disable=quiet,
        file=sys.stderr if terminal else _Lines(), leave=terminal, ncols=None if terminal else 100,
        mininterval=seconds, maxinterval=seconds, delay=0 if terminal else LINE_SECONDS,
    )  # fmt: skip
