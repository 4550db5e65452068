"""Batches that are copied to a device while it computes are those that the CPU has."""

import torch

from rfpp_core.images import loader
from tests.gpu.small import images


def test_batches_of_a_set_in_memory(device):
    data, labels = images(24), torch.arange(24)
    here = loader.batches(data, labels, 5, 3, torch.device("cpu"))
    there = loader.batches(data, labels, 5, 3, device)
    busy = torch.zeros(64, 64, device=device)
    for _ in range(30):
        a, b = next(here), next(there)
        busy = torch.tanh(busy @ busy + b.x.mean())  # the device is not done with the batch
        assert torch.equal(a.x, b.x.cpu())
        assert b.x.is_contiguous(memory_format=torch.channels_last)
        assert torch.equal(a.position, b.position.cpu())
        assert torch.equal(a.y, b.y.cpu())


def test_batches_of_a_set_on_the_device(device):
    data = images(24)
    here = loader.batches(data, None, 5, 3, torch.device("cpu"), start=7)
    there = loader.batches(loader.place(data, device), None, 5, 3, device, start=7)
    for _ in range(10):
        a, b = next(here), next(there)
        assert torch.equal(a.x, b.x.cpu())
        assert b.y is None
