"""Places in a foreign file: tensors, bytes and text that stay there until they are accessed, and
readers that count what they read, so that no file takes more time or memory than a network's.
"""

from __future__ import annotations

import codecs
import io
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rfpp_core.errors import UserError, quoted

# Far beyond any network, yet too little for a hostile file to do harm.
LONGEST, MOST_READS, MOST_BYTES = 1 << 22, 1 << 20, 1 << 26
NAME, HEAD, CHUNK = 1024, 4096, 1 << 20


def refuse(what: str, *_: Any) -> NoReturn:
    """Raises the error of a file that holds what is not read."""
    raise UserError(f"holds {quoted(what)}, which is refused: only tensors are read and nothing "
                    f"is run; save a plain state dict")  # fmt: skip


class Span(NamedTuple):
    """Bytes that stay in the file; with ``text`` they are stored as UTF-8 of Latin-1, as pickle's
    protocol 2 writes bytes."""

    start: int
    stop: int
    text: bool = False

    def size(self, file: int) -> int:
        """How many bytes there are, decoded; reads all text once."""
        return sum(map(len, self._decoded(file))) if self.text else self.stop - self.start

    def part(self, file: int, at: int, size: int) -> NDArray[np.uint8]:
        """``size`` bytes from ``at``.

        Raises:
            UserError: if the file became shorter.
        """
        data, filled, here = np.empty(size, np.uint8), 0, 0
        for chunk in self._decoded(file) if self.text else self._plain(file, at, size):
            skip = max(0, at - here) if self.text else 0
            piece = np.frombuffer(chunk, np.uint8)[skip : skip + size - filled]
            data[filled : filled + len(piece)] = piece
            filled, here = filled + len(piece), here + len(chunk)
            if filled == size:
                return data
        if size:
            raise UserError("is cut short while it is read; fetch it again")
        return data

    def _plain(self, file: int, at: int, size: int) -> Iterator[bytes]:
        first = self.start + at
        for here in range(first, first + size, CHUNK):
            yield os.pread(file, min(CHUNK, first + size - here), here)

    def _decoded(self, file: int) -> Iterator[bytes]:
        decode = codecs.getincrementaldecoder("utf-8")().decode
        for at in range(self.start, self.stop, CHUNK):
            size = min(CHUNK, self.stop - at)
            yield decode(os.pread(file, size, at), at + size == self.stop).encode("latin-1")


@dataclass
class Storage:
    """``numel`` elements in a file; their place is known once all of the pickle is read."""

    dtype: torch.dtype
    numel: int
    data: Span | bytes | None = None
    start: int = 0  # bytes into ``data``


class View(NamedTuple):
    """A tensor that stays in the file: ``at``, ``size`` and ``stride`` in elements."""

    storage: Storage
    at: int
    size: tuple[int, ...]
    stride: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return math.prod(self.size) * self.storage.dtype.itemsize

    @property
    def extent(self) -> int:
        """Elements from the first to the last."""
        steps = sum((n - 1) * step for n, step in zip(self.size, self.stride, strict=True))
        return 0 if 0 in self.size else 1 + steps

    def read(self, path: Path) -> Tensor:
        dtype, data = self.storage.dtype, self.storage.data
        start = self.storage.start + self.at * dtype.itemsize
        size = self.extent * dtype.itemsize
        if isinstance(data, Span):
            with path.open("rb") as file:
                found = data.part(file.fileno(), start, size)
        else:
            found = np.frombuffer(data or b"", np.uint8)[start : start + size].copy()
        flat = torch.from_numpy(found).view(dtype) if size else torch.empty(0, dtype=dtype)
        return flat.as_strided(self.size, self.stride)


class Source(io.FileIO):
    """A file that refuses to read what is not there, or more in all than a network needs."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.length, self.reads, self.bytes = os.fstat(self.fileno()).st_size, 0, 0
        self.storages: dict[Span, Storage] = {}  # of nested files, each read once

    def count(self, size: int) -> None:
        self.reads, self.bytes = self.reads + 1, self.bytes + size
        if size > LONGEST or self.reads > MOST_READS or self.bytes > MOST_BYTES:
            refuse("content longer than any network's")

    def read(self, size: int | None = -1) -> bytes:  # by zipfile
        left = max(0, self.length - self.tell())
        self.count(left if size is None or size < 0 else min(size, left))
        return super().read(size)


class Cursor:
    """What a pickle is read from: a part of a file, or the bytes that text in it stands for."""

    def __init__(self, source: Source, data: Span | bytes) -> None:
        self.source, self.data, self.at = source, data, 0
        self.head: bytes | None = data if isinstance(data, bytes) else None
        self.size = len(data) if isinstance(data, bytes) else data.size(source.fileno())
        if isinstance(data, Span) and data.text:
            self.head = data.part(source.fileno(), 0, min(HEAD, self.size)).tobytes()

    def take(self, size: int) -> int:
        """Passes over bytes and returns where they began."""
        if size > self.size - self.at:
            raise UserError(f"is cut short ({size} bytes at {self.at}, {self.size} in all); fetch "
                            f"it again")  # fmt: skip
        self.at += size
        return self.at - size

    def read(self, size: int) -> bytes:
        self.source.count(size)
        at = self.take(size)
        return self._peek(at, size)

    def readline(self) -> bytes:
        self.source.count(0)
        line, newline, _ = self._peek(self.at, min(NAME, self.size - self.at)).partition(b"\n")
        if not newline:
            refuse("a line longer than any name")
        self.source.count(len(line))
        self.at += len(line) + 1
        return line + newline

    def span(self, size: int, text: bool = False) -> Span:
        """Passes over bytes; on the stack, their place stands for them."""
        at = self.take(size)
        if not isinstance(self.data, Span) or self.data.text:
            refuse("bytes in text")
        return Span(self.data.start + at, self.data.start + at + size, text)

    def _peek(self, at: int, size: int) -> bytes:
        if self.head is None:
            assert isinstance(self.data, Span)
            return os.pread(self.source.fileno(), size, self.data.start + at)
        if at + size > len(self.head):
            refuse("a storage with more than a storage in it")
        return self.head[at : at + size]
