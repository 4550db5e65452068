"""Atomic and durable files, also after a power cut; digests; locks."""

from __future__ import annotations

import csv
import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def write_atomic(path: Path, write: Callable[[Path], object]) -> None:
    """Calls ``write(temporary)``, makes the result durable and renames it to ``path``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        write(temporary)
        sync(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    sync(path.parent)


def link(source: Path, target: Path) -> None:
    """Hard link, or a copy where the file system has none."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def replace(source: Path, target: Path) -> None:
    """Renames a file over another; makes its directory if needed."""
    target.parent.mkdir(parents=True, exist_ok=True)
    os.replace(source, target)
    sync(target.parent)


def replace_tree(building: Path, target: Path) -> None:
    """Renames a finished directory to ``target``; what is there before is removed."""
    old = target.with_name(f".{target.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():
        target.rename(old)
    building.rename(target)
    shutil.rmtree(old, ignore_errors=True)


def make_writable(path: Path) -> None:
    """Makes a corrupted file writable.

    DVC trusts a read-only file as one that it linked from its cache, and would link the corrupted
    one again; of a writable one it computes the digest.
    """
    if path.is_file():
        path.chmod(path.stat().st_mode | 0o200)


def sync(path: Path) -> None:
    """fsync of a file or a directory."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sha256(path: Path) -> str:
    """sha256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest(document: Any) -> str:
    """sha256 of a JSON document's canonical form."""
    return hashlib.sha256(canonical(document).encode()).hexdigest()


def canonical(document: Any) -> str:
    """Canonical JSON: sorted keys, no spaces, no NaN."""
    return json.dumps(document, sort_keys=True, separators=(",", ":"), allow_nan=False)


def write_csv(path: Path, rows: Sequence[Mapping[str, object]]) -> None:
    """Writes rows that share their keys."""

    def write(part: Path) -> None:
        with part.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)

    write_atomic(path, write)


def write_json(path: Path, document: Any) -> None:
    """Writes a JSON document for people to read."""
    text = json.dumps(document, indent=1, sort_keys=True) + "\n"
    write_atomic(path, lambda part: part.write_text(text))


def publish(source: Path, target: Path) -> None:
    """Links (or copies) a finished file and renames the link into place; the source stays."""
    target.parent.mkdir(parents=True, exist_ok=True)
    for left in target.parent.glob(f".{target.name}.*.partial"):
        left.unlink(missing_ok=True)
    part = target.with_name(f".{target.name}.{os.getpid()}.partial")
    link(source, part)
    os.replace(part, target)


@contextmanager
def locked(path: Path, what: str, say: Callable[[str], None]) -> Iterator[None]:
    """Holds an flock, which the kernel releases however its holder ends; says so if it has to
    wait."""
    with path.open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            say(f"{what} is busy in process {lock.read().strip() or '?'}; waiting for it")
            fcntl.flock(lock, fcntl.LOCK_EX)
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        yield


@contextmanager
def unless_busy(path: Path) -> Iterator[bool]:
    """Whether an flock was free; if so, holds it."""
    with path.open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True
