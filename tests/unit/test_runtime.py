"""Devices, exact settings and what is said when a device's memory is full; no GPU is needed."""

import os
import subprocess
import sys

import pytest
import torch

from pipeline.workers.pool import SPOILT
from rfpp_core import runtime
from rfpp_core.errors import UserError

CUDA = torch.device("cuda")


@pytest.fixture
def two_cards(monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)


@pytest.mark.parametrize(
    ("given", "place", "world", "expected"),
    [
        (None, None, None, "cuda"),
        ("cuda", None, None, "cuda"),
        ("cuda:1", None, None, "cuda:1"),
        ("cpu", "1", "2", "cpu"),
        (None, "1", "2", "cuda:1"),
        ("cuda", "1", "2", "cuda:1"),
        ("cuda:0", "1", "2", "cuda:1"),
        ("cuda:1", "0", "1", "cuda:1"),
        ("cuda", "0", "1", "cuda:0"),
    ],
)
def test_each_process_has_its_own_device(monkeypatch, two_cards, given, place, world, expected):
    """LOCAL_RANK decides among several processes, unless the variable says ``cpu``."""
    for name, value in {"RFPP_DEVICE": given, "LOCAL_RANK": place, "WORLD_SIZE": world}.items():
        if value is not None:
            monkeypatch.setenv(name, value)
    assert runtime.device() == torch.device(expected)


def test_more_processes_than_devices_is_one_line(monkeypatch, two_cards):
    monkeypatch.setenv("LOCAL_RANK", "2")
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(UserError, match=r"there are 2 CUDA device\(s\), too few .* RFPP_PROCESS"):
        runtime.device()


def test_signatures(monkeypatch):
    """Stored markers carry the CPU's, so it must not change; CUDA's tells what moves bits."""
    capability = torch.backends.cpu.get_cpu_capability()
    cpu = f"cpu {capability}, torch {torch.__version__}"
    assert runtime.signature(torch.device("cpu")) == cpu
    monkeypatch.setattr("torch.cuda.get_device_name", lambda device: "Card")
    monkeypatch.setattr("torch.backends.cudnn.version", lambda: 91002)
    try:
        found = []
        for tf32 in (False, True):
            runtime.exact(tf32)
            found.append(runtime.signature(CUDA))
            assert torch.backends.cudnn.deterministic
            assert torch.backends.cudnn.allow_tf32 == tf32
        start = f"Card, torch {torch.__version__}, cudnn 91002, "
        assert found == [start + "fp32", start + "tf32"]
    finally:
        runtime.exact()


def test_a_training_is_deterministic_where_torch_can():
    """In a process of its own: the setting is the process's.  On a CPU nothing more is set."""
    code = (
        "import os, torch; from rfpp_core import runtime\n"
        "runtime.exact_training(torch.device('cpu'))\n"
        "assert not torch.are_deterministic_algorithms_enabled()\n"
        "runtime.exact_training(torch.device('cuda'), tf32=True)\n"
        "print(torch.are_deterministic_algorithms_enabled(),"
        " torch.is_deterministic_algorithms_warn_only_enabled(),"
        " torch.utils.deterministic.fill_uninitialized_memory,"
        " os.environ.get('CUBLAS_WORKSPACE_CONFIG'), torch.backends.cuda.matmul.allow_tf32)"
    )
    env = {k: v for k, v in os.environ.items() if k != "CUBLAS_WORKSPACE_CONFIG"}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert done.stdout.strip() == "True True False :4096:8 True", done.stderr


def test_out_of_memory_is_one_line_with_advice():
    said = "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has 1 MiB free.\nProcess 7 has"
    for kind in (UserError, MemoryError):
        with pytest.raises(kind, match=r"^CUDA out of memory; lower batch$"):
            with runtime.enough_memory("lower batch", kind):
                raise torch.OutOfMemoryError(said)


@pytest.mark.parametrize(
    "error",
    [
        "cuDNN error: CUDNN_STATUS_EXECUTION_FAILED",
        "CUBLAS_STATUS_NOT_INITIALIZED",
        "NCCL Error 2",
        "CUDA error: an illegal memory access",
        "CUDA out of memory",
    ],
)
def test_signs_of_a_spoilt_context(error):
    from pipeline.workers.pool import _spoils_the_worker

    assert _spoils_the_worker(RuntimeError(error))
    assert not _spoils_the_worker(RuntimeError("shapes differ"))
    assert SPOILT
