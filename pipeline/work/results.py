"""Cached measurements: a small file each, named by the digest of what determines it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from rfpp_core.storage import files


class Results:
    """The measurements in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def find(self, document: Mapping[str, Any]) -> Any:
        """The value of a measurement; None if it is not there or its file is corrupted."""
        with suppress(OSError, ValueError, KeyError, TypeError):
            found = json.loads(self._file(document).read_text())
            same = files.canonical(found["of"]) == files.canonical(document)
            if same and found["digest"] == _digest(found["value"]):
                return found["value"]
        return None

    def save(self, document: Mapping[str, Any], value: Any) -> None:
        """Writes the value of a measurement."""
        found = {"of": document, "value": value, "digest": _digest(value)}
        files.write_json(self._file(document), found)

    def once(self, document: Mapping[str, Any], measure: Callable[[], Any]) -> Any:
        """The cached value of a measurement, or else a new one."""
        found = self.find(document)
        if found is None:
            found = measure()
            self.save(document, found)
        return found

    def _file(self, document: Mapping[str, Any]) -> Path:
        return self.folder / f"{files.digest(document)[:16]}.json"


def _digest(value: Any) -> str:
    return files.digest(json.dumps(value, sort_keys=True))  # of the text: it may hold NaN
