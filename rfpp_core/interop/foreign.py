"""Weights from elsewhere, read as data: nothing in a foreign file is imported, called or run.

The content decides the kind: a state dict of ``torch.save`` or an NVlabs pickle, which
``pickles`` reads, or safetensors.  Sizes that a file claims are checked against the file.  Tensors
are records of their place in the file until they are accessed, so memory is needed for one or two.
"""

from __future__ import annotations

import json
import os
import pickle
from collections import UserDict
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from rfpp_core.errors import UserError, quoted
from rfpp_core.interop import pickles
from rfpp_core.interop.pickles import DEEPEST
from rfpp_core.interop.spans import Cursor, Source, Span, View, refuse
from rfpp_core.storage import checkpoint, files

DTYPES = {torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16",
          torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8",
          torch.uint8: "U8", torch.bool: "BOOL"}  # fmt: skip
# Far beyond any network, yet too little for a hostile file to do harm.
MOST_STEPS, MOST_HINTS = 1 << 15, 10_000
MAGIC = pickle.dumps(torch.serialization.MAGIC_NUMBER, 2)[2:]


class Foreign(NamedTuple):
    """What a file holds: its tensors in their order, mapped or read on access; its sha256."""

    tensors: Mapping[str, Tensor]
    kind: str  # "state_dict", "nvlabs" or "safetensors"
    hints: dict[str, Any]  # settings in an NVlabs pickle
    digest: str
    shapes: dict[str, tuple[int, ...]]


def read(path: Path) -> Foreign:
    """Reads a checkpoint without executing anything from it; a UserError says why it cannot."""
    if not path.is_file():
        raise UserError(f"{path} is missing; name a checkpoint file (.pth, .pkl, .safetensors)")
    try:
        kind, tensors, shapes, hints = _open(path)
        if not tensors or not all(_is_name(name) for name in tensors):
            raise UserError("holds no tensors with printable names; name a network's checkpoint")
        return Foreign(tensors, kind, hints, files.sha256(path), shapes)
    except Exception as error:  # a hostile file chooses what it provokes, in safetensors too
        raise UserError(f"{path} {quoted(_reason(error), 400)}") from None


def _is_name(name: object) -> bool:
    return isinstance(name, str) and name.isprintable() and len(name) <= DEEPEST


def write_safetensors(path: Path, tensors: Mapping[str, Tensor], meta: Mapping[str, str]) -> None:
    """Writes tensors one at a time, atomically and durably; equal input gives equal bytes."""
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
    """Tensors read on access by the functions it holds, and not cached."""

    def __getitem__(self, name: str) -> Any:
        return self.data[name]()


Opened = tuple[str, Mapping[str, Tensor], dict[str, tuple[int, ...]], dict[str, Any]]


def _open(path: Path) -> Opened:
    """Kind, tensors, shapes and hints; the first bytes decide, and the rest must be a pickle."""
    with Source(path) as source:
        content = Cursor(source, Span(0, source.length))
        head = os.pread(source.fileno(), 64, 0)
        if head[8:9] == b"{" and int.from_bytes(head[:8], "little") < source.length:
            return _safetensors(path)
        if head.startswith(b"PK"):
            return _stated("state_dict", path, _named(pickles.archive(source)), {})
        if head[2:].startswith(MAGIC) or head[11:].startswith(MAGIC):  # protocol 4 has a frame
            return _stated("state_dict", path, _named(pickles.legacy(content)), {})
        found = pickles.Machine(content, pickles.NVLABS_NAMES).load()
    top = found.get("ema") if type(found) is dict else None
    if type(top) is not SimpleNamespace:
        raise UserError("is a pickle of unknown layout (no network 'ema'); save a state dict")
    return _stated("nvlabs", path, _walk(top), _hints(top))


def _stated(kind: str, path: Path, views: dict[str, View], hints: dict[str, Any]) -> Opened:
    """Tensors that are read on access, if they are not more than the file can hold: tensors may
    share a storage, but reading it once for each of many would not end."""
    size = path.stat().st_size
    if (total := sum(view.nbytes for view in views.values())) > 2 * size + (1 << 20):
        refuse(f"{total:,} bytes of tensors in a file of {size:,}")
    tensors = Lazy({name: partial(view.read, path) for name, view in views.items()})
    return kind, tensors, {name: view.size for name, view in views.items()}, hints


def _safetensors(path: Path) -> Opened:
    opened = checkpoint.opened(path)
    names = opened.offset_keys()
    for name in names:
        if (dtype := opened.get_slice(name).get_dtype()) not in DTYPES.values():
            raise UserError(
                f"holds a tensor of type {dtype}; allowed are {', '.join(DTYPES.values())}"
            )
    tensors = Lazy({name: partial(opened.get_tensor, name) for name in names})
    shapes = {n: tuple(opened.get_slice(n).get_shape()) for n in names}
    return "safetensors", tensors, shapes, {}


def _named(found: Any) -> dict[str, View]:
    """The tensors of a state dict, which may be inside a checkpoint or come from DDP."""
    if isinstance(found, dict):
        found = found.get("model_state_dict", found.get("state_dict", found))
    if isinstance(found, dict):
        found = {name: value.tensor if isinstance(value, pickles.Parameter) else value
                 for name, value in found.items()}  # fmt: skip
    if not isinstance(found, dict) or not all(isinstance(v, View) for v in found.values()):
        raise UserError("holds more than named tensors; save the model's state_dict() alone")
    if len(found) > MOST_STEPS:
        refuse("more tensors than any network's")
    prefix = "module." if all(str(key).startswith("module.") for key in found) else ""
    return {key[len(prefix) :]: view for key, view in found.items()}


def _reason(error: Exception) -> str:
    """What is wrong with a file, from the error of reading it."""
    if isinstance(error, UserError):
        return str(error)
    return (f"is corrupted or not a checkpoint ({type(error).__name__}: {quoted(error)}); allowed "
            f"are state dicts, NVlabs pickles and safetensors; fetch it again")  # fmt: skip


def _walk(top: SimpleNamespace) -> dict[str, View]:
    """Tensors by the names and in the order of ``nn.Module.state_dict``."""
    found: dict[str, View] = {}
    todo, steps = [("", top.state)], 0
    while todo:
        prefix, state = todo.pop()
        own, buffers = state.get("_parameters", {}), state.get("_buffers", {})
        inner, hidden = state.get("_modules", {}), state.get("_non_persistent_buffers_set", ())
        steps += 1 + sum(map(len, (own, buffers, inner, hidden)))
        names = [prefix, *own, *buffers, *inner, *hidden] if steps <= MOST_STEPS else []
        if not names or max(map(len, names)) > DEEPEST:
            refuse("modules larger or deeper than any network's")
        saved = buffers.keys() - set(hidden)
        own = own | {name: view for name, view in buffers.items() if name in saved}
        found |= {f"{prefix}{name}": view for name, view in own.items() if view is not None}
        todo += [(f"{prefix}{k}.", m.state) for k, m in reversed(inner.items()) if m is not None]
    if not all(isinstance(view, View) for view in found.values()):
        refuse("a parameter that is not a tensor")
    return found


def _hints(top: SimpleNamespace) -> dict[str, Any]:
    """Class name, settings and plain attributes of a network, as far as they are JSON and no more
    than a network has: lists of shared lists would not end."""
    stated = {name: value for name, value in top.state.items() if not str(name).startswith("_")}
    stated |= {"class_name": top.name} | top.state.get("_init_kwargs", {})
    hints, left = {}, MOST_HINTS
    for name, value in stated.items():
        cost, plain = _plain([name, value], left)
        left -= cost
        if plain and name != "training" and type(name) is str:
            hints[name] = value
        if left <= 0:
            break
    return hints


def _plain(value: Any, most: int) -> tuple[int, bool]:
    """How many values and characters there are, and whether they are JSON and at most ``most``;
    stops counting where they are not."""
    todo, cost = [(value, 4)], 0
    while todo:
        item, depth = todo.pop()
        cost += 1 + (len(item) if type(item) in (str, dict, list) else 0)
        if cost > most:
            return cost, False
        if type(item) in (dict, list) and depth > 0:
            inner = [*item, *item.values()] if type(item) is dict else item
            if type(item) is dict and not all(type(key) is str for key in item):
                return cost, False
            todo += [(one, depth - 1) for one in inner]
        elif not (item is None or type(item) in (str, int, bool) or _is_finite(item)):
            return cost, False
    return cost, True


def _is_finite(value: object) -> bool:
    return type(value) is float and bool(np.isfinite(value))
