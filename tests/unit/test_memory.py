"""A device without enough memory is one line, wherever something is computed on it."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline import artifacts
from pipeline.cli import main, presets
from pipeline.stages import network, prepare, reference, source
from rfpp_core import runtime
from rfpp_core.errors import UserError
from rfpp_core.model.precond import PlainVelocity
from tests.helpers import save_tiny

CUBLAS = "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"


@pytest.mark.parametrize(("full", "reason"), [
    (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has\nmore"),
     "CUDA out of memory"),
    (RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be asynchronously"),
     "CUDA error: out of memory"),
    (RuntimeError(CUBLAS), CUBLAS),
    (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
     "cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
    (RuntimeError("[enforce fail at alloc_cpu.cpp:121] err == 0. DefaultCPUAllocator: can't "
                  "allocate memory: you tried to allocate 4000 bytes. Error code 12 (Cannot"),
     "DefaultCPUAllocator: can't allocate memory: you tried to allocate 4000 bytes"),
    (MemoryError("Unable to allocate 9.00 GiB for an array with shape (9,)"),
     "Unable to allocate 9.00 GiB for an array with shape (9,)"),
    (MemoryError(), "out of memory"),
])  # fmt: skip
@pytest.mark.parametrize("kind", [UserError, MemoryError])
def test_every_form_of_it_is_one_line(full, reason, kind):
    with pytest.raises(kind) as said:
        with runtime.enough_memory("lower batch", kind):
            raise full
    assert str(said.value) == f"{reason}; lower batch"


@pytest.mark.parametrize("other", [RuntimeError("CUDA error: device-side assert"), KeyError("x"),
                                   UserError("out of memory")])  # fmt: skip
def test_other_errors_pass(other):
    with pytest.raises(type(other)) as said:
        with runtime.enough_memory("lower batch"):
            raise other
    assert said.value is other


@pytest.fixture
def full(monkeypatch):
    """A device on which no network fits."""

    def fails(*_args, **_more):
        raise RuntimeError(CUBLAS)

    monkeypatch.setattr(PlainVelocity, "__call__", fails)
    monkeypatch.setattr(torch.nn.Conv2d, "__call__", fails)


@pytest.mark.parametrize("command", [
    ["sample", "--n", "2"], ["invert", "images"], ["interpolate", "images"],
    ["translate", "images", "--from", "0", "--to", "1"],
])  # fmt: skip
def test_commands(tmp_path, full, monkeypatch, capsys, command):
    name, *args = command
    save_tiny(tmp_path / "flow.safetensors", classes=10 if name == "translate" else 0)
    (tmp_path / "images").mkdir()
    for i in range(2):
        Image.fromarray(np.full((8, 8), 100 * i, np.uint8)).save(tmp_path / f"images/{i}.png")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["rfpp", name, *args, "--model", "flow.safetensors"])
    with pytest.raises(SystemExit) as ended:
        main.entry()
    line = capsys.readouterr().err
    assert (ended.value.code, line.count("\n")) == (2, 1)
    assert line.startswith(f"rfpp: {CUBLAS}; ")
    assert "RFPP_DEVICE=cpu" in line


def test_reference(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".dvc").mkdir()
    artifacts.PARAMS.write_text(presets.composed("smoke"))
    source.run()
    prepare.run()
    network.run("unet")

    def fails(*_args, **_more):
        raise RuntimeError(CUBLAS)

    monkeypatch.setattr(reference, "extract_features", fails)
    with pytest.raises(UserError, match=r"ALLOC_FAILED .*; .*RFPP_DEVICE=cpu"):
        reference.run()
