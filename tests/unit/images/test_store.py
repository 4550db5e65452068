import shutil

import numpy as np
import pytest
import torch

from rfpp_core.errors import Corrupted, UserError
from rfpp_core.evaluation import classifier
from rfpp_core.images import pixels, sources
from rfpp_core.images import store as image_store


def split():
    digits = sources.digits()
    return digits, sources.held_out_mask(digits.labels, 0.2, 0)


def test_the_split_is_seeded_and_stratified():
    digits, held = split()
    assert len(digits.keys) == 1797
    for label in range(10):
        share = held[digits.labels == label].mean()
        assert share == pytest.approx(0.2, abs=0.005)
    np.testing.assert_array_equal(sources.held_out_mask(digits.labels, 0.2, 0), held)
    assert not np.array_equal(sources.held_out_mask(digits.labels, 0.2, 1), held)


def test_grey_levels_survive_the_round_trip():
    q = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(pixels.to_uint8(pixels.to_float(q)), q)
    assert pixels.to_uint8(torch.tensor([-3.0, 3.0])).tolist() == [0, 255]
    nearest = pixels.to_uint8(pixels.to_float(q).double() + 0.0039 * 0.9)
    assert torch.equal(nearest, q)


def test_the_store_gives_back_what_was_written(tmp_path):
    digits, held = split()
    path = tmp_path / "images.zarr"
    assert image_store.write(path, digits, held, name="digits") == []
    for name, mask in (("train", ~held), ("held_out", held)):
        read = image_store.read(path, name)
        expected = np.stack([digits.load(i) for i in np.flatnonzero(mask)])
        np.testing.assert_array_equal(read.images, expected)
        np.testing.assert_array_equal(read.labels, digits.labels[mask])
    metadata = image_store.metadata(path)
    assert (metadata["shape"], metadata["classes"], metadata["name"]) == ([1, 8, 8], 10, "digits")
    other = tmp_path / "other.zarr"
    image_store.write(other, digits, sources.held_out_mask(digits.labels, 0.2, 1))
    assert image_store.metadata(other)["digest"] != metadata["digest"]


def flip(file):
    content = file.read_bytes()
    file.write_bytes(content[:40] + bytes([content[40] ^ 1]) + content[41:])


@pytest.mark.parametrize("name", ["images/c/1/0/0/0", "labels/c/0"])
@pytest.mark.parametrize(
    "harm",
    [lambda f: f.unlink(), lambda f: f.write_bytes(b""), flip,
     lambda f: f.write_bytes(f.read_bytes()[:60])],
)  # fmt: skip
def test_corruption_is_never_read_silently(tmp_path, name, harm):
    """Zarr reads missing and empty files as zeros."""
    digits, held = split()
    path = tmp_path / "images.zarr"
    image_store.write(path, digits, held)
    harm(path / "train" / name)
    for read in (lambda: image_store.read(path, "train"),
                 lambda: image_store.read_some(path, "train", slice(900, 1100))):  # fmt: skip
        with pytest.raises(Corrupted, match=r"corrupted in the split train.*dvc repro prepare"):
            read()
    image_store.read(path, "held_out")


def test_another_split_under_the_same_name_is_refused(tmp_path):
    """What every file says of itself may be right, and the set still not the one written."""
    digits, held = split()
    one, other = tmp_path / "one.zarr", tmp_path / "other.zarr"
    image_store.write(one, digits, held)
    image_store.write(other, digits, sources.held_out_mask(digits.labels, 0.2, 1))
    shutil.rmtree(one / "train")
    shutil.copytree(other / "train", one / "train")
    with pytest.raises(Corrupted, match="not what was written"):
        image_store.read(one, "train")


def test_a_missing_store_names_the_command(tmp_path):
    with pytest.raises(UserError, match="dvc repro prepare"):
        image_store.metadata(tmp_path / "images.zarr")


def test_shifts_move_images_by_a_pixel():
    x = torch.arange(16.0).reshape(1, 1, 4, 4).repeat(3, 1, 1, 1)
    moved = classifier.shifted(x, torch.tensor([0.5, 0.1, 0.9]), torch.tensor([0.5, 0.5, 0.5]))
    assert torch.equal(moved[0], x[0])
    assert torch.equal(moved[1, :, 1:], x[1, :, :-1])
    assert torch.equal(moved[2, :, :-1], x[2, :, 1:])
