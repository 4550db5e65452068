"""Commit markers of a pair store: ``commits/000000.json`` says that shard 0 is complete.

A marker is canonical JSON: digests of the shard's files, of its content and of its first noise
sample (``noise_witness``), and the sha256 of all that.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rfpp_core.storage import files

Marker = dict[str, Any]


def found(store: Path) -> dict[int, Path]:
    """The marker files of a store, by shard."""
    names = (store / "commits").glob("*.json")
    return {int(name.stem): name for name in names if re.fullmatch(r"\d{6,}", name.stem)}


def read(path: Path) -> Marker | None:
    """The marker in a file; None if it is not a marker, or not as it was written."""
    try:
        marker: Marker = dict(json.loads(path.read_text()))
        stated = marker.pop("sha256")
        _ = marker["noise_witness"], marker["pairs_sha256"], dict(marker["files"])
        return marker if stated == files.digest(marker) else None
    except (OSError, ValueError, KeyError, TypeError, RecursionError, MemoryError):
        return None


def write(path: Path, marker: Mapping[str, Any]) -> None:
    """Writes a marker durably."""
    text = files.canonical({**marker, "sha256": files.digest(marker)})
    files.write_atomic(path, lambda part: part.write_text(text))


def drop_bad(store: Path) -> list[int]:
    """Removes corrupted markers, so that their shards are regenerated; which they were."""
    bad = [(k, name) for k, name in sorted(found(store).items()) if read(name) is None]
    for _, name in bad:
        files.make_writable(name)
        name.unlink()
    return [k for k, _ in bad]
