"""Hostile and broken checkpoints: refused in one line, in little memory, and never run."""

import contextlib
import copyreg
import json
import os
import pickle
import random
import sys
import tracemalloc
import zipfile

import pytest
import torch

from rfpp_core.errors import UserError
from rfpp_core.interop import foreign, spans
from tests.unit.interop import hostile_code, hostile_data
from tests.unit.interop.layouts import Precond, nvlabs, put, text

# torch's, about files that are refused anyway, and about making some of them
pytestmark = pytest.mark.filterwarnings(
    "ignore:Detected pickle protocol", "ignore:Validating sparse", "ignore:.torch.jit"
)


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


def refuse(folder, case):
    """Writes the file of a case, which must be refused and have run nothing."""
    path = folder / "bad"
    case.write(path)
    refused(path, case.message)
    assert not (folder / "canary").exists()


# ---- what would run something


@pytest.mark.parametrize("name", hostile_code.MALICIOUS)
def test_a_malicious_pickle_is_refused_by_name(tmp_path, monkeypatch, name):
    canary = tmp_path / "canary"
    put(tmp_path / "canary_of_foreign.py", f"open({str(canary)!r}, 'w')".encode())
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(copyreg, "_inverted_registry", {0xF0: ("os", "system")})
    monkeypatch.setattr(pickle, "_inverted_registry", {0xF0: ("os", "system")})
    monkeypatch.setattr(pickle, "_extension_cache", {0xF0: os.system})
    refuse(tmp_path, hostile_code.malicious(name))
    assert "canary_of_foreign" not in sys.modules


@pytest.mark.parametrize("name", hostile_code.STORAGES)
def test_a_malicious_storage_is_refused_by_name(tmp_path, name):
    refuse(tmp_path, hostile_code.STORAGES[name])


@pytest.mark.parametrize("name", hostile_code.STATE_DICTS)
def test_a_malicious_state_dict_is_refused_in_one_line(tmp_path, name):
    refuse(tmp_path, hostile_code.STATE_DICTS[name])


# ---- what is not there


@pytest.mark.parametrize("name", hostile_code.CLAIMS)
def test_a_storage_cannot_claim_more_than_there_is(tmp_path, name):
    refuse(tmp_path, hostile_code.CLAIMS[name])


@pytest.mark.parametrize("name", hostile_code.OPCODES)
def test_a_claim_of_size_or_depth_is_refused_before_it_is_met(tmp_path, name):
    refuse(tmp_path, hostile_code.OPCODES[name])


def test_an_endless_pickle_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(spans, "MOST_READS", 10_000)
    refused(put(tmp_path / "bad.pkl", b"\x80\x04" + b"]" * 20_000), "longer than any network's")
    monkeypatch.setattr(spans, "LONGEST", 100)
    refused(put(tmp_path / "bad.pkl", b"\x80\x04" + text("x" * 200)), "longer than any network's")


@pytest.mark.parametrize("name", hostile_data.TENSORS)
def test_a_tensor_must_be_inside_its_storage(tmp_path, name):
    refuse(tmp_path, hostile_data.TENSORS[name])


# ---- networks and layouts that are none


@pytest.mark.parametrize("name", hostile_data.NETWORKS)
def test_networks_in_a_circle_or_without_end_are_refused(tmp_path, name):
    refuse(tmp_path, hostile_data.NETWORKS[name])


@pytest.mark.parametrize("name", hostile_data.UNKNOWN_NETWORKS)
def test_a_network_of_unknown_make_is_refused(tmp_path, name):
    refuse(tmp_path, hostile_data.UNKNOWN_NETWORKS[name])


@pytest.mark.parametrize("name", hostile_data.UNKNOWN_LAYOUTS)
def test_a_pickle_of_unknown_layout_is_refused(tmp_path, name):
    refuse(tmp_path, hostile_data.UNKNOWN_LAYOUTS[name])


@pytest.mark.parametrize("name", hostile_data.OTHER_VERSIONS)
def test_a_persistent_object_of_another_version_is_refused(tmp_path, name):
    refuse(tmp_path, hostile_data.OTHER_VERSIONS[name])


@pytest.mark.parametrize("name", hostile_data.NO_STATE_DICTS)
def test_what_is_no_state_dict_is_refused(tmp_path, name):
    refuse(tmp_path, hostile_data.NO_STATE_DICTS[name])


@pytest.mark.parametrize("name", hostile_data.GARBAGE)
def test_garbage_is_one_clear_line(tmp_path, name):
    refuse(tmp_path, hostile_data.GARBAGE[name])


@pytest.mark.parametrize("name", hostile_data.ARCHIVES)
def test_an_archive_of_something_else_is_refused(tmp_path, name):
    refuse(tmp_path, hostile_data.ARCHIVES[name])


def test_what_is_missing_is_said(tmp_path):
    refused(tmp_path / "none.pkl", "is missing; name a checkpoint file")
    refused(tmp_path, "is missing; name a checkpoint file")


# ---- damage


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


# ---- what would take time or memory


@pytest.mark.parametrize("name", hostile_data.COSTLY)
def test_what_would_take_time_or_memory_is_refused(tmp_path, name):
    """Deep keys would exhaust the C stack with their hash, and numbers of one hash take hours."""
    if "deep" not in name:
        refuse(tmp_path, hostile_data.COSTLY[name])
        return
    hostile_data.COSTLY[name].write(tmp_path / "bad")  # too many objects to trace: see test_bounds
    with pytest.raises(UserError, match=hostile_data.COSTLY[name].message):
        foreign.read(tmp_path / "bad")


@pytest.mark.parametrize("name", hostile_data.LARGE)
def test_safetensors_larger_than_a_network_s_are_refused(tmp_path, name):
    path = tmp_path / "bad"
    hostile_data.LARGE[name].write(path)
    if "metadata" in name:  # read by whoever wants it
        assert list(foreign.read(path).tensors) == ["x"]
    else:
        refused(path, hostile_data.LARGE[name].message)


def test_a_type_without_a_place_here_is_refused(tmp_path):
    hostile_data.SAFETENSORS["a type without a place here"].write(tmp_path / "bad")
    refused(tmp_path / "bad", "holds a tensor of type F4; allowed are F64, F32")


def test_settings_without_end_are_left_out(tmp_path):
    top = hostile_data.settings_without_end()
    hints = foreign.read(nvlabs(tmp_path / "net.pkl", top)).hints
    assert hints["fine"] == [1, 2]
    assert not {"doubling", "circle"} & hints.keys()


def test_shared_settings_are_counted(tmp_path):
    """Lists of shared lists, many times over, and long texts."""
    path = nvlabs(tmp_path / "net.pkl", hostile_data.shared_settings())
    tracemalloc.start()
    hints = foreign.read(path).hints
    assert tracemalloc.get_traced_memory()[1] < 64 << 20
    tracemalloc.stop()
    assert len(json.dumps(hints)) < 20_000


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
        ("net/data/0", b"1234", "a storage of an unknown kind"),
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
