"""Stage ``source``: a fingerprint of the raw images and labels -> data/source.json.

The other stages depend on the fingerprint instead of ``dataset.path``.  So the same images at
another path change nothing, an edited labels file reruns ``prepare``, a missing path is one clear
line, and a clone without the raw images (``git clone``, ``dvc pull``) runs everything that needs
only the prepared ones.  The stage always runs; the digest of an unchanged file is cached.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml

from pipeline import artifacts, console
from rfpp_core.config import params
from rfpp_core.config.dataset import Dataset
from rfpp_core.errors import UserError, quoted
from rfpp_core.images.decode import first_line
from rfpp_core.images.listing import is_hidden
from rfpp_core.storage import files

WATCHED = ("name", "path", "labels")  # params of the stage, in dataset


def run() -> None:
    section = params.load().dataset
    found = fingerprint(section)
    if found is None:
        found = prepared(section)
        print(f"source: {quoted(section.path)} is not here; the images prepared from it are used")
    files.write_json(artifacts.FINGERPRINT, found)


def fingerprint(section: Dataset) -> dict[str, Any] | None:
    """The fingerprint of the raw images; None if they are not here.

    Raises:
        UserError: if they cannot be read, or contain the project itself.
    """
    if section.name != "folder":
        return {"name": section.name}
    path = artifacts.located(section.path)
    if _contains_project(path):
        raise UserError(f"dataset.path '{quoted(section.path)}' contains this project; give a "
                        f"folder or a zip of images alone")  # fmt: skip
    known = _Digests(artifacts.work() / "source-digests.json")
    content = _of(path, known)
    if content is None:
        return None
    found: dict[str, Any] = {"name": "folder", "images": content, "labels": section.labels}
    if section.labels not in ("folders", "none"):
        found["labels"] = _of(artifacts.located(section.labels), known)
        if found["labels"] is None:
            raise UserError(f"dataset.labels '{quoted(section.labels)}' does not exist; it is "
                            f"'folders', 'none' or a CSV file of name,label rows")  # fmt: skip
    known.save()
    return found


def prepared(section: Dataset) -> dict[str, Any]:
    """The fingerprint stored with the prepared images, if they were prepared by these params.

    Raises:
        UserError: if the raw images are needed.
    """
    with suppress(OSError, ValueError, KeyError, TypeError, yaml.YAMLError):
        recorded = yaml.safe_load(Path("dvc.lock").read_text())["stages"]["source"]["params"]
        then = recorded["params.yaml"]
        if all(then[f"dataset.{name}"] == getattr(section, name) for name in WATCHED):
            attributes = json.loads((artifacts.IMAGES / "zarr.json").read_text())["attributes"]
            return dict(attributes["rfpp"]["source_fingerprint"])
    raise UserError(f"dataset.path '{quoted(section.path)}' is not there or empty; put images "
                    f"into it, or set dataset.path to a folder or a zip of images")  # fmt: skip


def _contains_project(path: Path) -> bool:
    try:
        return Path(os.path.realpath(path)) in (Path.cwd(), *Path.cwd().parents)
    except (OSError, ValueError):  # no file can have this name
        return False


def _of(path: Path, known: _Digests) -> str | None:
    """The digest of a file, or of a folder's names and contents; None if there is none."""
    try:
        if path.is_file():
            return known.of(path)
        sha = hashlib.sha256()
        names = [*_names(path)]
        with console.bar("source", len(names), "file") as bar:
            for name in names:
                sha.update(os.fsencode(name) + b"\0" + known.of(path / name).encode())
                bar.update()
    except (OSError, ValueError) as error:
        name = quoted(getattr(error, "filename", None) or path)
        raise UserError(f"{name} cannot be read: {first_line(error)}") from None
    return sha.hexdigest() if names else None


def _names(folder: Path) -> Iterator[str]:
    """Files below a folder, relative to it and in order, but hidden and system ones."""
    seen = set()

    def fail(error: OSError) -> None:
        if not isinstance(error, FileNotFoundError):
            raise error

    for at, folders, names in os.walk(folder, onerror=fail, followlinks=True):
        if (real := os.path.realpath(at)) in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not is_hidden(name))
        for name in sorted(names):
            if not is_hidden(name):
                yield os.path.relpath(os.path.join(at, name), folder)


class _Digests:
    """sha256 of files, cached by size, inode and modification times."""

    def __init__(self, file: Path) -> None:
        self.file, self.now = file, dict[str, list[Any]]()
        self.cached: dict[str, list[Any]] = {}
        with suppress(OSError, ValueError, AttributeError):
            self.cached = dict(json.loads(file.read_text()).items())

    def of(self, path: Path) -> str:
        """sha256 of a file's bytes."""
        metadata = path.stat()
        stamp = [metadata.st_size, metadata.st_ino, metadata.st_mtime_ns, metadata.st_ctime_ns]
        name = os.path.realpath(path).encode(errors="backslashreplace").decode()
        known = self.cached.get(name)
        unchanged = isinstance(known, list) and known[:-1] == stamp
        self.now[name] = known if known and unchanged else [*stamp, files.sha256(path)]
        return str(self.now[name][-1])

    def save(self) -> None:
        files.write_json(self.file, self.now)


if __name__ == "__main__":
    console.main(run)
