"""Sample sets drawn by workers are those that the flow draws by itself."""

import os
import signal
import threading
import time

import pytest
import torch

from pipeline.workers import drawing
from rfpp_core.config import build
from rfpp_core.errors import UserError
from rfpp_core.images.pixels import to_uint8
from rfpp_core.sampling.flow import MICRO_BATCH
from rfpp_core.sampling.sampler import SamplerConfig
from tests.helpers import processes_in, save_tiny

N = 2 * MICRO_BATCH + 70
EULER = SamplerConfig("euler", 2)


@pytest.fixture
def two(monkeypatch):
    monkeypatch.delenv("RFPP_DEVICE", raising=False)
    monkeypatch.setenv("RFPP_DEVICES", "cpu")
    monkeypatch.setenv("RFPP_WORKERS", "2")


@pytest.mark.parametrize("classes", [0, 3])
def test_two_workers_draw_what_the_flow_draws(tmp_path, two, classes):
    path = save_tiny(tmp_path / "flow.safetensors", classes)
    flow = build.load_flow(path)
    y = torch.arange(N) % classes if classes else None
    with drawing.everywhere(flow, path) as draw:
        for sampler in (EULER, SamplerConfig("heun", 3)):
            own = flow.from_noise_key(5, N, sampler, y, finish=to_uint8)
            assert own.dtype == torch.uint8
            assert torch.equal(draw(5, N, sampler, y), own)
        assert torch.equal(draw(5, 20, EULER, None if y is None else y[:20]),
                           flow.from_noise_key(5, 20, EULER, None if y is None else y[:20],
                                               finish=to_uint8))  # fmt: skip


def test_one_device_draws_by_itself(tmp_path, monkeypatch):
    monkeypatch.setenv("RFPP_DEVICES", "cpu")
    monkeypatch.delenv("RFPP_WORKERS", raising=False)
    path = save_tiny(tmp_path / "flow.safetensors")
    with drawing.everywhere(build.load_flow(path), path) as draw:
        assert draw is None


@pytest.mark.parametrize(("name", "value"), [
    ("RFPP_DEVICE", "cpu"),  # the one to use
    ("RFPP_DEVICES", "cuda:0,cuda:1"),  # of another kind than the flow's
])  # fmt: skip
def test_devices_that_are_not_meant_do_not_draw(tmp_path, two, monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    path = save_tiny(tmp_path / "flow.safetensors")
    with drawing.everywhere(build.load_flow(path, torch.device("cpu")), path) as draw:
        assert draw is None


def test_another_flow_in_the_file_is_refused(tmp_path, two):
    path = save_tiny(tmp_path / "flow.safetensors")
    flow = build.load_flow(path)
    save_tiny(path, seed=1)
    with (
        pytest.raises(UserError, match="changed while its images were drawn"),
        drawing.everywhere(flow, path) as draw,
    ):
        draw(5, N, EULER, None)


def test_a_dead_worker_is_one_line_and_none_is_left(tmp_path, two, monkeypatch):
    path = save_tiny(tmp_path / "flow.safetensors")
    monkeypatch.chdir(tmp_path)

    def kill():
        while not (
            there := [p for p, line in processes_in(tmp_path).items() if "spawn_main" in line]
        ):
            time.sleep(0.01)
        os.kill(there[0], signal.SIGKILL)

    thread = threading.Thread(target=kill)
    thread.start()
    with (
        pytest.raises(UserError, match="was killed; what was measured is kept: run it again"),
        drawing.everywhere(build.load_flow(path), path) as draw,
    ):
        draw(5, N, SamplerConfig("euler", 10_000), None)
    thread.join()
    assert not [line for line in processes_in(tmp_path).values() if "spawn_main" in line]
