"""Checkpoints from elsewhere: read bit by bit as they are, and never run."""

import contextlib
import copyreg
import json
import math
import os
import pickle
import random
import struct
import subprocess
import sys
import tracemalloc
import types
import zipfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from rfpp_core.errors import UserError
from rfpp_core.interop import foreign, spans
from tests.helpers import ROOT

PERSISTENT = "torch_utils.persistence"
# torch's, about files that are refused anyway, and about making some of them
pytestmark = pytest.mark.filterwarnings(
    "ignore:Detected pickle protocol", "ignore:Validating sparse", "ignore:'torch.load' received",
    "ignore:.torch.jit")  # fmt: skip


# ---- files in the layout of NVlabs pickles, made without their code


@contextlib.contextmanager
def persistence():
    """A module of that name while something is pickled, so that pickle finds the function."""

    def _reconstruct_persistent_obj(meta):
        raise SystemExit("executed")

    module = types.ModuleType(PERSISTENT)
    _reconstruct_persistent_obj.__module__ = PERSISTENT
    _reconstruct_persistent_obj.__qualname__ = "_reconstruct_persistent_obj"
    module._reconstruct_persistent_obj = _reconstruct_persistent_obj
    sys.modules[PERSISTENT] = module
    sys.modules["torch_utils"] = types.ModuleType("torch_utils")
    try:
        yield module
    finally:
        del sys.modules[PERSISTENT], sys.modules["torch_utils"]


class Persistent(nn.Module):
    """A module that pickles as its source and its attributes."""

    def __init__(self, **kwargs):
        super().__init__()
        self._init_args = ((),)
        self._init_kwargs = kwargs

    def __reduce__(self):
        return sys.modules[PERSISTENT]._reconstruct_persistent_obj, (self.meta(),)

    def meta(self):
        return {
            "type": "class",
            "version": 6,
            "module_src": "raise SystemExit('executed')\n" * 20,
            "class_name": type(self).__name__,
            "state": self.__dict__,
        }


class Block(Persistent):
    def __init__(self, size, first=False):
        super().__init__(size=size)
        self.size = size
        self.skip_scale = np.sqrt(0.5)
        self.heads = np.int64(2)
        self.flag = np.bool_(True)
        self.small = np.float32(0.1)
        self.weight = nn.Parameter(torch.randn(size, 3, 3, 3))
        self.bias = None if first else nn.Parameter(torch.randn(size))
        self.register_buffer("resample_filter", torch.rand(1, 1, 2, 2) if first else None)
        self.register_buffer("scratch", torch.zeros(5), persistent=False)


class Net(Persistent):
    def __init__(self, size=4, blocks=2):
        super().__init__(size=size)
        self.enc = nn.ModuleDict()
        self.dec = nn.ModuleDict()
        for i in range(blocks):
            self.enc[f"8x8_block{i}"] = Block(size, first=i == 0)
            self.dec[f"8x8_in{i}"] = Block(size)
        self.register_buffer("freqs", torch.randn(3, 4).t()[1:])
        self.register_buffer("steps", torch.tensor(7))
        self.register_buffer("empty", torch.zeros(0, 5))
        self.scale = nn.Parameter(torch.randn(3).half(), requires_grad=False)
        self.register_buffer("mask", torch.tensor([True, False]))
        self.none = None
        self.register_module("absent", None)


class Precond(Persistent):
    def __init__(self, size=4, blocks=2):
        super().__init__(img_resolution=8, channel_mult=(1, 2), model_type="Net", use_fp16=False,
                         nothing=None, odd=torch.float32.itemsize, endless=math.inf,
                         inner={"scale": np.float64(0.25), "of": [1, [2]]})  # fmt: skip
        self.sigma_data = 0.5
        self.sigma_max = float("inf")
        self.label_dim = 0
        self.model = Net(size, blocks)


def nvlabs(path, ema=None, protocol=4, **more):
    with persistence():
        content = {"ema": Precond() if ema is None else ema, "loss_fn": Persistent(),
                   "augment_pipe": None, "dataset_kwargs": {"path": "x"}, **more}  # fmt: skip
        path.write_bytes(pickle.dumps(content, protocol=protocol))
    return path


def pickled(thing, protocol=4):
    with persistence():
        return pickle.dumps(thing, protocol=protocol)


def bits(tensor):
    plain = tensor.detach().contiguous()
    data = plain.as_strided((plain.numel(),), (1,)).view(torch.uint8).numpy().tobytes()
    return tensor.dtype, tensor.shape, data


def equal(have, want):
    assert list(have) == list(want)
    for name, tensor in want.items():
        assert bits(have[name]) == bits(tensor), name


# ---- what is read


@pytest.mark.parametrize("protocol", [4, 5])
def test_an_nvlabs_pickle_is_read_as_its_state_dict(tmp_path, protocol):
    net = Precond()
    found = foreign.read(nvlabs(tmp_path / "net.pkl", net, protocol))
    assert PERSISTENT not in sys.modules
    assert found.kind == "nvlabs"
    equal(found.tensors, net.state_dict())
    assert "model.enc.8x8_block0.scratch" not in found.tensors


def test_hints_are_the_json_part_of_the_settings(tmp_path):
    hints = foreign.read(nvlabs(tmp_path / "net.pkl")).hints
    assert json.loads(json.dumps(hints, allow_nan=False)) == {
        "class_name": "Precond", "sigma_data": 0.5, "label_dim": 0, "img_resolution": 8,
        "channel_mult": [1, 2], "model_type": "Net", "use_fp16": False, "nothing": None, "odd": 4,
        "inner": {"scale": 0.25, "of": [1, [2]]}}  # fmt: skip


def test_a_state_dict_is_read_in_both_formats(tmp_path):
    state = Net().state_dict()
    for zipped in (True, False):
        torch.save(state, tmp_path / "net.pth", _use_new_zipfile_serialization=zipped)
        found = foreign.read(tmp_path / "net.pth")
        assert (found.kind, found.hints) == ("state_dict", {})
        equal(found.tensors, state)


@pytest.mark.parametrize("key", ["model_state_dict", "state_dict"])
def test_a_state_dict_may_be_inside_and_may_come_from_ddp(tmp_path, key):
    state = Net().state_dict()
    ddp = {f"module.{name}": tensor for name, tensor in state.items()}
    torch.save({key: ddp, "epoch": 3}, tmp_path / "a.pth")
    equal(foreign.read(tmp_path / "a.pth").tensors, state)
    torch.save({**ddp, "other": torch.ones(1)}, tmp_path / "b.pth")
    assert "module.steps" in foreign.read(tmp_path / "b.pth").tensors


def test_the_content_tells_the_kind_and_not_the_name(tmp_path):
    state = Net().state_dict()
    torch.save(state, tmp_path / "zip")
    torch.save(state, tmp_path / "old", _use_new_zipfile_serialization=False)
    foreign.write_safetensors(tmp_path / "safe", state, {})
    nvlabs(tmp_path / "nv")
    kinds = {"zip": "state_dict", "old": "state_dict", "safe": "safetensors", "nv": "nvlabs"}
    for name, kind in kinds.items():
        for ending in (".safetensors", ".pkl", ".pth", ""):
            path = tmp_path / f"x{ending}"
            path.write_bytes((tmp_path / name).read_bytes())
            found = foreign.read(path)
            assert found.kind == kind
            assert all(isinstance(tensor, torch.Tensor) for tensor in found.tensors.values())


def test_the_digest_is_that_of_the_file(tmp_path):
    path = nvlabs(tmp_path / "net.pkl")
    want = subprocess.run(["sha256sum", path], capture_output=True, text=True, check=True).stdout
    assert foreign.read(path).digest == want.split()[0]


# ---- what is written


def test_what_is_written_is_what_safetensors_reads(tmp_path):
    tensors = Precond().state_dict()
    for dtype in foreign.DTYPES:
        tensors[str(dtype)] = torch.arange(7).to(dtype)
    tensors |= {"é": torch.ones(2, 3).t(), "none": torch.ones(9)[::2][5:], "one": torch.tensor(1)}
    tensors |= {"few": torch.ones(9)[::5][:1], "inside": torch.arange(9)[3:5]}
    path = tmp_path / "net.safetensors"
    foreign.write_safetensors(path, tensors, {"b": "two", "a": '"é"'})
    loaded = load_file(path)
    assert set(loaded) == set(tensors)
    equal({name: loaded[name] for name in tensors}, tensors)
    with safe_open(path, framework="pt") as file:
        assert file.metadata() == {"a": '"é"', "b": "two"}
    found = foreign.read(path)
    assert found.kind == "safetensors"
    equal({name: found.tensors[name] for name in tensors}, tensors)
    first = path.read_bytes()
    foreign.write_safetensors(path, found.tensors, {"a": '"é"', "b": "two"})
    assert path.read_bytes() == first
    assert os.listdir(tmp_path) == [path.name]


def test_every_kind_can_be_written_from(tmp_path):
    net = Precond()
    state = net.state_dict()
    torch.save(state, tmp_path / "zip")
    torch.save(state, tmp_path / "old", _use_new_zipfile_serialization=False)
    save_file({name: t.contiguous() for name, t in state.items()}, tmp_path / "safe")
    nvlabs(tmp_path / "nv", net)
    for name in ("zip", "old", "safe", "nv"):
        foreign.write_safetensors(tmp_path / "out", foreign.read(tmp_path / name).tensors, {})
        loaded = load_file(tmp_path / "out")
        equal({name: loaded[name] for name in state}, state)


def test_a_tensor_without_place_in_safetensors_is_refused(tmp_path):
    for tensors in ({"a": torch.ones(1, dtype=torch.cfloat)}, {"__metadata__": torch.ones(1)}):
        with pytest.raises(UserError, match="has no place in safetensors"):
            foreign.write_safetensors(tmp_path / "x", tensors, {})
    assert os.listdir(tmp_path) == []


# ---- memory

PEAK = """
import sys, torch
from pathlib import Path
from rfpp_core.interop import foreign, spans
torch.set_num_threads(1)

def memory(key):
    status = Path("/proc/self/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith(key)).split()[1])

before = memory("VmRSS")
found = foreign.read(Path(sys.argv[1]))
foreign.write_safetensors(Path(sys.argv[1] + ".out"), found.tensors, {})
print(found.kind, before, memory("VmHWM"))
"""


class Big(Persistent):
    def __init__(self, sizes):
        super().__init__()
        for i, size in enumerate(sizes):
            random_or_zero = torch.zeros(size) if i % 2 else torch.rand(size)
            self.register_parameter(f"weight{i}", nn.Parameter(random_or_zero))


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="measures with /proc")
@pytest.mark.parametrize("kind", ["nvlabs", "zip", "legacy", "safetensors"])
def test_an_import_holds_the_file_in_memory_at_most_once(tmp_path, kind):
    net = Big([24 << 20, 8 << 20, 8 << 20])
    path = tmp_path / "big"
    if kind == "nvlabs":
        nvlabs(path, net)
    elif kind == "safetensors":
        save_file(net.state_dict(), path)
    else:
        torch.save(net.state_dict(), path, _use_new_zipfile_serialization=kind == "zip")
    output = subprocess.run([sys.executable, "-c", PEAK, path], capture_output=True, text=True,
                            check=True, cwd=ROOT).stdout  # fmt: skip
    before, peak = map(int, output.split()[1:])
    size = path.stat().st_size / 1024
    print(f"{kind}: {(peak - before) / size:.3f} of {size / 1024:.0f} MiB")
    assert peak - before <= 1.15 * size
    equal(load_file(f"{path}.out"), net.state_dict())


# ---- what is refused


class Call:
    """Pickles as a call of anything."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def text(value):
    raw = value.encode()
    return b"X" + struct.pack("<I", len(raw)) + raw


def put(path, content):
    path.write_bytes(content)
    return path


def refused(path, message):
    """Reads a hostile file: one line that has the message, and little memory taken."""
    tracemalloc.start()
    try:
        with pytest.raises(UserError) as caught:
            foreign.read(path)
        assert tracemalloc.get_traced_memory()[1] < 64 << 20
    finally:
        tracemalloc.stop()
    line = str(caught.value)
    assert message in line
    assert line.startswith(str(path))
    assert line.isprintable()
    assert len(line) < 700
    assert caught.value.__context__ is None or caught.value.__suppress_context__


def command(canary):
    return f"touch '{canary}'"


def code(canary):
    return f"open({str(canary)!r}, 'w')"


SYSTEM = f"{os.system.__module__}.system"
MALICIOUS = {
    "a shell": (lambda c: pickle.dumps({"ema": Call(os.system, command(c))}), SYSTEM),
    "a shell by protocol 0": (lambda c: pickle.dumps(Call(os.system, command(c)), 0), SYSTEM),
    "eval": (lambda c: pickle.dumps([Call(eval, code(c))]), "builtins.eval"),
    "exec in protocol 2": (lambda c: pickle.dumps(Call(exec, code(c)), 2), "__builtin__.exec"),
    "getattr": (lambda c: pickle.dumps(Call(getattr, Call(__import__, "os"), "system")),
                "builtins.getattr"),
    "an import": (lambda c: b"\x80\x02ccanary_of_foreign\nthing\n.", "canary_of_foreign.thing"),
    "an import of the top": (
        lambda c: b"\x80\x04" + text("canary_of_foreign") + text("") + b"\x93.",
        "canary_of_foreign.",
    ),
    "a dotted name": (
        lambda c: b"\x80\x04" + text("collections") + text("OrderedDict.fromkeys") + b"\x93.",
        "collections.OrderedDict.fromkeys",
    ),
    "a name dotted elsewhere": (
        lambda c: b"\x80\x04" + text("torch.nn.modules") + text("container.ModuleDict") + b"\x93.",
        "torch.nn.modules.container.ModuleDict",
    ),
    "a dotted module function": (
        lambda c: b"\x80\x04" + text("torch.storage") + text("_load_from_bytes.__globals__")
        + b"\x93.", "torch.storage._load_from_bytes.__globals__",
    ),
    "INST": (lambda c: b"(" + text(command(c)) + b"iposix\nsystem\n.", "posix.system"),
    "OBJ": (lambda c: b"(cposix\nsystem\n" + text(command(c)) + b"o.", "posix.system"),
    "OBJ of an allowed name": (lambda c: b"(ccollections\nOrderedDict\no.", "opcode OBJ"),
    "NEWOBJ": (lambda c: b"\x80\x02csubprocess\nPopen\n" + text("id") + b"\x85\x81.",
               "subprocess.Popen"),
    "NEWOBJ_EX": (lambda c: b"\x80\x04ccollections\nOrderedDict\n)}\x92.", "opcode NEWOBJ_EX"),
    "EXT1": (lambda c: b"\x80\x02\x82\xf0" + text(command(c)) + b"\x85R.", "opcode EXT1"),
    "EXT2": (lambda c: b"\x80\x02\x83\xf0\0" + text(command(c)) + b"\x85R.", "opcode EXT2"),
    "EXT4": (lambda c: b"\x80\x02\x84\xf0\0\0\0" + text(command(c)) + b"\x85R.", "opcode EXT4"),
    "PERSID": (lambda c: b"Pstorage\n.", "opcode PERSID"),
    "BINPERSID": (lambda c: b"\x80\x02" + text("storage") + b"Q.", "opcode BINPERSID"),
    "a state for a container": (
        lambda c: b"\x80\x02ccollections\nOrderedDict\n)R}" + text("__class__") + b"K\x01sb.",
        "a state for something",
    ),
    "a state for a function": (
        lambda c: b"\x80\x02ctorch.storage\n_load_from_bytes\n}" + text("__code__") + b"K\x01sb.",
        "a state for something",
    ),
    "a call of text": (lambda c: b"\x80\x02" + text("os.system") + text("id") + b"\x85R.",
                       "damaged"),
    "an ordered dict of arguments": (
        lambda c: b"\x80\x02ccollections\nOrderedDict\n]\x85R.", "collections.OrderedDict of",
    ),
    "a module with arguments": (
        lambda c: b"\x80\x02ctorch.nn.modules.container\nModuleDict\n}\x85\x81.",
        "ModuleDict of",
    ),
    "an object scalar": (
        lambda c: pickle.dumps([np.array([Call(os.system, command(c))], object)[:1].dtype]),
        "numpy.dtype of",
    ),
    "an array": (lambda c: pickle.dumps(np.zeros(3)), "multiarray._reconstruct"),
    "a parameter with state": (
        lambda c: pickle.dumps(Call(torch._utils._rebuild_parameter_with_state, 1, 2, 3, 4)),
        "torch._utils._rebuild_parameter_with_state",
    ),
    "lines in a name": (
        lambda c: b"\x80\x04" + text("evil\x1b[2J\nfine") + text("x\ud7ff\n") + b"\x93.", "evil",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", MALICIOUS)
def test_a_malicious_pickle_is_refused_by_name(tmp_path, monkeypatch, name):
    canary = tmp_path / "canary"
    put(tmp_path / "canary_of_foreign.py", f"open({str(canary)!r}, 'w')".encode())
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(copyreg, "_inverted_registry", {0xF0: ("os", "system")})
    monkeypatch.setattr(pickle, "_inverted_registry", {0xF0: ("os", "system")})
    monkeypatch.setattr(pickle, "_extension_cache", {0xF0: os.system})
    make, message = MALICIOUS[name]
    refused(put(tmp_path / "bad.pkl", make(canary)), message)
    assert not canary.exists()
    assert "canary_of_foreign" not in sys.modules


def storage_head(thing, protocol=2):
    """The head of a nested ``torch.save`` in the older format, with anything for the storage."""
    metadata = {"protocol_version": 1001, "little_endian": True,
             "type_sizes": {"short": 2, "int": 4, "long": 4}}  # fmt: skip
    parts = [torch.serialization.MAGIC_NUMBER, 1001, metadata, thing]
    return b"".join(pickle.dumps(part, protocol) for part in parts)


def claim(numel, kind="torch FloatStorage", place="cpu"):
    module, name = kind.split()
    return (b"\x80\x02(" + text("storage") + f"c{module}\n{name}\n".encode() + text("0")
            + text(place) + b"\x8a\x08" + struct.pack("<q", numel) + b"NtQ.")  # fmt: skip


def nested(payload):
    return pickle.dumps({"ema": Call(torch.storage._load_from_bytes, payload)})


def test_a_malicious_storage_is_refused_by_name(tmp_path):
    canary = tmp_path / "canary"
    call = Call(os.system, command(canary))
    torch.save(call, tmp_path / "evil.zip")
    for payload, message in [
        (storage_head(call), SYSTEM),
        (pickle.dumps(call, 2), SYSTEM),
        (storage_head(call, 4), ""),
        (storage_head(0)[: -len(pickle.dumps(0, 2))] + claim(1, "posix system"), SYSTEM),
        (storage_head(Call(bytearray, 1 << 40)), "__builtin__.bytearray"),
        (storage_head(Call(os.system, "#" * 9000)), SYSTEM),
        (storage_head("#" * 9000), "cut short"),
        (storage_head([]) + pickle.dumps([], 2), "a storage that is none"),
        (storage_head(torch.Size([1])), ""),
        ((tmp_path / "evil.zip").read_bytes(), "an archive in a storage"),
        (b"", ""),
    ]:
        refused(put(tmp_path / "bad.pkl", nested(payload)), message)
    assert not canary.exists()


@pytest.mark.parametrize("numel", [-1, 3, 1 << 20, 1 << 33, 1 << 40, 1 << 61, (1 << 63) - 1])
def test_a_storage_cannot_claim_more_than_there_is(tmp_path, numel):
    head = storage_head(0)[: -len(pickle.dumps(0, 2))] + claim(numel)
    head += pickle.dumps(["0"], 2)
    for data in (b"", struct.pack("<q", numel), struct.pack("<q", 2) + b"12345678"):
        refused(put(tmp_path / "bad.pkl", nested(head + data)), "")


@pytest.mark.parametrize("opcode", [
    b"\x8e" + struct.pack("<Q", 1 << 40),  # BINBYTES8
    b"\x8e" + struct.pack("<Q", 1 << 60),
    b"\x96" + struct.pack("<Q", (1 << 64) - 1),  # BYTEARRAY8
    b"B" + struct.pack("<I", (1 << 32) - 1),  # BINBYTES
    b"\x8d" + struct.pack("<Q", 1 << 40),  # BINUNICODE8
    b"X" + struct.pack("<I", (1 << 32) - 1),  # BINUNICODE
    b"\x95" + struct.pack("<Q", 1 << 60),  # FRAME
    b"\x8b" + struct.pack("<i", (1 << 31) - 1),  # LONG4
    b"\x8b" + struct.pack("<i", -1),
    b"T" + struct.pack("<i", (1 << 31) - 1),  # BINSTRING
    b"(" * 100_000,
    b"(" * 2000 + b"t" * 2000,
    b"r\xff\xff\xff\xff",  # LONG_BINPUT on nothing
    b"I" + b"9" * 10_000 + b"\n",
    b"c" + b"x" * 10_000,
])  # fmt: skip
def test_a_claim_of_size_or_depth_is_refused_before_it_is_met(tmp_path, opcode):
    refused(put(tmp_path / "bad.pkl", b"\x80\x04" + opcode), "")


def test_an_endless_pickle_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(spans, "MOST_READS", 10_000)
    refused(put(tmp_path / "bad.pkl", b"\x80\x04" + b"]" * 20_000), "longer than any network's")
    monkeypatch.setattr(spans, "LONGEST", 100)
    refused(put(tmp_path / "bad.pkl", b"\x80\x04" + text("x" * 200)), "longer than any network's")


def test_depth_does_not_reach_the_stack_of_c(tmp_path):
    key = b"\x80\x04})" + b"\x85" * 200_000 + b"K\x01s."
    with pytest.raises(UserError, match="unhashable"):
        foreign.read(put(tmp_path / "key.pkl", key))
    chain = (
        b"N" + b"r\0\0\0\0ctorch.nn.modules.container\nModuleDict\n)\x81}K\0j\0\0\0\0sb" * 5_000
    )
    with pytest.raises(UserError, match="unknown layout"):
        foreign.read(put(tmp_path / "chain.pkl", b"\x80\x04" + chain + b"."))


def typed(tensor):
    return torch.storage.TypedStorage(
        wrap_storage=tensor.untyped_storage(), dtype=tensor.dtype, _internal=True
    )


@pytest.mark.parametrize(("offset", "size", "stride"), [
    (0, (5,), (1,)),
    (1, (4,), (1,)),
    (-1, (2,), (1,)),
    (0, (2,), (4,)),
    (3, (2,), (-1,)),
    (0, (-1,), (1,)),
    (0, (1000,), (0,)),  # every element is the same one
    (0, (1 << 40, 1 << 40), (0, 0)),
    (1 << 62, (1,), (1,)),
    (0, (2,), (1, 1)),
    (0, ("2",), (1,)),
    (0.0, (2,), (1,)),
    (0, 2, 1),
    (5, (0,), (1,)),
])  # fmt: skip
def test_a_tensor_must_be_inside_its_storage(tmp_path, offset, size, stride):
    net = Precond()
    tensor = Call(torch._utils._rebuild_tensor_v2, typed(torch.ones(4)), offset, size, stride,
                  False, OrderedDict())  # fmt: skip
    net._buffers["bad"] = tensor
    refused(nvlabs(tmp_path / "bad.pkl", net), "")


def test_a_tensor_may_be_any_part_of_its_storage(tmp_path):
    net, whole = Precond(), torch.arange(12.0)
    parts = {"a": whole[3:7], "b": whole.view(3, 4).t()[1:, ::2], "c": whole[12:], "d": whole[5]}
    for name, part in parts.items():
        net.register_buffer(name, part)
    equal(foreign.read(nvlabs(tmp_path / "net.pkl", net)).tensors, net.state_dict())


def test_networks_in_a_circle_or_without_end_are_refused(tmp_path):
    circle, top = nn.ModuleDict(), Precond()
    circle._modules["again"] = circle
    top._modules["circle"] = circle
    refused(nvlabs(tmp_path / "circle.pkl", top), "larger or deeper")
    doubling = nn.ModuleDict()
    for _ in range(40):
        doubling = nn.ModuleDict({"a": doubling, "b": doubling})
    top._modules["circle"] = doubling
    refused(nvlabs(tmp_path / "double.pkl", top), "larger or deeper")


def test_settings_without_end_are_left_out(tmp_path):
    doubling, circle, top = [1], [], Precond()
    for _ in range(60):
        doubling = [doubling, doubling]
    circle.append(circle)
    top._init_kwargs = {"doubling": doubling, "circle": circle, "fine": [1, 2]}
    hints = foreign.read(nvlabs(tmp_path / "net.pkl", top)).hints
    assert hints["fine"] == [1, 2]
    assert not {"doubling", "circle"} & hints.keys()


@pytest.mark.parametrize("change", [
    {"_parameters": {"weight": 1}},
    {"_parameters": {"weight": {}}},
    {"_modules": {"child": "text"}},
    {"_modules": []},
    {"_buffers": {"esc\x1b": torch.ones(1)}},
    {"_buffers": {"\ud800": torch.ones(1)}},
    {"_non_persistent_buffers_set": 3},
    {"_init_kwargs": 3},
])  # fmt: skip
def test_a_network_of_unknown_make_is_refused(tmp_path, change):
    net = Precond()
    net.__dict__.update(change)
    refused(nvlabs(tmp_path / "bad.pkl", net), "")


@pytest.mark.parametrize("content", [
    {}, [], 1, None, {"ema": None}, {"ema": {}}, {"net": Precond()}, {"weight": 1.5},
    {"ema": OrderedDict()}, Precond(),
])  # fmt: skip
def test_a_pickle_of_unknown_layout_is_refused(tmp_path, content):
    refused(put(tmp_path / "bad.pkl", pickled(content)), "unknown layout")


@pytest.mark.parametrize("meta", [
    {"version": 7}, {"type": "function"}, {"state": None}, {"state": [1]}, {"version": [6]},
])  # fmt: skip
def test_a_persistent_object_of_another_version_is_refused(tmp_path, meta):
    class Other(Precond):
        def meta(self):
            return super().meta() | meta

    path = put(tmp_path / "bad.pkl", pickled({"ema": Other()}))
    refused(path, "")


# ---- state dicts and safetensors that are not


def test_a_malicious_state_dict_is_refused_in_one_line(tmp_path):
    canary = tmp_path / "canary"
    for zipped in (True, False):
        for evil, name in [
            (Call(os.system, command(canary)), SYSTEM),
            (Call(eval, code(canary)), "eval"),
            (Precond(), "_reconstruct_persistent_obj"),
        ]:
            with persistence():
                torch.save({"weight": torch.ones(3), "evil": evil}, tmp_path / "bad.pth",
                           _use_new_zipfile_serialization=zipped)  # fmt: skip
            refused(tmp_path / "bad.pth", f"{name}: only tensors are read")
    assert not canary.exists()


@pytest.mark.parametrize("content", [
    torch.ones(3), [torch.ones(3)], {"a": 1}, {"a": {"b": torch.ones(1)}}, {3: torch.ones(1)},
    {"a": torch.ones(1).expand(1000)}, {"a": torch.ones(2, device="meta")}, {},
    {"a": torch.eye(3).to_sparse()}, {"a": torch.ones(2, dtype=torch.cfloat)},
    {"model_state_dict": 3}, {"state_dict": {}}, {"a\n": torch.ones(1)}, {"\ud800": torch.ones(1)},
])  # fmt: skip
def test_what_is_no_state_dict_is_refused(tmp_path, content):
    torch.save(content, tmp_path / "bad.pth")
    refused(tmp_path / "bad.pth", "")


@pytest.mark.parametrize("content", [
    b"", b"\0", b"PK", b"PK\x03\x04" + b"\0" * 100, b"hello", b"\xff" * 300, b"\x80\x02.", b"\x80",
    b"\x80\x04N.", b"\x02\0\0\0\0\0\0\0{}", b"\x64\0\0\0\0\0\0\0{" + b" " * 99, b"{" * 20,
    pickle.dumps(torch.serialization.MAGIC_NUMBER, 2), b"<html></html>", b"version https",
])  # fmt: skip
def test_garbage_is_one_clear_line(tmp_path, content):
    refused(put(tmp_path / "bad.pth", content), "")


def test_an_archive_of_something_else_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "bad.pth", "w") as archive:
        archive.writestr("x/data.pkl", "nothing")
    refused(tmp_path / "bad.pth", "damaged or no checkpoint")
    np.savez(tmp_path / "bad.npz", a=np.ones(3))
    refused(tmp_path / "bad.npz", "damaged or no checkpoint")
    torch.jit.save(torch.jit.script(nn.Linear(1, 1)), tmp_path / "bad.pt")
    refused(tmp_path / "bad.pt", "damaged or no checkpoint")


def test_what_is_missing_is_said(tmp_path):
    refused(tmp_path / "none.pkl", "is missing; name a checkpoint file")
    refused(tmp_path, "is missing; name a checkpoint file")


@pytest.mark.parametrize("kind", ["nvlabs", "zip", "legacy", "safetensors"])
def test_a_truncated_file_is_refused_wherever_it_ends(tmp_path, kind):
    net, path = Precond(), tmp_path / "net"
    if kind == "nvlabs":
        nvlabs(path, net)
    elif kind == "safetensors":
        foreign.write_safetensors(path, net.state_dict(), {})
    else:
        torch.save(net.state_dict(), path, _use_new_zipfile_serialization=kind == "zip")
    whole = path.read_bytes()
    for share in [*range(0, len(whole), len(whole) // 40), len(whole) - 1]:
        put(path, whole[:share])
        with pytest.raises(UserError, match=r"^[^\n]+$"):
            foreign.read(path)


def test_damage_is_an_error_of_the_user_or_none(tmp_path):
    whole, dice = nvlabs(tmp_path / "net.pkl", Precond(1, 1)).read_bytes(), random.Random(0)
    path, read, errors = tmp_path / "bad.pkl", 0, []
    for _ in range(300):
        content = bytearray(whole)
        for _ in range(dice.choice([1, 1, 2, 8])):
            content[dice.randrange(len(content))] = dice.randrange(256)
        put(path, bytes(content[: dice.choice([None, None, dice.randrange(len(content))])]))
        try:
            list(foreign.read(path).tensors.values())
            read += 1
        except UserError as error:
            errors.append(str(error))
    assert read
    assert errors
    assert "\n" not in "".join(errors)


# ---- what a hostile file could cost, and genuine ones of other make


@pytest.mark.parametrize("protocol", [2, 3])
def test_older_protocols_of_pickle_are_read(tmp_path, protocol):
    """Protocol 2 has no bytes: it writes them as the UTF-8 of their Latin-1."""
    net = Precond()
    net.model.register_buffer("large", torch.randn(3 << 18))
    found = foreign.read(nvlabs(tmp_path / "net.pkl", net, protocol))
    equal(found.tensors, net.state_dict())
    assert found.hints["inner"] == {"scale": 0.25, "of": [1, [2]]}


DEEP_KEY = b"\x80\x02})" + b"\x85" * 200_000 + b"K\x01s."


def state_archive(path, pickle_bytes, **entries):
    with zipfile.ZipFile(path, "w") as made:
        made.writestr("net/data.pkl", pickle_bytes)
        for name, content in entries.items():
            made.writestr(f"net/{name}", content)
    return path


def test_a_deep_key_in_a_state_dict_does_not_reach_the_stack_of_c(tmp_path):
    metadata = storage_head(0)[: -len(pickle.dumps(0, 2))]
    put(tmp_path / "old.pth", metadata + DEEP_KEY)
    for path in (state_archive(tmp_path / "deep.pth", DEEP_KEY), tmp_path / "old.pth"):
        with pytest.raises(UserError, match="unhashable"):
            foreign.read(path)


def test_shared_settings_are_counted(tmp_path):
    """Lists of shared lists, many times over, and long texts."""
    top = Precond()
    shared = [1.5] * 99
    for _ in range(2):
        shared = [shared] * 99
    top._init_kwargs = {f"s{i}": shared for i in range(500)} | {"x" * 900 + str(i): "y" * 900
                                                               for i in range(500)}  # fmt: skip
    tracemalloc.start()
    hints = foreign.read(nvlabs(tmp_path / "net.pkl", top)).hints
    assert tracemalloc.get_traced_memory()[1] < 64 << 20
    tracemalloc.stop()
    assert len(json.dumps(hints)) < 20_000


def test_numbers_that_share_a_hash_are_refused(tmp_path):
    modulus = (1 << 61) - 1
    numbers = b"".join(pickle.dumps(1 + i * modulus, 2)[2:-1] for i in range(1, 2000))
    refused(put(tmp_path / "set.pkl", b"\x80\x04\x8f(" + numbers + b"\x90."), "more than 8 bytes")


def test_a_storage_fetched_again_is_read_once(tmp_path):
    """2,000 tensors of one large storage, each by its own call."""
    head = storage_head(0)[: -len(pickle.dumps(0, 2))] + claim(1 << 20) + pickle.dumps(["0"], 2)
    payload = head + struct.pack("<q", 1 << 20) + bytes(4 << 20)
    span = b"B" + struct.pack("<I", len(payload)) + payload + b"r\x01\0\0\0"
    fetch = b"ctorch.storage\n_load_from_bytes\nj\x01\0\0\0\x85R"
    refused(put(tmp_path / "again.pkl", b"\x80\x04(" + span + fetch * 2000 + b"t."), "layout")
    net = Precond()
    one = nn.Parameter(torch.zeros(1 << 18))
    net._parameters = {f"p{i}": one for i in range(100)}
    refused(nvlabs(tmp_path / "shared.pkl", net), "bytes of tensors in a file of")
    torch.save(dict(net._parameters), tmp_path / "shared.pth")
    refused(tmp_path / "shared.pth", "bytes of tensors in a file of")


def test_repeated_text_and_axes_are_bounded(tmp_path):
    encode = b"c_codecs\nencode\n" + text("é" * 500) + b"r\0\0\0\0" + text("latin1") + b"\x86R0"
    again = b"c_codecs\nencode\nj\0\0\0\0" + text("latin1") + b"\x86R"
    refused(put(tmp_path / "text.pkl", b"\x80\x02(" + encode.replace(b"R0", b"R")
                + again * 2_000 + b"t."), "layout")  # fmt: skip
    torch.save({"a": torch.zeros((1,) * 9)}, tmp_path / "axes.pth")
    refused(tmp_path / "axes.pth", "_rebuild_tensor_v2 of arguments")


def test_an_archive_of_odd_entries_is_refused(tmp_path):
    state = tmp_path / "net.pth"
    torch.save({"a": torch.ones(1000)}, state)
    with zipfile.ZipFile(state) as whole:
        entries = {info.filename: whole.read(info) for info in whole.infolist()}
    with zipfile.ZipFile(tmp_path / "small.pth", "w", zipfile.ZIP_DEFLATED) as small:
        for name, content in entries.items():
            small.writestr(name, content)
    refused(tmp_path / "small.pth", "compressed")
    for name, content, message in [
        ("net/byteorder", b"big", "byte order"),
        ("net/data/0", b"1234", "a storage of unknown make"),
        ("net/data.pkl", b"\x80\x02}q\0", "cut short"),
    ]:
        with zipfile.ZipFile(tmp_path / "odd.pth", "w") as odd:
            for other in entries:
                odd.writestr(other, content if other == name else entries[other])
        refused(tmp_path / "odd.pth", message)
    content = state.read_bytes()
    put(state, content + b"PK\1\2" * 100 + content[-22:])
    with contextlib.suppress(UserError):
        foreign.read(state)


# ---- state dicts of the first versions of torch


def old_tensor(key, *size):
    """The opcodes of a tensor as torch wrote it in 2017, alone in its storage."""
    numel = math.prod(size)
    stride = [math.prod(size[i + 1 :]) for i in range(len(size))]
    storage = (b"(" + text("storage") + b"ctorch\nFloatStorage\n" + text(key) + text("cpu")
               + b"J" + struct.pack("<i", numel) + b"NtQ")  # fmt: skip
    sizes = b"".join(
        b"(" + b"".join(b"K" + bytes([n]) for n in one) + b"t" for one in (size, stride)
    )
    return b"ctorch._utils\n_rebuild_tensor\n(" + storage + b"K\x00" + sizes + b"tR"


HOOKS = b"ccollections\nOrderedDict\n)R"
OLD = {  # how an entry of a state dict was written
    "a tensor": old_tensor,
    "a parameter of state": lambda *of: (
        b"ctorch.nn.parameter\nParameter\n)\x81(" + old_tensor(*of) + b"N" + HOOKS + b"\x88\x89tb"
    ),
    "a parameter of data": lambda *of: (
        b"ctorch.nn.parameter\nParameter\n"
        + old_tensor(*of)
        + b"\x85\x81(\x88\x89"
        + HOOKS
        + b"tb"
    ),
}


@pytest.mark.parametrize("form", OLD)
def test_state_dicts_of_old_versions_of_torch_are_read(tmp_path, form):
    """As torch reads them: VGG16's published file is one."""
    entries = {"features.0.weight": (2, 3), "features.0.bias": (4,)}
    state = b"\x80\x02" + HOOKS + b"("
    for key, (name, size) in enumerate(entries.items()):
        state += text(name) + OLD[form](str(key), *size)
    values = {name: torch.randn(size) for name, size in entries.items()}
    data = b"".join(struct.pack("<q", t.numel()) + t.numpy().tobytes() for t in values.values())
    head = storage_head(0)[: -len(pickle.dumps(0, 2))]
    path = put(tmp_path / "vgg.pth", head + state + b"u." + pickle.dumps(["0", "1"], 2) + data)
    equal(torch.load(path, weights_only=True), values)
    equal(foreign.read(path).tensors, values)
