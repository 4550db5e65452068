"""Zarr v3 arrays as this project writes them.

Blosc(zstd 3, bitshuffle) is the best of the codecs in the v3 specification for 8-bit images.
numcodecs' delta before zstd 1 makes them an eighth smaller and half as fast to decode, and only
zarr-python reads it.  crc32c turns a flipped bit into an error.  Empty chunks are written, because
zarr reads a missing one as silent zeros.
"""

from __future__ import annotations

import functools
import hashlib
import math
import warnings
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.codecs import BloscCodec, BloscShuffle, Crc32cCodec, ZstdCodec

from rfpp_core.errors import Corrupted, UserError, quoted

MOST, LARGEST = 10**6, 2**30  # shards of an array; bytes of one, and of its noise in float32

Codec = Literal["blosc", "delta-zstd"]

# which the docs say, too
warnings.filterwarnings("ignore", message="Numcodecs codecs are not in the Zarr version 3")
zarr.config.set({"array.write_empty_chunks": True})  # of this process: no file records it


class Layout(NamedTuple):
    """How an array is stored, but for its length: the shape and type of an entry, the entries of
    a chunk, those of a shard (None: a chunk is a file), and the codec."""

    tail: tuple[int, ...]
    dtype: str
    chunk: int
    shard: int | None
    codec: Codec = "blosc"


def create_array(group: zarr.Group, name: str, n: int, layout: Layout) -> zarr.Array[Any]:
    """Creates an array of n entries, chunked (and sharded) along its first axis only."""
    tail, dtype, chunk, shard, codec = layout
    delta = codec == "delta-zstd"
    bits = BloscCodec(cname="zstd", clevel=3, shuffle=BloscShuffle.bitshuffle)
    packed = ZstdCodec(level=1) if delta else bits
    return group.create_array(
        name,
        shape=(n, *tail),
        dtype=dtype,
        chunks=(chunk, *tail),
        shards=None if shard is None else (shard, *tail),
        filters=[_delta(dtype)] if delta else [],
        compressors=[packed, Crc32cCodec()],
        fill_value=-1 if dtype == "int16" else 0,
    )


def _delta(dtype: str) -> Any:
    """numcodecs' delta."""
    from zarr.codecs.numcodecs import Delta  # of zarr 3.1.3 and later

    return Delta(dtype=np.dtype(dtype).str)


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


def check_array(path: Path, group: zarr.Group, name: str, layout: Layout) -> int:
    """The length of an array of the group at ``path``, which must be one that
    :func:`create_array` makes.

    Other chunks and codecs are foreign: they could exhaust the memory, or run code that this
    project does not know.

    Raises:
        Corrupted: if it is missing or another.
    """
    tail, shard = layout.tail, layout.shard or layout.chunk
    file, again = path / name / "zarr.json", "`dvc repro` rebuilds it"
    try:
        found: Any = group[name]
        n = int(found.shape[0])
        have, want = found.metadata.to_dict(), _metadata(layout)
    except Exception as error:  # whatever zarr raises at foreign metadata
        line = quoted(" ".join(f"{type(error).__name__} {error}".split()))
        raise Corrupted(f"{path}: array {name} is not readable: {line}; {again}", file) from None
    wrong = [key for key in want if key != "shape" and have.get(key) != want[key]]
    check_shard(tail, shard)
    if wrong or found.shape[1:] != tail or not 0 < n <= MOST * shard:
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
def _metadata(layout: Layout) -> dict[str, Any]:
    group = zarr.group(zarr.storage.MemoryStore(), zarr_format=3)
    array: Any = create_array(group, "x", layout.shard or layout.chunk, layout)
    document: dict[str, Any] = array.metadata.to_dict()
    return document


def digest_of(*arrays: NDArray[Any]) -> str:
    """sha256 over dtype, shape and content of arrays."""
    sha = hashlib.sha256()
    for array in arrays:
        sha.update(f"{array.dtype.str}{array.shape}".encode())
        sha.update(np.ascontiguousarray(array).data)
    return sha.hexdigest()
