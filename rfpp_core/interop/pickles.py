"""Pickles read as data: an interpreter of few opcodes that can call nothing but ``_make``.

It reads what torch and NVlabs write: bare pickles, the archives and the older files of
``torch.save``, and such files inside pickles.  It builds containers, numbers, text and records.
An allowed name becomes ``_make`` with that name, which checks the arguments.  Tuples and sets
become lists: the hash of a deep tuple as a key would exhaust the C stack, and a set of numbers of
one hash would take hours.  Tensors are records of their place in the file until they are accessed.
What is read is counted, so every file is read in bounded time and memory, which torch's own reader
does not promise.
"""

from __future__ import annotations

import math
import os
import pickle
import pickletools
import re
import struct
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from rfpp_core.errors import UserError
from rfpp_core.interop.spans import NAME, Cursor, Source, Span, Storage, View, refuse
from rfpp_core.storage import checkpoint

DTYPES = {torch.float64: "Double", torch.float32: "Float", torch.float16: "Half",
          torch.bfloat16: "BFloat16", torch.int64: "Long", torch.int32: "Int",
          torch.int16: "Short", torch.int8: "Char", torch.uint8: "Byte",
          torch.bool: "Bool"}  # fmt: skip
TYPES = {f"torch.{name}Storage": dtype for dtype, name in DTYPES.items()}
TYPES |= {str(dtype): dtype for dtype in DTYPES}
BOTH = {"collections.OrderedDict", "torch._utils._rebuild_tensor_v2",
        "torch._utils._rebuild_parameter", "_codecs.encode", "builtins.set", "__builtin__.set",
        "builtins.bytes", "__builtin__.bytes"}  # fmt: skip
STATE_NAMES = BOTH | {
    "torch.Size",
    "torch.device",
    "torch._utils._rebuild_tensor",
    "torch.nn.parameter.Parameter",
}  # the last two of torch before 0.4
NVLABS_NAMES = BOTH | {
    "torch_utils.persistence._reconstruct_persistent_obj", "torch.storage._load_from_bytes",
    "torch.nn.modules.container.ModuleDict", "numpy.dtype",
    "numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar"}  # fmt: skip
PLAIN = """PROTO STOP NONE NEWTRUE NEWFALSE BININT BININT1 BININT2 BINFLOAT EMPTY_LIST APPEND
    APPENDS EMPTY_DICT SETITEM SETITEMS BINGET LONG_BINGET BINPUT LONG_BINPUT MEMOIZE GLOBAL
    STACK_GLOBAL INST REDUCE"""
BYTES = {"SHORT_BINBYTES": 1, "BINBYTES": 4, "BINBYTES8": 8, "BYTEARRAY8": 8}
TEXT = {"SHORT_BINUNICODE": 1, "BINUNICODE": 4, "BINUNICODE8": 8}
DEEPEST = 1000  # far beyond any network
LEGACY_VERSION = 1001  # of torch's older files, after their magic number


Persist = Callable[[Any], Storage]


@dataclass
class Parameter:
    """A parameter as torch before 0.4 pickled it: its tensor comes as its state."""

    tensor: Any = None


class Machine(pickle._Unpickler):
    """Reads one pickle; ``persist`` finds the storages that it names, where it may name any."""

    def __init__(self, cursor: Cursor, names: set[str], persist: Persist | None = None) -> None:
        super().__init__(cursor)
        self.cursor, self.names, self.persist = cursor, names, persist

    def find_class(self, module: str, name: str) -> Any:
        full = f"{module}.{name}"
        if "." not in name and self.persist and full in TYPES:
            return TYPES[full]
        if "." in name or full not in self.names:
            refuse(full)
        return partial(_make, self.cursor.source, full)

    def mark(self: Any) -> None:
        if len(self.metastack) == DEEPEST:
            refuse("marks deeper than any network's")
        BASE["MARK"](self)

    def build(self: Any) -> None:
        state, target = self.stack.pop(), self.stack[-1]
        if type(target) is SimpleNamespace and type(state) is dict:
            target.state = state
        elif type(target) is dict and type(state) is dict and [*state] == ["_metadata"]:
            pass  # versions of modules, beside a state dict
        elif type(target) is Parameter and type(state) is list and len(state) in (3, 5):
            target.tensor = state[0] if len(state) == 5 else target.tensor
        elif not isinstance(target, np.dtype) or state[1] not in ("<", "|"):
            refuse("a state for something that is not a module")

    def long(self: Any) -> None:
        data = self.read(self.read(1)[0])
        value = int.from_bytes(data, "little", signed=True)
        if len(data) > 8 and value != torch.serialization.MAGIC_NUMBER:
            refuse("a number of more than 8 bytes")
        self.append(value)

    def text(self: Any, width: int) -> None:
        size = int.from_bytes(self.read(width), "little")
        if size > NAME:
            self.append(self.cursor.span(size, text=True))
        else:
            self.append(str(self.read(size), "utf-8", "surrogatepass"))

    def span(self: Any, width: int) -> None:
        self.append(self.cursor.span(int.from_bytes(self.read(width), "little")))

    def row(self: Any, count: int) -> None:
        self.append([self.stack.pop() for _ in range(count)][::-1])

    def additems(self: Any) -> None:
        items = self.pop_mark()
        self.stack[-1].extend(items)

    def frame(self: Any) -> None:
        """A hint to read ahead: it must fit, and is not followed."""
        size = int.from_bytes(self.read(8), "little")
        self.cursor.at = self.cursor.take(size)

    def persid(self: Any) -> None:
        if self.persist is None:
            refuse("the opcode BINPERSID")
        self.append(self.persist(self.stack.pop()))


BASE = {op.name: pickle._Unpickler.dispatch[ord(op.code)] for op in pickletools.opcodes}
OWN: dict[str, Any] = {
    "MARK": Machine.mark, "BUILD": Machine.build, "NEWOBJ": BASE["REDUCE"],
    "LONG1": Machine.long, "FRAME": Machine.frame, "BINPERSID": Machine.persid,
    "TUPLE": BASE["LIST"], "EMPTY_TUPLE": BASE["EMPTY_LIST"],
    "EMPTY_SET": BASE["EMPTY_LIST"], "ADDITEMS": Machine.additems,
    **{f"TUPLE{n}": partial(Machine.row, count=n) for n in (1, 2, 3)},
    **{name: partial(Machine.span, width=width) for name, width in BYTES.items()},
    **{name: partial(Machine.text, width=width) for name, width in TEXT.items()},
    **{name: BASE[name] for name in PLAIN.split()}}  # fmt: skip
Machine.dispatch = {ord(op.code): OWN.get(op.name, partial(refuse, f"the opcode {op.name}"))
                    for op in pickletools.opcodes}  # fmt: skip


def _make(source: Source, name: str, *arguments: Any) -> Any:
    """The result of an allowed name and its arguments; what has no case here is refused."""
    match name.rpartition(".")[2], arguments:
        case "OrderedDict" | "ModuleDict" as kind, ():
            return {} if kind == "OrderedDict" else SimpleNamespace(name=kind, state={})
        case "_reconstruct_persistent_obj", ({"type": "class", "version": 6} as meta,):
            return SimpleNamespace(name=meta["class_name"], state=meta["state"])
        case "_rebuild_parameter", (View() as view, _, _):
            return view
        case "_load_from_bytes", ((Span() | bytes()) as data,):
            return _inner(source, data)
        case "_rebuild_tensor" | "_rebuild_tensor_v2", (
            Storage() as storage, int(at), list(size), list(stride), *_,
        ):  # fmt: skip
            if (found := _view(storage, at, size, stride)) is not None:
                return found
        case "Parameter", ():
            return Parameter()
        case "Parameter", (View() as view, *_):
            return Parameter(view)
        case "dtype", (str(code), False, True) if re.fullmatch("[biuf][1248]", code):
            return np.dtype(code)
        case "scalar", (np.dtype() as kind, (Span() | bytes()) as data):
            return _scalar(source, kind, data)
        case "encode", (str(text), "latin1"):
            return text.encode("latin-1")
        case "encode", (Span(text=True) as span, "latin1"):
            return span
        case "bytes", ():
            return b""
        case "set" | "Size", (list() as items,):
            return items
        case "device", (str(), *_):
            return None
    refuse(f"{name} of arguments that no network has")


def _view(storage: Storage, at: int, size: list[Any], stride: list[Any]) -> View | None:
    """A tensor in a storage; None if the storage does not hold each of its elements."""
    if len(size) != len(stride) or len(size) > checkpoint.MOST_AXES:
        return None
    if any(type(n) is not int or not 0 <= n < 1 << 40 for n in (*size, *stride)):
        return None
    view = View(storage, at, tuple(size), tuple(stride))
    if math.prod(max(n, 1) for n in size) > 1 << 48:
        return None
    fits = 0 <= at <= storage.numel - max(math.prod(size), view.extent)
    return view if fits else None


def _scalar(source: Source, kind: np.dtype[Any], data: Span | bytes) -> Any:
    if isinstance(data, Span) and data.stop - data.start > NAME:
        refuse("a number of another size than its type")
    cursor = Cursor(source, data)
    if cursor.size != kind.itemsize:
        refuse("a number of another size than its type")
    return np.frombuffer(cursor.read(cursor.size), kind)[0].item()


def _inner(source: Source, data: Span | bytes) -> Storage:
    """A storage saved as bytes of a pickle, each read once."""
    if isinstance(data, Span) and data in source.storages:
        return source.storages[data]
    cursor = Cursor(source, data)
    if cursor.size >= 2 and cursor._peek(0, 2) == b"PK":
        refuse("an archive in a storage")
    found = legacy(cursor)
    if type(found) is not Storage:
        refuse("something else than a storage")
    if isinstance(data, Span):
        source.storages[data] = found
    return found


def legacy(cursor: Cursor) -> Any:
    """The content of a file of ``torch.save`` in the older format, as records."""
    storages: dict[str, Storage] = {}

    def persist(record: Any) -> Storage:
        match record:
            case ["storage", torch.dtype() as dtype, str(key), str(), int(numel), None]:
                found = storages.setdefault(key, Storage(dtype, numel))
                if numel >= 0 and (found.dtype, found.numel) == (dtype, numel):
                    return found
        refuse("a storage of an unknown kind")

    magic, version, metadata = (Machine(cursor, set()).load() for _ in range(3))
    if magic != torch.serialization.MAGIC_NUMBER or version != LEGACY_VERSION:
        raise UserError("is of an unknown version of torch.save; save a state dict")
    if type(metadata) is not dict or metadata.get("little_endian") is not True:
        raise UserError("was saved on a machine of another byte order; save it on this one")
    found = Machine(cursor, STATE_NAMES, persist).load()
    for key in Machine(cursor, set()).load():
        storage, numel = storages[key], int.from_bytes(cursor.read(8), "little")
        if numel != storage.numel:
            refuse("a storage of another size than stated")
        storage.data = cursor.data
        storage.start = cursor.take(numel * storage.dtype.itemsize)
    if any(storage.data is None for storage in storages.values()):
        refuse("a storage without content")
    return found


def archive(source: Source) -> Any:
    """The content of a file of ``torch.save`` in the zip format, as records.

    Raises:
        ValueError: if it is another archive.
    """
    entries = {info.filename: info for info in zipfile.ZipFile(source).infolist()}
    heads = [name for name in entries if name.endswith("/data.pkl") and name.count("/") == 1]
    if len(heads) != 1 or any(name.endswith("constants.pkl") for name in entries):
        raise ValueError("a zip, but not of torch.save")
    folder = heads[0].removesuffix("data.pkl")
    order = entries.get(f"{folder}byteorder")
    if order and Cursor(source, _stored(source, order)).read(min(6, order.file_size)) != b"little":
        raise UserError("was saved on a machine of another byte order; save it on this one")

    def persist(record: Any) -> Storage:
        match record:
            case ["storage", torch.dtype() as dtype, str(key), str(), int(numel)]:
                span = _stored(source, entries[f"{folder}data/{key}"])
                if numel >= 0 and span.stop - span.start == numel * dtype.itemsize:
                    return Storage(dtype, numel, span)
        refuse("a storage of an unknown kind")

    return Machine(Cursor(source, _stored(source, entries[heads[0]])), STATE_NAMES, persist).load()


def _stored(source: Source, entry: zipfile.ZipInfo) -> Span:
    """The place of an entry's bytes, which must be stored plainly."""
    if entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & 1:
        refuse("a compressed or encrypted entry")
    source.count(30)
    head = os.pread(source.fileno(), 30, entry.header_offset)
    name, extra = struct.unpack("<HH", head[26:])
    start = entry.header_offset + 30 + name + extra
    if head[:4] != b"PK\3\4" or entry.file_size > source.length - start:
        raise UserError("is cut short; fetch it again")
    return Span(start, start + entry.file_size)
