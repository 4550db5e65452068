"""Tables of alternatives: what the value of a param stands for.

Identities treat a table annotated ``Choices[...]`` as special (``pipeline.work.identity``): a
result depends on the entries that its params name and on no others, so a new entry changes no
result that does not use it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias, TypeVar

T = TypeVar("T")
Choices: TypeAlias = Mapping[str, T]
