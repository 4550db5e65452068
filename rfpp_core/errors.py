"""Errors a user can cause."""

from __future__ import annotations


class UserError(Exception):
    """One clear line: what is wrong, what is allowed, what to do.  Stages exit with code 2."""
