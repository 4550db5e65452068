"""Weights from elsewhere, read as data: nothing in a foreign file is imported, called or run.

The content tells the kind: a state dict of ``torch.save``, for torch's weights-only reader, an
NVlabs pickle, for the machine below, or safetensors.  The machine makes containers, numbers, text
and records; an allowed name becomes the only callable there is, ``_make`` with that name, which
knows its arguments.  Sizes that a pickle claims are checked against the file.  Its tensors stay
records of their place in the file until they are asked for, so memory is needed for one or two.
"""

from __future__ import annotations

import io
import json
import os
import pickle
import pickletools
import re
from collections import UserDict
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple, NoReturn

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor

from rfpp_core import files
from rfpp_core.errors import UserError

DTYPES = {torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16",
          torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8",
          torch.uint8: "U8", torch.bool: "BOOL"}  # fmt: skip
NAMES = {"torch_utils.persistence._reconstruct_persistent_obj", "collections.OrderedDict",
         "torch.nn.modules.container.ModuleDict", "torch.storage._load_from_bytes",
         "torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_parameter", "numpy.dtype",
         "numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar"}  # fmt: skip
PLAIN = """PROTO STOP NONE NEWTRUE NEWFALSE BININT BININT1 BININT2 LONG1 BINFLOAT BINUNICODE
    SHORT_BINUNICODE BINUNICODE8 EMPTY_LIST APPEND APPENDS EMPTY_DICT SETITEM SETITEMS EMPTY_SET
    ADDITEMS BINGET LONG_BINGET BINPUT LONG_BINPUT MEMOIZE GLOBAL STACK_GLOBAL INST REDUCE"""
BYTES = {"SHORT_BINBYTES": 1, "BINBYTES": 4, "BINBYTES8": 8, "BYTEARRAY8": 8}
# Far beyond any network, yet too little for a hostile file to hurt with.
LONGEST, MOST_READS, MOST_STEPS, DEEPEST, HEAD = 1 << 24, 1 << 20, 1 << 15, 1000, 4096


class Foreign(NamedTuple):
    """What a file holds: its tensors in their order, mapped or read on access; its sha256."""

    tensors: Mapping[str, Tensor]
    kind: str  # "state_dict", "nvlabs" or "safetensors"
    hints: dict[str, Any]  # settings that an NVlabs pickle tells
    digest: str


def read(path: Path) -> Foreign:
    """Reads a checkpoint without executing anything from it; a UserError says why it cannot."""
    if not path.is_file():
        raise UserError(f"{path} is missing; name a checkpoint file (.pth, .pkl, .safetensors)")
    try:
        kind, tensors, hints = _open(path)
        if not tensors or not all(map(str.isprintable, tensors)):
            raise UserError("holds no tensors with printable names; name a network's checkpoint")
        return Foreign(tensors, kind, hints, files.sha256(path))
    except Exception as error:  # a hostile file chooses what it provokes, in torch too
        line = "".join(c if c.isprintable() else " " for c in _reason(error)[:400])
        raise UserError(f"{path} {line}") from None


def write_safetensors(path: Path, tensors: Mapping[str, Tensor], meta: Mapping[str, str]) -> None:
    """Writes tensors one at a time, durably and at once; equal input gives equal bytes."""
    entries = [(name, t.dtype, list(t.shape), t.nbytes) for name, t in tensors.items()]
    entries.sort(key=lambda entry: -entry[1].itemsize)  # readers want each aligned to its type
    header: dict[str, Any] = {"__metadata__": dict(sorted(meta.items()))}
    end = 0
    for name, dtype, shape, size in entries:
        if dtype not in DTYPES or name == "__metadata__":
            raise UserError(f"{name} ({dtype}) has no place in safetensors; rename or convert it")
        header[name] = {"dtype": DTYPES[dtype], "shape": shape, "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)

    def fill(part: Path) -> None:
        with part.open("wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            for name, *_ in entries:
                flat = tensors[name].detach().cpu().contiguous()
                file.write(flat.as_strided((flat.numel(),), (1,)).view(torch.uint8).numpy().data)

    files.write_atomic(path, fill)


class Lazy(UserDict[str, Any]):
    """Tensors made on access and not kept; what it is given makes them."""

    def __getitem__(self, name: str) -> Any:
        return self.data[name]()


def _open(path: Path) -> tuple[str, Mapping[str, Tensor], dict[str, Any]]:
    """Kind, tensors and hints by the first bytes; what is nothing else must be a pickle."""
    with _File(path) as file:
        head = os.pread(file.fileno(), 64, 0)
        legacy = pickle.dumps(torch.serialization.MAGIC_NUMBER, 2)[2:] in head
        if legacy or head.startswith(b"PK"):
            return "state_dict", _state_dict(path, legacy), {}
        if head[8:9] == b"{" and int.from_bytes(head[:8], "little") < path.stat().st_size:
            opened = safe_open(path, framework="pt")
            names = opened.offset_keys()  # type: ignore[no-untyped-call]
            return "safetensors", Lazy({n: partial(opened.get_tensor, n) for n in names}), {}
        found = _Machine(file).load()
    top = found.get("ema") if type(found) is dict else None
    if type(top) is not SimpleNamespace:
        raise UserError("is a pickle of unknown layout (no network 'ema'); save a state dict")
    return "nvlabs", Lazy({n: partial(v.read, path) for n, v in _walk(top).items()}), _hints(top)


def _state_dict(path: Path, legacy: bool) -> dict[str, Tensor]:
    """Tensors of ``torch.save`` by torch's weights-only reader, mapped where the format allows."""
    mapped = not legacy and path.suffix != ".safetensors"  # torch would go by that name
    with path.open("rb") as file:
        found = torch.load(path if mapped else file, "cpu", weights_only=True, mmap=mapped)
    if isinstance(found, dict):
        found = found.get("model_state_dict", found.get("state_dict", found))
    if not isinstance(found, dict) or not all(map(_dense, found.values())):
        raise UserError("holds more than named tensors; save the model's state_dict() alone")
    prefix = "module." if all(str(key).startswith("module.") for key in found) else ""
    return {key[len(prefix) :]: tensor for key, tensor in found.items()}


def _dense(value: object) -> bool:
    """Whether this is a plain tensor whose every element is in the file."""
    return (isinstance(value, Tensor) and value.layout is torch.strided
            and value.device.type == "cpu" and value.dtype in DTYPES
            and value.nbytes <= value.untyped_storage().nbytes())  # fmt: skip


def _refuse(what: str, *_: Any) -> NoReturn:
    raise UserError(f"refuses {what}: only data is read, nothing is run; save a plain state dict")


def _reason(error: Exception) -> str:
    """What is wrong with a file, by what reading it raised; torch says it at the end of a text."""
    if isinstance(error, UserError):
        return str(error)
    said = str(error).rpartition("WeightsUnpickler error: ")[2]
    if name := re.search(r"(?:GLOBAL|function) (\S+)", said):
        return f"refuses {name[1]}: only tensors are read, nothing is run; save a plain state dict"
    return (f"is damaged or no checkpoint ({type(error).__name__}: {said[:100]}); allowed are "
            "state dicts, NVlabs pickles and safetensors; fetch it again")  # fmt: skip


class _View(NamedTuple):
    """A tensor or a storage that stays in the file; a tensor without memory tells its form."""

    start: int
    form: Tensor

    def read(self, path: Path) -> Tensor:
        form, size = self.form, self.form.untyped_storage().nbytes()
        data = torch.from_numpy(np.fromfile(path, "u1", size, offset=self.start)).untyped_storage()
        return torch.empty(0, dtype=form.dtype).set_(data, 0, form.size(), form.stride())


class _File(io.FileIO):
    """A file that refuses to read what is not there, or more than a network needs."""

    reads, limit = 0, 0

    def take(self, size: int) -> slice:
        """Passes over bytes; on the stack, this slice of the file stands for them."""
        at, end = self.tell(), self.limit or os.fstat(self.fileno()).st_size
        if size > end - at:
            raise UserError(f"is cut short ({size} bytes at {at}, {end} in all); fetch it again")
        return slice(at, self.seek(at + size))

    def read(self, size: int | None = None) -> bytes:
        self.reads += 1
        if size is None or size > LONGEST or self.reads > MOST_READS:
            _refuse("content longer than any network's")
        return os.pread(self.fileno(), size, self.take(size).start)

    def storage(self, start: int, stop: int) -> _View:
        """A storage as bytes of a pickle: torch's reader checks it, then it stays in the file."""
        head, back = os.pread(self.fileno(), HEAD, start), self.tell()
        if b"\nbytearray\n" in head or head.startswith(b"PK"):  # torch would fill the memory
            _refuse("builtins.bytearray or an archive in a storage")
        self.limit = min(self.seek(start) + HEAD, stop)  # so that all but the elements is in head
        found = torch.load(self, "cpu", weights_only=True)
        end, self.limit = self.tell(), 0
        self.seek(back)
        if type(found) is not torch.storage.TypedStorage or end > stop:
            _refuse("a storage that is none")
        form = torch.empty(0, dtype=found.dtype).set_(found._untyped_storage).to("meta")
        return _View(end - form.nbytes, form)


def _make(file: _File, name: str, *arguments: Any) -> Any:
    """What an allowed name makes of its arguments; what has no case here is refused."""
    match name.rpartition(".")[2], arguments:
        case "OrderedDict" | "ModuleDict" as kind, ():
            return {} if kind == "OrderedDict" else SimpleNamespace(name=kind, state={})
        case "_reconstruct_persistent_obj", ({"type": "class", "version": 6} as meta,):
            return SimpleNamespace(name=meta["class_name"], state=meta["state"])
        case "_rebuild_parameter", (_View() as view, _, _):
            return view
        case "_load_from_bytes", (slice(start=start, stop=stop),):
            return file.storage(start, stop)
        case "_rebuild_tensor_v2", (_View(start, whole), int(at), [*size], [*stride], _, _):
            form = torch.empty_strided(size, stride, dtype=whole.dtype, device="meta")
            needed = max(form.nbytes, form.untyped_storage().nbytes())
            if 0 <= at * form.itemsize <= whole.nbytes - needed:
                return _View(start + at * form.itemsize, form)
        case "dtype", (str(code), False, True) if re.fullmatch("[biuf][1248]", code):
            return np.dtype(code)
        case "scalar", (np.dtype(itemsize=n) as kind, slice(start=a, stop=b)) if b - a == n:
            return np.frombuffer(os.pread(file.fileno(), n, a), kind)[0].item()
    _refuse(f"{name} of arguments that no network has")


class _Machine(pickle._Unpickler):
    """A pickle machine of few opcodes, none of which reaches anything but ``_make``."""

    def __init__(self, file: _File) -> None:
        super().__init__(file)
        self.file = file

    def find_class(self, module: str, name: str) -> Any:
        if "." in name or f"{module}.{name}" not in NAMES:
            _refuse(f"{module}.{name}")
        return partial(_make, self.file, f"{module}.{name}")

    def mark(self: Any) -> None:
        if len(self.metastack) == DEEPEST:
            _refuse("marks deeper than any network's")
        BASE["MARK"](self)

    def build(self: Any) -> None:
        state, target = self.stack.pop(), self.stack[-1]
        if type(target) is SimpleNamespace and type(state) is dict:
            target.state = state
        elif not isinstance(target, np.dtype) or state[1] not in ("<", "|"):
            _refuse("a state for something that is not a module")

    def span(self: Any, width: int) -> None:
        self.append(self.file.take(int.from_bytes(self.read(width), "little")))

    def row(self: Any, count: int) -> None:
        """Tuples become lists: as a key, a deep tuple would exhaust the C stack with its hash."""
        self.append([self.stack.pop() for _ in range(count)][::-1])


BASE = {op.name: pickle._Unpickler.dispatch[ord(op.code)] for op in pickletools.opcodes}
OWN: dict[str, Any] = {
    # a frame is a hint to read ahead: it must fit, and is not followed
    "FRAME": lambda m: m.file.seek(m.file.take(int.from_bytes(m.read(8), "little")).start),
    "MARK": _Machine.mark, "BUILD": _Machine.build, "NEWOBJ": BASE["REDUCE"],
    "TUPLE": BASE["LIST"], "EMPTY_TUPLE": BASE["EMPTY_LIST"],
    **{f"TUPLE{n}": partial(_Machine.row, count=n) for n in (1, 2, 3)},
    **{name: partial(_Machine.span, width=width) for name, width in BYTES.items()},
    **{name: BASE[name] for name in PLAIN.split()}}  # fmt: skip
_Machine.dispatch = {ord(op.code): OWN.get(op.name, partial(_refuse, f"the opcode {op.name}"))
                     for op in pickletools.opcodes}  # fmt: skip


def _walk(top: SimpleNamespace) -> dict[str, _View]:
    """Tensors by the names and in the order of ``nn.Module.state_dict``."""
    found: dict[str, _View] = {}
    todo, steps = [("", top.state)], 0
    while todo:
        prefix, state = todo.pop()
        own, buffers = state.get("_parameters", {}), state.get("_buffers", {})
        inner, hidden = state.get("_modules", {}), {*state.get("_non_persistent_buffers_set", ())}
        names = [prefix, *own, *buffers, *inner, *hidden]
        if (steps := steps + len(names)) > MOST_STEPS or max(map(len, names)) > DEEPEST:
            _refuse("modules larger or deeper than any network's")
        own = own | {name: view for name, view in buffers.items() if name not in hidden}
        found |= {f"{prefix}{name}": view for name, view in own.items() if view is not None}
        todo += [(f"{prefix}{k}.", m.state) for k, m in reversed(inner.items()) if m is not None]
    return found


def _hints(top: SimpleNamespace) -> dict[str, Any]:
    """Class name, settings and plain attributes of a network, as far as JSON has them."""
    told = {name: value for name, value in top.state.items() if not str(name).startswith("_")}
    told |= {"class_name": top.name} | top.state.get("_init_kwargs", {})
    return {name: value for name, value in told.items() if name != "training" and _plain(value)}


def _plain(value: Any, depth: int = 3) -> bool:
    """Whether JSON has it, in the size of settings: lists of shared lists would not end."""
    if type(value) is dict and all(type(key) is str for key in value):
        value = [*value.values()]
    if type(value) is list:
        return depth > 0 and len(value) < 100 and all(_plain(item, depth - 1) for item in value)
    finite = type(value) is float and bool(np.isfinite(value))
    return finite or value is None or type(value) in (str, int, bool)
