"""Checkpoints from elsewhere: read bit by bit as they are.  What is refused: ``test_hostile``."""

import json
import os
import pickle
import struct
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from rfpp_core.errors import UserError
from rfpp_core.interop import foreign
from tests.helpers import ROOT
from tests.unit.interop.hostile_code import HEAD
from tests.unit.interop.layouts import (
    HOOKS,
    OLD,
    PERSISTENT,
    Net,
    Persistent,
    Precond,
    equal,
    nvlabs,
    put,
    text,
)

# torch's, about making some of these files
pytestmark = pytest.mark.filterwarnings(
    "ignore:Detected pickle protocol", "ignore:Validating sparse", "ignore:'torch.load' received"
)


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


# ---- what else is read


def test_a_tensor_may_be_any_part_of_its_storage(tmp_path):
    net, whole = Precond(), torch.arange(12.0)
    parts = {"a": whole[3:7], "b": whole.view(3, 4).t()[1:, ::2], "c": whole[12:], "d": whole[5]}
    for name, part in parts.items():
        net.register_buffer(name, part)
    equal(foreign.read(nvlabs(tmp_path / "net.pkl", net)).tensors, net.state_dict())


@pytest.mark.parametrize("protocol", [2, 3])
def test_older_protocols_of_pickle_are_read(tmp_path, protocol):
    """Protocol 2 has no bytes: it writes them as the UTF-8 of their Latin-1."""
    net = Precond()
    net.model.register_buffer("large", torch.randn(3 << 18))
    found = foreign.read(nvlabs(tmp_path / "net.pkl", net, protocol))
    equal(found.tensors, net.state_dict())
    assert found.hints["inner"] == {"scale": 0.25, "of": [1, [2]]}


@pytest.mark.parametrize("form", OLD)
def test_state_dicts_of_old_versions_of_torch_are_read(tmp_path, form):
    """As torch reads them: VGG16's published file is one."""
    entries = {"features.0.weight": (2, 3), "features.0.bias": (4,)}
    state = b"\x80\x02" + HOOKS + b"("
    for key, (name, size) in enumerate(entries.items()):
        state += text(name) + OLD[form](str(key), *size)
    values = {name: torch.randn(size) for name, size in entries.items()}
    data = b"".join(struct.pack("<q", t.numel()) + t.numpy().tobytes() for t in values.values())
    path = put(tmp_path / "vgg.pth", HEAD + state + b"u." + pickle.dumps(["0", "1"], 2) + data)
    equal(torch.load(path, weights_only=True), values)
    equal(foreign.read(path).tensors, values)
