"""Folders and archives of strangers: read, split, labelled, or refused in one line."""

import io
import pickle
import tarfile
import zipfile

import numpy as np
import pytest
from PIL import Image

from rfpp_core import data, decode, sources
from rfpp_core.errors import UserError

RNG = np.random.default_rng(0)


def picture(side=(12, 12), mode="RGB", form="PNG"):
    shape = (side[1], side[0], 3) if mode == "RGB" else (side[1], side[0])
    buffer = io.BytesIO()
    Image.fromarray(RNG.integers(0, 256, shape, dtype=np.uint8)).save(buffer, form)
    return buffer.getvalue()


def tree(path, names, **kwargs):
    for name in names:
        file = path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(picture(**kwargs))
    return path


def zipped(path, names, **kwargs):
    with zipfile.ZipFile(path, "w") as archive:
        for name in names:
            archive.writestr(name, picture(**kwargs))
    return path


CLASSES = [f"{label}/{i}.png" for label in ("cat", "dog") for i in range(5)]


@pytest.mark.parametrize("make", [tree, zipped])
@pytest.mark.parametrize("wrapper", ["", "set/", "set/test/"])
def test_class_folders_are_labels(tmp_path, make, wrapper):
    path = make(tmp_path / "images", [wrapper + name for name in CLASSES])
    source = sources.folder(path, 3, None)
    assert list(source.classes) == ["cat", "dog"]
    assert source.labels.tolist() == [0] * 5 + [1] * 5
    assert source.held_out is None
    assert source.load(0).shape == (3, 12, 12)


def test_a_given_split_is_taken(tmp_path):
    names = [f"{part}/{name}" for part in ("train", "test") for name in CLASSES]
    source = sources.folder(tree(tmp_path / "images", names), 3, None)
    assert [key.startswith("test") for key in source.keys] == source.held_out.tolist()
    assert list(source.classes) == ["cat", "dog"]


def test_flat_folders_have_no_labels(tmp_path):
    source = sources.folder(tree(tmp_path / "images", ["a.png", "b.png"]), 3, None)
    assert (list(source.classes), source.labels.tolist()) == ([], [-1, -1])


def test_numbers_sort_as_numbers(tmp_path):
    path = tree(tmp_path / "images", [f"{label}/x.png" for label in (10, 9, 1)])
    assert list(sources.folder(path, 3, None).classes) == ["1", "9", "10"]


def test_labels_from_a_csv(tmp_path):
    path = tree(tmp_path / "images", ["a.png", "b.png", "c.png"])
    table = tmp_path / "labels.csv"
    table.write_text("a.png,x\nb.png,y\nc.png,x\n")
    assert sources.folder(path, 3, None, str(table)).labels.tolist() == [0, 1, 0]
    table.write_text("a.png,x\n")
    with pytest.raises(UserError, match=r"no label for 2 of 3 images .* the first is b.png"):
        sources.folder(path, 3, None, str(table))
    with pytest.raises(UserError, match="cannot be read"):
        sources.folder(path, 3, None, str(tmp_path / "nowhere.csv"))


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
        data.write(tmp_path / "a.zarr", source, held)
    lines = data.write(tmp_path / "b.zarr", source, held, skip_corrupt=True)
    assert len(lines) == 1
    assert lines[0].startswith("cat/2.png: ")
    train = data.read(tmp_path / "b.zarr", "train")
    assert train.images.shape == (7, 3, 8, 8)
    assert train.labels.tolist() == [0, 0, 0, 1, 1, 1, 1]
    np.testing.assert_array_equal(train.images[2], source.load(3))


def test_a_split_of_corrupt_images_alone_is_refused(tmp_path):
    path = tree(tmp_path / "images", CLASSES)
    (path / "cat" / "2.png").write_bytes(b"junk")
    source = sources.folder(path, 3, 8)
    with pytest.raises(UserError, match=r"1 corrupt image"):
        data.write(tmp_path / "a.zarr", source, np.arange(10) == 2, skip_corrupt=True)


def test_other_sizes_need_a_resolution(tmp_path):
    path = tree(tmp_path / "images", ["a.png", "b.png"])
    (path / "c.png").write_bytes(picture((10, 10)))
    source = sources.folder(path, 3, None)
    source.load(0)
    with pytest.raises(UserError, match=r"c.png is 10x10 pixels, not 12x12 .*dataset.resolution"):
        source.load(2)
    with pytest.raises(UserError, match=r"10x8 pixels; set dataset.resolution"):
        decode.decode(picture((10, 8)), 3, None)


@pytest.mark.parametrize("name", ["/etc/a.png", "../a.png", "x/../../a.png", "..\\a.png"])
def test_entries_outside_an_archive_are_refused(tmp_path, name):
    with pytest.raises(UserError, match="outside itself"):
        sources.folder(zipped(tmp_path / "a.zip", ["a.png", name]), 3, None)


def test_a_zip_bomb_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.png", b"\0" * (4 << 20))
    with pytest.raises(UserError, match="absurd size"):
        sources.folder(tmp_path / "a.zip", 3, None)


def test_what_is_not_there(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        sources.folder(tmp_path / "nowhere", 3, None)
    with pytest.raises(UserError, match="holds no images"):
        sources.folder(tmp_path, 3, None)


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
