"""Hostile and useless checkpoints that hold data: of wrong shape, of another kind, or costly."""

import functools
import json
import pickle
import struct
import zipfile
from collections import OrderedDict

import numpy as np
import torch
from torch import nn

from rfpp_core.config import build
from rfpp_core.storage import checkpoint
from tests.helpers import tiny_arch
from tests.unit.interop.hostile_code import HEAD, Case, content, saved
from tests.unit.interop.layouts import (
    Call,
    Precond,
    claim,
    nvlabs,
    pickled,
    state_archive,
    text,
    typed,
)


def outside(offset, size, stride):
    def write(path):
        net = Precond()
        net._buffers["bad"] = Call(torch._utils._rebuild_tensor_v2, typed(torch.ones(4)), offset,
                                   size, stride, False, OrderedDict())  # fmt: skip
        nvlabs(path, net)

    return Case(write)


TENSORS = {
    str(place): outside(*place)
    for place in [
        (0, (5,), (1,)), (1, (4,), (1,)), (-1, (2,), (1,)), (0, (2,), (4,)), (3, (2,), (-1,)),
        (0, (-1,), (1,)), (0, (1000,), (0,)), (0, (1 << 40, 1 << 40), (0, 0)),
        (1 << 62, (1,), (1,)), (0, (2,), (1, 1)), (0, ("2",), (1,)), (0.0, (2,), (1,)), (0, 2, 1),
        (5, (0,), (1,)),
    ]
}  # fmt: skip


# ---- networks


def circle(path):
    inner, top = nn.ModuleDict(), Precond()
    inner._modules["again"] = inner
    top._modules["circle"] = inner
    nvlabs(path, top)


def doubling(path):
    inner, top = nn.ModuleDict(), Precond()
    for _ in range(40):
        inner = nn.ModuleDict({"a": inner, "b": inner})
    top._modules["circle"] = inner
    nvlabs(path, top)


NETWORKS = {
    "a circle": Case(circle, "larger or deeper"),
    "without end": Case(doubling, "larger or deeper"),
}


def changed(change):
    def write(path):
        net = Precond()
        net.__dict__.update(change)
        nvlabs(path, net)

    return Case(write)


UNKNOWN_NETWORKS = {
    ascii(change): changed(change)
    for change in [
        {"_parameters": {"weight": 1}}, {"_parameters": {"weight": {}}},
        {"_modules": {"child": "text"}}, {"_modules": []},
        {"_buffers": {"esc\x1b": torch.ones(1)}}, {"_buffers": {"\ud800": torch.ones(1)}},
        {"_non_persistent_buffers_set": 3}, {"_init_kwargs": 3},
    ]
}  # fmt: skip


def other_version(meta):
    class Other(Precond):
        def meta(self):
            return super().meta() | meta

    return content(lambda: pickled({"ema": Other()}))


OTHER_VERSIONS = {
    str(meta): other_version(meta)
    for meta in ({"version": 7}, {"type": "function"}, {"state": None}, {"state": [1]},
                 {"version": [6]})
}  # fmt: skip


def settings_without_end():
    """A network whose settings are lists of shared lists, and one that holds itself."""
    deep, loop, top = [1], [], Precond()
    for _ in range(60):
        deep = [deep, deep]
    loop.append(loop)
    top._init_kwargs = {"doubling": deep, "circle": loop, "fine": [1, 2]}
    return top


def shared_settings():
    """Lists of shared lists, many times over, and long texts."""
    top, shared = Precond(), [1.5] * 99
    for _ in range(2):
        shared = [shared] * 99
    lists = {f"s{i}": shared for i in range(500)}
    top._init_kwargs = lists | {"x" * 900 + str(i): "y" * 900 for i in range(500)}
    return top


# ---- files of another kind

ONE = torch.ones(1)
UNKNOWN_LAYOUTS = {
    str(thing)[:40]: content(functools.partial(pickled, thing), "unknown layout")
    for thing in [
        {}, [], 1, None, {"ema": None}, {"ema": {}}, {"weight": 1.5}, {"ema": OrderedDict()},
    ]
} | {
    "a network elsewhere": content(lambda: pickled({"net": Precond()}), "unknown layout"),
    "a network alone": content(lambda: pickled(Precond()), "unknown layout"),
}  # fmt: skip
NO_STATE_DICTS = {
    f"{i}: {ascii(thing)[:40]}": saved(thing)
    for i, thing in enumerate([
        torch.ones(3), [torch.ones(3)], {"a": 1}, {"a": {"b": ONE}}, {3: ONE},
        {"a": ONE.expand(1000)}, {"a": torch.ones(2, device="meta")}, {},
        {"a": torch.eye(3).to_sparse()}, {"a": torch.ones(2, dtype=torch.cfloat)},
        {"model_state_dict": 3}, {"state_dict": {}}, {"a\n": ONE}, {"\ud800": ONE},
    ])
}  # fmt: skip
GARBAGE = {
    f"{i}: {raw[:20]!r}": content(raw)
    for i, raw in enumerate([
        b"", b"\0", b"PK", b"PK\x03\x04" + b"\0" * 100, b"hello", b"\xff" * 300, b"\x80\x02.",
        b"\x80", b"\x80\x04N.", b"\x02\0\0\0\0\0\0\0{}", b"\x64\0\0\0\0\0\0\0{" + b" " * 99,
        b"{" * 20, pickle.dumps(torch.serialization.MAGIC_NUMBER, 2), b"<html></html>",
        b"version https",
    ])
}  # fmt: skip


def another_archive(path):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x/data.pkl", "nothing")


def arrays(path):
    with path.open("wb") as file:
        np.savez(file, a=np.ones(3))


ARCHIVES = {
    "text": Case(another_archive, "corrupted or not a checkpoint"),
    "NumPy's arrays": Case(arrays, "corrupted or not a checkpoint"),
    "TorchScript": Case(
        lambda path: torch.jit.save(torch.jit.script(nn.Linear(1, 1)), str(path)),
        "corrupted or not a checkpoint",
    ),
}


# ---- what would take time or memory

DEEP_KEY = b"\x80\x02})" + b"\x85" * 200_000 + b"K\x01s."  # a tuple that is hashed recursively
MODULUS = (1 << 61) - 1  # of the hashes of numbers
SAME_HASH = b"".join(pickle.dumps(1 + i * MODULUS, 2)[2:-1] for i in range(1, 2000))
CHAIN = b"N" + b"r\0\0\0\0ctorch.nn.modules.container\nModuleDict\n)\x81}K\0j\0\0\0\0sb" * 5_000


def fetched_again():
    """2,000 tensors of one large storage, each by its own call."""
    payload = HEAD + claim(1 << 20) + pickle.dumps(["0"], 2)
    payload += struct.pack("<q", 1 << 20) + bytes(4 << 20)
    span = b"B" + struct.pack("<I", len(payload)) + payload + b"r\x01\0\0\0"
    return (
        b"\x80\x04(" + span + b"ctorch.storage\n_load_from_bytes\nj\x01\0\0\0\x85R" * 2000 + b"t."
    )


def one_storage():
    return {f"p{i}": one for one in [nn.Parameter(torch.zeros(1 << 18))] for i in range(100)}


def shared_network(path):
    net = Precond()
    net._parameters = one_storage()
    nvlabs(path, net)


def encoded_again():
    first = b"c_codecs\nencode\n" + text("é" * 500) + b"r\0\0\0\0" + text("latin1") + b"\x86R"
    again = b"c_codecs\nencode\nj\0\0\0\0" + text("latin1") + b"\x86R"
    return b"\x80\x02(" + first + again * 2_000 + b"t."


COSTLY = {
    "a deep key": content(b"\x80\x04" + DEEP_KEY[2:], "unhashable"),
    "a deep key in an archive": Case(lambda path: state_archive(path, DEEP_KEY), "unhashable"),
    "a deep key in a legacy file": content(HEAD + DEEP_KEY, "unhashable"),
    "a chain of modules": content(b"\x80\x04" + CHAIN + b".", "unknown layout"),
    "numbers of one hash": content(b"\x80\x04\x8f(" + SAME_HASH + b"\x90.", "more than 8 bytes"),
    "a storage fetched again": content(fetched_again, "layout"),
    "a shared storage in a network": Case(shared_network, "bytes of tensors in a file of"),
    "a shared storage": Case(
        lambda path: torch.save(one_storage(), path), "bytes of tensors in a file of"
    ),
    "text encoded again": content(encoded_again, "layout"),
    "axes": saved({"a": torch.zeros((1,) * 9)}, "_rebuild_tensor_v2 of arguments"),
}


SETTINGS = {  # read without these settings
    "settings without end": Case(lambda path: nvlabs(path, settings_without_end())),
    "shared settings": Case(lambda path: nvlabs(path, shared_settings())),
}


# ---- safetensors

ONE_ENTRY = {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]}
TERMINAL = "\x1b[31mX\nY\u202e"


def safetensors(header, message=""):
    """A case of any header, of tensors without elements."""

    def make():
        given = header() if callable(header) else header
        raw = given if isinstance(given, bytes) else json.dumps(given).encode()
        return len(raw).to_bytes(8, "little") + raw

    return content(make, message)


def metadata(text, message=""):
    """A case of one empty tensor and metadata of this project's key."""
    return safetensors(lambda: {"__metadata__": {"rfpp": text()}, "x": ONE_ENTRY}, message)


def with_start(path):
    document = {"architecture": tiny_arch(), "start": TERMINAL}
    checkpoint.save(path, build.field(tiny_arch()).state_dict(), document)


def of_another_type(path):
    tensors = build.field(tiny_arch()).state_dict()
    tensors["model.stem.bias"] = tensors["model.stem.bias"].long()
    checkpoint.save(path, tensors, {"architecture": tiny_arch()})


def many_tensors(count):
    entry = json.dumps(ONE_ENTRY).encode()
    return b"{" + b",".join(b'"%06x":%s' % (i, entry) for i in range(count)) + b"}"


LARGE = {
    "header": metadata(lambda: f"[{'[],' * 14_000_000}[]]", "has a header of 42,000,"),
    "metadata": metadata(lambda: f"[{'[],' * 5_000_000}[]]", "has metadata of 10,000,002 values"),
    "nested metadata": metadata(
        lambda: f"[{('[' * 900 + ']' * 900 + ',') * 9_000}[]]", "has metadata of 8,109,002 values"
    ),
    "tensors": safetensors(
        lambda: many_tensors(250_000), "holds 250,000 tensors; at most 32,768 are read"
    ),
    "axes": safetensors(
        lambda: b'{"x":{"dtype":"U8","shape":[%s0],"data_offsets":[0,0]}}' % (b"0," * 7_000_000),
        "holds a tensor of 7,000,001 axes; at most 8 are read",
    ),
}
SAFETENSORS = {
    **{f"large {name}": case for name, case in LARGE.items()},
    "as many values as are read": metadata(
        lambda: f'{{"sha256":"","a":[{("[" * 400 + "]" * 400 + ",") * 2_600}[]]}}'
    ),
    "deep metadata": metadata(lambda: "[" * 100_000),
    "metadata of a long number": metadata(lambda: f'{{"sha256":{"9" * 5_000}}}'),
    "a type that drives the terminal": safetensors({"x": {**ONE_ENTRY, "dtype": TERMINAL}}),
    "a name that drives the terminal": safetensors({TERMINAL: ONE_ENTRY}),
    "a start that drives the terminal": Case(with_start),
    "a type without a place here": safetensors({"x": {**ONE_ENTRY, "dtype": "F4"}}),
    "weights of another type": Case(of_another_type),
}
