"""Errors a user can cause."""

from __future__ import annotations

from pathlib import Path


class UserError(Exception):
    """One clear line: what is wrong, what is allowed, what to do.  Stages exit with code 2."""


class Damaged(UserError):
    """Files are not what was written to them."""

    def __init__(self, message: str, *files: Path) -> None:
        super().__init__(message)
        self.files = files
