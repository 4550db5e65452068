"""The order of training images, and where they lie."""

from contextlib import nullcontext
from itertools import islice

import pytest
import torch

from rfpp_core.errors import UserError
from rfpp_core.images import loader

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
IMAGES = torch.randint(
    0, 256, (40, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
)


def test_order_is_a_function_of_seed_and_step():
    def positions(start, n):
        source = loader.batches(IMAGES, None, 16, 3, CPU, start)
        return [batch.position.tolist() for batch in islice(source, n)]

    whole = positions(0, 6)
    assert positions(3, 3) == whole[3:]
    for epoch in (whole[0:2], whole[2:4]):  # 40 // 16 = 2 batches an epoch, without repeats
        assert len({position for batch in epoch for position in batch}) == 32
    assert whole[0:2] != whole[2:4]


def test_batches_hold_the_images_they_name():
    labels = torch.arange(40)
    batch = next(loader.batches(IMAGES, labels, 16, 3, CPU))
    torch.testing.assert_close(batch.x, IMAGES[batch.position].float() / 127.5 - 1)
    assert torch.equal(batch.y, batch.position)


def test_a_batch_larger_than_the_set_is_refused():
    with pytest.raises(UserError, match="batch is 41 but there are only 40"):
        next(loader.batches(IMAGES, None, 41, 0, CPU))


@pytest.mark.parametrize(("gib", "free", "stays"), [(24, 24, True), (16, 16, False),
                                                    (24, 5, False), (139, 139, True)])  # fmt: skip
def test_a_set_takes_little_of_a_card(monkeypatch, gib, free, stays):
    """CIFAR-10's million pairs: an eighth of a card at most, and half of what is free."""

    class Images:
        def numel(self):
            return 1_000_000 * 3072

        def to(self, device):
            return device

    memory = (free * 2**30, gib * 2**30)
    monkeypatch.setattr("torch.cuda.mem_get_info", lambda device: memory)
    images = Images()
    assert loader.place(images, CUDA) is (CUDA if stays else images)
    assert loader.place(images, torch.device("cpu")) is images


class Stream:
    """A CUDA stream that has nothing to do."""

    def __init__(self, *_):
        self.waited = 0

    def wait_stream(self, other):
        self.waited += 1


def test_copying_ahead_changes_no_batch(monkeypatch):
    """By streams that do nothing, on the CPU: the order, and one batch ahead."""
    current = Stream()
    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "stream", lambda _: nullcontext())
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _: current)
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: tensor)
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda tensor, stream: None)
    images, taken = torch.randint(0, 256, (20, 1, 4, 4), dtype=torch.uint8), []

    def counted():
        for batch in loader.picked(images, torch.arange(20), 6, 3):
            taken.append(batch)
            yield batch

    plain = loader.picked(images, torch.arange(20), 6, 3)
    ahead = loader._copied_ahead(counted(), CPU)
    for step in range(5):
        a, b = next(plain), next(ahead)
        assert all(torch.equal(one, other) for one, other in zip(a, b, strict=True))
        assert len(taken) == step + 2
        assert current.waited == step + 1
