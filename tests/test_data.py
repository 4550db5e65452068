import numpy as np
import pytest
import torch

from rfpp_core import data, features
from rfpp_core.errors import UserError


def test_the_split_is_seeded_and_stratified():
    digits = data.digits()
    assert digits.images.shape == (1797, 1, 8, 8)
    parts = data.split(digits, 0.2, seed=0)
    train, held = parts["train"], parts["held_out"]
    assert len(train.labels) + len(held.labels) == 1797
    for label in range(10):
        share = (held.labels == label).sum() / (digits.labels == label).sum()
        assert share == pytest.approx(0.2, abs=0.005)
    again, other = data.split(digits, 0.2, 0), data.split(digits, 0.2, 1)
    np.testing.assert_array_equal(again["train"].images, train.images)
    assert not np.array_equal(other["train"].images, train.images)
    rows = {image.tobytes() + bytes([label]) for image, label in zip(*train, strict=True)}
    both = [image.tobytes() + bytes([label]) in rows for image, label in zip(*held, strict=True)]
    assert np.mean(both) < 0.01  # held-out images are not training images


def test_grey_levels_survive_the_round_trip():
    q = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(data.to_uint8(data.to_float(q)), q)
    assert data.to_uint8(torch.tensor([-3.0, 3.0])).tolist() == [0, 255]
    nearest = data.to_uint8(data.to_float(q).double() + 0.0039 * 0.9)
    assert torch.equal(nearest, q)


def test_the_store_gives_back_what_was_written(tmp_path):
    parts = data.split(data.digits(), 0.2, 0)
    data.write(tmp_path / "images.zarr", parts, name="digits")
    for name, part in parts.items():
        read = data.read(tmp_path / "images.zarr", name)
        np.testing.assert_array_equal(read.images, part.images)
        np.testing.assert_array_equal(read.labels, part.labels)
    about = data.about(tmp_path / "images.zarr")
    assert (about["shape"], about["classes"], about["name"]) == ([1, 8, 8], 10, "digits")


def test_a_missing_store_names_the_command(tmp_path):
    with pytest.raises(UserError, match="dvc repro prepare"):
        data.about(tmp_path / "images.zarr")


def test_shifts_move_images_by_a_pixel():
    x = torch.arange(16.0).reshape(1, 1, 4, 4).repeat(3, 1, 1, 1)
    moved = features.shifted(x, torch.tensor([0.5, 0.1, 0.9]), torch.tensor([0.5, 0.5, 0.5]))
    assert torch.equal(moved[0], x[0])
    assert torch.equal(moved[1, :, 1:], x[1, :, :-1])
    assert torch.equal(moved[2, :, :-1], x[2, :, 1:])
