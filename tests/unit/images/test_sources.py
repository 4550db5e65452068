"""Sources of images: digits, CIFAR-10, a folder or a zip."""

import io
import pickle
import tarfile

import numpy as np
import pytest
from PIL import Image

from rfpp_core.errors import UserError
from rfpp_core.images import decode, sources
from rfpp_core.images import store as image_store
from tests.unit.images.sets import CLASSES, RNG, picture, tree


@pytest.mark.parametrize("form", ["PNG", "JPEG", "BMP", "GIF", "TIFF", "WEBP"])
def test_formats_and_channels(form):
    data = picture((20, 16), "L", form)
    assert decode.decode(data, 1, 8).shape == (1, 8, 8)
    assert decode.decode(data, 3, 8).shape == (3, 8, 8)


def test_resizing_is_antialiased_and_cuts_the_centre():
    stripes = np.zeros((64, 128), np.uint8)
    stripes[:, 32:96:2] = 255  # the centre square alternates: its mean is grey
    buffer = io.BytesIO()
    Image.fromarray(stripes).save(buffer, "PNG")
    small = decode.decode(buffer.getvalue(), 1, 8)
    assert small[0, :, 2:6].min() > 100
    assert small[0, :, 2:6].max() < 155


@pytest.mark.parametrize(
    "bad", [b"", b"not an image", picture()[:60], picture(form="JPEG")[:300], b"\x89PNG\r\n\x1a\n"]
)
def test_corrupt_images_are_said_to_be_corrupt(bad):
    with pytest.raises(decode.CorruptImage):
        decode.decode(bad, 3, 8)


def test_an_image_bomb_is_corrupt(monkeypatch):
    monkeypatch.setattr(decode, "MAX_PIXELS", 100)
    with pytest.raises(decode.CorruptImage, match="12x12 pixels are too many"):
        decode.decode(picture(), 3, 8)


def test_corrupt_images_stop_the_set_unless_skipped(tmp_path):
    path = tree(tmp_path / "images", CLASSES)
    (path / "cat" / "2.png").write_bytes(b"junk")
    source = sources.folder(path, 3, 8)
    held = np.arange(10) % 5 == 4
    with pytest.raises(UserError, match=r"1 corrupt image\(s\) \(cat/2.png: .*skip_corrupt"):
        image_store.write(tmp_path / "a.zarr", source, held)
    lines = image_store.write(tmp_path / "b.zarr", source, held, skip_corrupt=True)
    assert len(lines) == 1
    assert lines[0].startswith("cat/2.png: ")
    train = image_store.read(tmp_path / "b.zarr", "train")
    assert train.images.shape == (7, 3, 8, 8)
    assert train.labels.tolist() == [0, 0, 0, 1, 1, 1, 1]
    np.testing.assert_array_equal(train.images[2], source.load(3))


def test_a_split_of_corrupt_images_alone_is_refused(tmp_path):
    path = tree(tmp_path / "images", CLASSES)
    (path / "cat" / "2.png").write_bytes(b"junk")
    source = sources.folder(path, 3, 8)
    with pytest.raises(UserError, match=r"1 corrupt image"):
        image_store.write(tmp_path / "a.zarr", source, np.arange(10) == 2, skip_corrupt=True)


def test_other_sizes_need_a_resolution(tmp_path):
    path = tree(tmp_path / "images", ["a.png", "b.png"])
    (path / "c.png").write_bytes(picture((10, 10)))
    source = sources.folder(path, 3, None)
    source.load(0)
    with pytest.raises(UserError, match=r"c.png is 10x10 pixels, not 12x12 .*dataset.resolution"):
        source.load(2)
    with pytest.raises(UserError, match=r"10x8 pixels; set dataset.resolution"):
        decode.decode(picture((10, 8)), 3, None)


@pytest.mark.parametrize("suffix", ["avif", "jfif", "jp2", "JPE", "apng", "tga", "mpo"])
def test_suffixes_that_pillow_reads(tmp_path, suffix):
    form = {"avif": "AVIF", "jp2": "JPEG2000", "apng": "PNG", "tga": "TGA"}.get(suffix, "JPEG")
    path = tree(tmp_path / "set", [f"a.{suffix}"], form=form)
    assert sources.folder(path, 3, None).load(0).shape == (3, 12, 12)


def test_images_of_a_command_line(tmp_path):
    """Their messages speak of files, not of params."""
    tree(tmp_path, ["a.png", "set/b.png", "set/c.png"])
    assert len(sources.images_at(tmp_path / "a.png", 3, 8)) == 1
    assert len(sources.images_at(tmp_path / "set", 3, 8)) == 2
    tree(tmp_path / "split", ["val/b.png", "test/c.png", "d.png"])
    (tmp_path / "split/dataset.json").write_text("{")
    assert len(sources.images_at(tmp_path / "split", 3, 8)) == 3
    with pytest.raises(UserError, match=r"nope.png does not exist; give image files") as said:
        sources.images_at(tmp_path / "nope.png", 3, 8)
    assert "params" not in str(said.value)
    (tmp_path / "a.png").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"a.png is not a readable image \(no image of a format"):
        sources.images_at(tmp_path / "a.png", 3, 8)


def test_cifar10_in_its_own_format(tmp_path, monkeypatch):
    """A small archive of the published layout; torchvision's check-sums are set to its own."""
    import hashlib

    from torchvision.datasets import CIFAR10

    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    names = [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]
    sums = {}
    for k, name in enumerate(names):
        pixels = RNG.integers(0, 256, (4, 3072), dtype=np.uint8)
        raw = pickle.dumps({"data": pixels, "labels": [k % 10] * 4})
        (folder / name).write_bytes(raw)
        sums[name] = hashlib.md5(raw).hexdigest()
    meta = pickle.dumps({"label_names": [f"class {i}" for i in range(10)]})
    (folder / "batches.meta").write_bytes(meta)
    with tarfile.open(tmp_path / "cifar-10-python.tar.gz", "w:gz") as archive:
        archive.add(folder, folder.name)
    monkeypatch.setattr(CIFAR10, "train_list", [[n, sums[n]] for n in names[:5]])
    monkeypatch.setattr(CIFAR10, "test_list", [["test_batch", sums["test_batch"]]])
    meta_entry = {**CIFAR10.meta, "md5": hashlib.md5(meta).hexdigest()}
    monkeypatch.setattr(CIFAR10, "meta", meta_entry)
    source = sources.cifar10(tmp_path)
    assert source.held_out.tolist() == [False] * 20 + [True] * 4
    assert source.load(23).shape == (3, 32, 32)
    np.testing.assert_array_equal(source.load(23).reshape(-1), pixels[3])
    assert len(source.classes) == 10


def test_cifar10_that_cannot_be_had(tmp_path, monkeypatch):
    from torchvision.datasets import CIFAR10

    def offline(self):
        raise OSError("no network")

    monkeypatch.setattr(CIFAR10, "download", offline)
    with pytest.raises(UserError, match=r"cannot be downloaded \(no network\); put cifar-10"):
        sources.cifar10(tmp_path)
