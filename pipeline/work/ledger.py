"""The budget of a flow: network forwards, of one image each, spent on it and its ancestors.

A ledger maps each training and set of pairs to its forwards: those of pair generation, and three
per training image.  An ancestor that is reached by two ways counts once.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def key(kind: str, digest: str) -> str:
    """The name of an entry."""
    return f"{kind}/{digest[:16]}"


def of(metadata: Mapping[str, Any], digest: str) -> dict[str, int]:
    """The ledger of a model file; of an import, which has none, its stated budget."""
    provenance = metadata["provenance"]
    if "ledger" in provenance:
        return {str(name): int(forwards) for name, forwards in provenance["ledger"].items()}
    stated = int(provenance["budget_with_ancestors"])
    return {key("import", digest): stated} if stated else {}


def union(*ledgers: Mapping[str, int]) -> dict[str, int]:
    """All entries, each once."""
    return {name: forwards for ledger in ledgers for name, forwards in ledger.items()}
