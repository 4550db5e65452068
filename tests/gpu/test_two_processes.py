"""Two processes, on a card each, on one card, or on the CPU, train what one does."""

import os
import subprocess
import sys

import torch

from pipeline.workers.launch import free_port
from rfpp_core.storage import checkpoint
from tests.gpu.small import go, start, with_
from tests.helpers import ROOT

TOLERANCE = 1e-4  # sums of gradients in another order, over 6 updates of Adam


def test_two_are_one(device, tmp_path):
    out, port = tmp_path / "two.safetensors", str(free_port())
    place = {
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
        "RFPP_DEVICE": device.type,
    }
    both = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.gpu.two", device.type, str(out)],
            cwd=ROOT,
            env={**os.environ, **place, "RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank in range(2)
    ]
    assert [process.wait(300) for process in both] == [0, 0]
    alone = start("ncsnpp", with_(steps=6), device)
    go(alone, with_(steps=6))
    found = checkpoint.load(out).tensors
    for name, tensor in alone.net.state_dict().items():
        torch.testing.assert_close(found[name], tensor.cpu(), rtol=0, atol=TOLERANCE)
