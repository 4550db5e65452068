"""Zarr v3 arrays as this project writes them.

Blosc(zstd 3, bitshuffle) is the best of the codecs in the v3 specification for 8-bit images;
crc32c turns a flipped bit into an error.  Empty chunks are written, because zarr reads a missing
one as silent zeros.
"""

from __future__ import annotations

import functools
import hashlib
import math
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.codecs import BloscCodec, BloscShuffle, Crc32cCodec

from rfpp_core.errors import Corrupted, UserError, quoted

MOST, LARGEST = 10**6, 2**30  # shards of an array; bytes of one, and of its noise in float32

zarr.config.set({"array.write_empty_chunks": True})  # of this process: no file records it


def create_array(
    group: zarr.Group, name: str, shape: tuple[int, ...], dtype: str, chunk: int, shard: int | None
) -> zarr.Array[Any]:
    """Creates an array chunked (and sharded) along its first axis only."""
    shuffle = BloscShuffle.bitshuffle
    return group.create_array(
        name,
        shape=shape,
        dtype=dtype,
        chunks=(chunk, *shape[1:]),
        shards=None if shard is None else (shard, *shape[1:]),
        compressors=[BloscCodec(cname="zstd", clevel=3, shuffle=shuffle), Crc32cCodec()],
        fill_value=-1 if dtype == "int16" else 0,
    )


def open_group(path: Path, made_by: str) -> zarr.Group:
    """Opens a group for reading.

    Raises:
        UserError: naming the command that makes the store.
    """
    try:
        return zarr.open_group(path, mode="r", zarr_format=3)
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"{quoted(path)} is missing; `{made_by}` makes it") from None
    except OSError as error:
        raise UserError(f"{quoted(path)} cannot be read: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, RecursionError, MemoryError) as error:
        raise Corrupted(f"{path} is not a readable Zarr group: {quoted(error, 400)}; `{made_by}` "
                        f"rebuilds it", path / "zarr.json") from None  # fmt: skip


def check_array(
    path: Path,
    group: zarr.Group,
    name: str,
    tail: tuple[int, ...],
    dtype: str,
    chunk: int,
    shard: int | None,
) -> int:
    """The length of an array of the group at ``path``, which must be one that
    :func:`create_array` makes.

    Other chunks and codecs are foreign: they could exhaust the memory, or run code that this
    project does not know.

    Raises:
        Corrupted: if it is missing or another.
    """
    file, again = path / name / "zarr.json", "`dvc repro` rebuilds it"
    try:
        found: Any = group[name]
        n = int(found.shape[0])
        have, want = found.metadata.to_dict(), _metadata(tail, dtype, chunk, shard)
    except Exception as error:  # whatever zarr raises at foreign metadata
        line = quoted(" ".join(f"{type(error).__name__} {error}".split()))
        raise Corrupted(f"{path}: array {name} is not readable: {line}; {again}", file) from None
    wrong = [key for key in want if key != "shape" and have.get(key) != want[key]]
    check_shard(tail, shard or chunk)
    if wrong or found.shape[1:] != tail or not 0 < n <= MOST * (shard or chunk):
        raise Corrupted(f"{path}: array {name} is not one of this project's "
                      f"({', '.join(wrong) or 'shape'}); {again}", file)  # fmt: skip
    return n


def check_shard(tail: tuple[int, ...], shard: int) -> None:
    """Refuses shards that are too large for the memory of a worker.

    Raises:
        UserError: naming the largest.
    """
    most = LARGEST // (4 * math.prod(tail))
    if shard > most:
        raise UserError(f"shards of {shard} images of {'x'.join(map(str, tail))} are too large; "
                        f"at most {most}")  # fmt: skip


@functools.cache
def _metadata(tail: tuple[int, ...], dtype: str, chunk: int, shard: int | None) -> dict[str, Any]:
    group = zarr.group(zarr.storage.MemoryStore(), zarr_format=3)
    array: Any = create_array(group, "x", (shard or chunk, *tail), dtype, chunk, shard)
    document: dict[str, Any] = array.metadata.to_dict()
    return document


def digest_of(*arrays: NDArray[Any]) -> str:
    """sha256 over dtype, shape and content of arrays."""
    sha = hashlib.sha256()
    for array in arrays:
        sha.update(f"{array.dtype.str}{array.shape}".encode())
        sha.update(np.ascontiguousarray(array).data)
    return sha.hexdigest()
