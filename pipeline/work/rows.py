"""Rows of the params that a command line names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

from rfpp_core.errors import UserError, quoted

Row = TypeVar("Row")


def named(rows: Mapping[str, Row], name: str, section: str) -> Row:
    """The row of a section.

    Raises:
        UserError: if there is none, naming those there are.
    """
    if name not in rows:
        raise UserError(f"{section} has no row '{quoted(name)}' in params.yaml (rows: "
                        f"{', '.join(rows) or 'none'})")  # fmt: skip
    return rows[name]
