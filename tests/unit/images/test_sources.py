"""Folders and archives of strangers: read, split, labelled, or refused in one line."""

import io
import json
import os
import pickle
import struct
import tarfile
import tracemalloc
import zipfile

import numpy as np
import pytest
from PIL import Image

from rfpp_core.errors import UserError
from rfpp_core.images import decode, listing, sources
from rfpp_core.images import store as image_store

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


def label_names(source):
    return {
        key: source.classes[label] if label >= 0 else None
        for key, label in zip(source.keys, source.labels.tolist(), strict=True)
    }


NVLABS = ["00000/img00000000.png", "00000/img00000001.png", "00001/img00000002.png"]


@pytest.mark.parametrize("make", [tree, zipped])
@pytest.mark.parametrize("wrapper", ["", "set/"])
@pytest.mark.parametrize("numbers", [(6, 0, 6), None])
def test_labels_of_nvlabs_tool(tmp_path, make, wrapper, numbers):
    rows = numbers and [[name, label] for name, label in zip(NVLABS, numbers, strict=True)]
    path = make(tmp_path / "set.zip", [wrapper + name for name in NVLABS])
    document = json.dumps({"labels": rows})
    if make is tree:
        (path / wrapper / "dataset.json").write_text(document)
    else:
        with zipfile.ZipFile(path, "a") as archive:
            archive.writestr(f"{wrapper}dataset.json", document)
    source = sources.folder(path, 3, None)
    assert [key.removeprefix(wrapper) for key in source.keys] == NVLABS
    assert source.labels.tolist() == ([1, 0, 1] if numbers else [-1] * 3)
    assert list(source.classes) == (["0", "6"] if numbers else [])
    assert not source.ignored
    assert sources.folder(path, 3, None, None).labels.tolist() == [-1] * 3


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"labels": [["00000/img00000000.png", 1]]}', "no label for 2 of 3 images .* the first"),
        ('{"labels": [["00000/img00000000.png", [0.5, 1]]]}', "class number from 0"),
        ('{"labels": {"a": 1}}', "class number from 0"),
        ('{"labels": [["a", 1], ["a", 2]]}', "gives a the labels 1 and 2; keep one"),
        ('{"labels": [', "not readable JSON"),
        ("[" * 100_000, "not readable JSON"),
        ("\ufeff" + '{"labels": [["a", -1]]}', "class number from 0"),
    ],
)
def test_labels_of_nvlabs_tool_that_do_not_fit(tmp_path, text, said):
    path = tree(tmp_path / "set", NVLABS)
    (path / "dataset.json").write_text(text)
    with pytest.raises(UserError, match=rf"^dataset.json .*{said}"):
        sources.folder(path, 3, None)


def test_another_dataset_json_is_just_a_file(tmp_path):
    path = tree(tmp_path / "set", CLASSES)
    (path / "dataset.json").write_text('{"info": "x"}')
    source = sources.folder(path, 3, None)
    assert (list(source.classes), source.ignored) == (["cat", "dog"], {".json": 1})


@pytest.mark.parametrize(
    "parts",
    [("train", "test"), ("train", "val"), ("training", "validation"), ("train", "valid"),
     ("Train", "Test"), ("TRAIN", "held_out"), ("train", "val", "test"), ("train", "dev"),
     ("train", "eval"), ("train", "evaluation"), ("train_set", "test_set"), ("trainset", "valset"),
     ("training_set", "test_set"), ("Training-Set", "TestSet"), ("train set", "Held Out")],
)  # fmt: skip
def test_everything_but_train_is_held_out(tmp_path, parts):
    names = [f"{part}/{name}" for part in parts for name in CLASSES]
    source = sources.folder(tree(tmp_path / "set", names), 3, None)
    assert list(source.classes) == ["cat", "dog"]
    assert [not key.startswith(parts[0]) for key in source.keys] == source.held_out.tolist()


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["train/a/1.png", "test/a/1.png", "extra/a/1.png"], "train, test look .* but extra lies"),
        (["train/a/1.png", "test/a/1.png", "x.png"], "train, test look .* but x.png lies"),
        (["val/a/1.png", "test/a/1.png"], "without its training part"),
        (["cat/1.png", "dog/1.png", "x.png"], r"x.png lies beside the class folders cat, dog"),
        (["train/cat/1.png", "train/dog/1.png", "test/1.png"], "1.png lies beside the class fold"),
    ],
)
def test_folders_that_could_be_read_both_ways_are_refused(tmp_path, names, said):
    path = tree(tmp_path / "set", names)
    with pytest.raises(UserError, match=said):
        sources.folder(path, 3, None)


LIKE_PARTS = [
    ("train2017", "val2017"), ("seg_train", "seg_test"), ("seg_train", "seg_test", "seg_pred"),
    ("trainA", "testA", "trainB", "testB"), ("train", "val2017"), ("train2017", "test"),
    ("imagesTrain", "imagesVal"), ("trainimages", "testimages"), ("cat", "train-1", "dev-1"),
    ("train_1", "train_2"), ("imgs_training", "imgs_validation", "extra"), ("train", "val_images"),
]  # fmt: skip


@pytest.mark.parametrize("make", [tree, zipped])
@pytest.mark.parametrize("parts", LIKE_PARTS, ids="+".join)
def test_folders_that_look_like_parts_are_never_classes(tmp_path, make, parts):
    """Otherwise the test images would be trained on, and nothing would say so."""
    path = make(tmp_path / "set", [f"{part}/{i}.png" for part in parts for i in range(2)])
    for labels in ("folders", None):
        with pytest.raises(UserError, match="look like parts of a split, but are not") as error:
            sources.folder(path, 3, None, labels)
        assert "name them train and test, or set dataset.path to one of them" in str(error.value)
        named = str(error.value).partition(" look like")[0].split(", ")
        assert len(named) > 1
        assert set(named) <= set(parts)


@pytest.mark.parametrize(
    "classes",
    [("train_interior", "igloo", "valley"), ("bus", "train"), ("trainer", "shoe", "contest"),
     ("carnival", "parade", "train station"), ("test tube", "flask"), ("val", "mo", "ken"),
     ("device", "evaluator"), ("train2017", "bus")],
    ids="+".join,
)  # fmt: skip
def test_classes_whose_names_only_begin_like_parts_are_classes(tmp_path, classes):
    path = tree(tmp_path / "set", [f"{name}/{i}.png" for name in classes for i in range(2)])
    assert list(sources.folder(path, 3, None).classes) == sorted(classes)


@pytest.mark.parametrize("labels", ["folders", None])
def test_parts_below_the_classes_are_refused(tmp_path, labels):
    names = [f"{name}/{part}/1.png" for name in "ab" for part in ("train", "test")]
    path = tree(tmp_path / "set", names)
    with pytest.raises(UserError) as error:
        sources.folder(path, 3, None, labels)
    assert str(error.value).startswith("a/test looks like the held-out images of one class; put ")
    assert "put the parts above the classes (train/a, test/a)" in str(error.value)
    path = tree(tmp_path / "other", ["a/train/1.png", "a/bus/1.png", "b/test/1.png", "b/2.png"])
    assert list(sources.folder(path, 3, None).classes) == ["a", "b"]


def with_folders(path, names, folders):
    """The same in a folder or in a zip, empty folders included."""
    if path.suffix == ".zip":
        with zipfile.ZipFile(zipped(path, names), "a") as archive:
            for name in folders:
                archive.mkdir(name)
        return path
    tree(path, names)
    for name in folders:
        (path / name).mkdir(parents=True)
    return path


@pytest.mark.parametrize("where", ["set", "set.zip"])
def test_folders_without_images_are_named(tmp_path, where):
    names = [*CLASSES, "cow/notes.txt", "hen/deep/er/list.csv", "ox/.hidden.png", "cat/more/7.png"]
    path = with_folders(tmp_path / where, names, ["pig", "dog/none", ".git/x", "ape/a/b"])
    source = sources.folder(path, 3, None)
    assert list(source.classes) == ["cat", "dog"]
    assert source.empty == ["ape", "cow", "dog/none", "hen", "ox", "pig"]
    assert source.take(np.arange(3)).empty == source.empty


@pytest.mark.parametrize("where", ["set", "set.zip"])
def test_a_folder_of_labels_alone_holds_no_images(tmp_path, where):
    path = with_folders(tmp_path / where, CLASSES, [])
    if where == "set":
        (path / "meta").mkdir()
        (path / "meta/dataset.json").write_text("{}")
    else:
        with zipfile.ZipFile(path, "a") as archive:
            archive.writestr("meta/dataset.json", "{}")
    assert sources.folder(path, 3, None).empty == ["meta"]


def test_a_train_may_be_a_class(tmp_path):
    path = tree(tmp_path / "set", ["bus/1.png", "train/1.png"])
    assert list(sources.folder(path, 3, None).classes) == ["bus", "train"]


@pytest.mark.parametrize("wrapper", ["train", "test", "pictures"])
def test_a_single_folder_is_no_class(tmp_path, wrapper):
    path = tree(tmp_path / "set", [f"{wrapper}/{i}.png" for i in range(3)])
    assert list(sources.folder(path, 3, None).classes) == []


JUNK = [".thumbnails/a.png", ".thumbnails/b.png", "cat/.ipynb_checkpoints/1-checkpoint.png",
        "__MACOSX/cat/._1.png", "cat/._1.png", "cat/Thumbs.db", "@eaDir/x.png"]  # fmt: skip


@pytest.mark.parametrize("make", [tree, zipped])
def test_hidden_and_other_files_are_passed_over_and_counted(tmp_path, make):
    others = ["notes.txt", "cat/list.TXT", "dog/model", "cat/movie.mp4"]
    source = sources.folder(make(tmp_path / "set", [*CLASSES, *JUNK, *others]), 3, None)
    assert list(source.keys) == sorted(CLASSES)
    assert list(source.classes) == ["cat", "dog"]
    assert source.ignored == {
        "hidden or system": 6, ".txt": 2, "without suffix": 1, ".mp4": 1,
    }  # fmt: skip


@pytest.mark.parametrize("suffix", ["avif", "jfif", "jp2", "JPE", "apng", "tga", "mpo"])
def test_suffixes_that_pillow_reads(tmp_path, suffix):
    form = {"avif": "AVIF", "jp2": "JPEG2000", "apng": "PNG", "tga": "TGA"}.get(suffix, "JPEG")
    path = tree(tmp_path / "set", [f"a.{suffix}"], form=form)
    assert sources.folder(path, 3, None).load(0).shape == (3, 12, 12)


def test_linked_folders_are_followed(tmp_path):
    tree(tmp_path / "far", ["1.png", "2.png"])
    path = tree(tmp_path / "set", ["dog/1.png"])
    (path / "cat").symlink_to(tmp_path / "far")
    source = sources.folder(path, 3, None)
    assert label_names(source) == {"cat/1.png": "cat", "cat/2.png": "cat", "dog/1.png": "dog"}
    assert source.load(0).shape == (3, 12, 12)


@pytest.mark.parametrize(
    ("link", "target", "said"),
    [
        ("cat/round", "..", "(cat/round and .*set|.*set and cat/round) are one folder, by a link"),
        ("cow", "cat", "(cow and cat|cat and cow) are one folder, by a link"),
        ("cow", "gone", "cow is a link to nothing; fix or remove it"),
        ("cat/9.png", "gone.png", "cat/9.png is a link to nothing"),
        ("cat/9.png", "9.png", "cat/9.png cannot be read: Too many levels"),
    ],
)
def test_links_that_lead_nowhere_or_round_are_refused(tmp_path, link, target, said):
    path = tree(tmp_path / "set", CLASSES)
    (path / link).symlink_to(target)
    with pytest.raises(UserError, match=said):
        sources.folder(path, 3, None)


def test_what_is_no_file_is_refused(tmp_path):
    path = tree(tmp_path / "set", CLASSES)
    os.mkfifo(path / "cat" / "9.png")
    with pytest.raises(UserError, match=r"cat/9.png is no regular file"):
        sources.folder(path, 3, None)
    with pytest.raises(UserError, match="is neither a folder nor a file"):
        sources.folder(path / "cat" / "9.png", 3, None)


def test_unreadable_folders_and_files_are_named(tmp_path, monkeypatch):
    """Permissions bind no superuser, so the calls that fail are stood in for."""
    path = tree(tmp_path / "set", CLASSES)
    scan, access = os.scandir, os.access

    def denied(folder):
        if str(folder).endswith("cat"):
            raise PermissionError(13, "Permission denied")
        return scan(folder)

    with monkeypatch.context() as patched:
        patched.setattr(os, "scandir", denied)
        with pytest.raises(UserError, match=r"^cat cannot be read: Permission denied; fix or rem"):
            sources.folder(path, 3, None)
    monkeypatch.setattr(os, "access", lambda p, m: "cat/3" not in str(p) and access(p, m))
    with pytest.raises(UserError, match=r"^cat/3.png cannot be read: Permission denied; fix or"):
        sources.folder(path, 3, None)


def test_a_name_that_is_not_utf8_is_refused(tmp_path):
    path = tree(tmp_path / "set", CLASSES)
    with open(os.fsencode(path) + b"/cat/\xff.png", "wb") as file:
        file.write(picture())
    with pytest.raises(UserError, match=r"the name of cat/\\udcff.png is not UTF-8; rename it"):
        sources.folder(path, 3, None)


def test_a_file_that_vanishes_or_is_huge(tmp_path, monkeypatch):
    path = tree(tmp_path / "set", CLASSES)
    source = sources.folder(path, 3, None)
    (path / CLASSES[0]).unlink()
    with pytest.raises(UserError, match=r"^cat/0.png cannot be read: No such file"):
        source.load(0)
    monkeypatch.setattr(listing, "MAX_ENTRY", 100)
    with pytest.raises(decode.CorruptImage, match="are too many"):
        source.load(1)


TABLE = "a.png{0}x{1}b.png{0}y{1}c.png{0}x{1}"


@pytest.mark.parametrize("head", ["", "name{0}label{1}"])
@pytest.mark.parametrize("bom", ["", "\ufeff"])
@pytest.mark.parametrize(("mark", "end"), [(",", "\n"), (";", "\r\n"), ("\t", "\n"), (", ", "\n")])
def test_tables_as_programs_write_them(tmp_path, head, bom, mark, end):
    path = tree(tmp_path / "images", ["a.png", "b.png", "c.png"])
    (tmp_path / "labels.csv").write_text(bom + (head + TABLE).format(mark, end), "utf-8")
    source = sources.folder(path, 3, None, str(tmp_path / "labels.csv"))
    assert label_names(source) == {"a.png": "x", "b.png": "y", "c.png": "x"}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a.png,x\nb.png,\nc.png,x\n", "has an empty label for b.png; give it one"),
        ("a.png,x\nb.png\nc.png,x\n", "has an empty label for b.png; give it one"),
        ("a.png,x\nb.png,y\nc.png,x\na.png,y\n", "gives a.png the labels x and y; keep one"),
        ("path|label\na.png|x\n", r"no row of .* with names such as a.png, its first is path\|l"),
        ("", "no row of .* its first is missing"),
        ("a.png,x\n".encode("utf-16"), "is not UTF-8 text; save it as CSV UTF-8"),
        ("a.png," + "x" * 200_000, "cannot be read: field larger"),
    ],
)
def test_tables_that_do_not_fit(tmp_path, text, said):
    path = tree(tmp_path / "images", ["a.png", "b.png", "c.png"])
    data = text if isinstance(text, bytes) else text.encode()
    (tmp_path / "labels.csv").write_bytes(data)
    with pytest.raises(UserError, match=said):
        sources.folder(path, 3, None, str(tmp_path / "labels.csv"))


def test_rows_that_agree_are_one(tmp_path):
    path = tree(tmp_path / "images", ["a.png", "b.png"])
    (tmp_path / "labels.csv").write_text("./a.png,x\nb.png,y\na.png,x\nother.png,z\n")
    source = sources.folder(path, 3, None, str(tmp_path / "labels.csv"))
    assert label_names(source) == {"a.png": "x", "b.png": "y"}


def packed(mode):
    def write(path):
        with tarfile.open(path, mode) as archive:
            archive.addfile(tarfile.TarInfo("a.png"), io.BytesIO())

    return write


def cut_short(path):
    data = zipped(path, CLASSES).read_bytes()
    path.write_bytes(data[: len(data) // 2])


def zip_in_zip(path):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("images.zip", b"PK")


ARCHIVES = {
    "tar.gz": (packed("w:gz"), "is a gzip or tar.gz archive; give a folder"),
    "tar.xz": (packed("w:xz"), "is an xz or tar.xz archive"),
    "tar.bz2": (packed("w:bz2"), "is a bzip2 or tar.bz2 archive"),
    "tar": (packed("w"), "is a tar archive"),
    "7z": (lambda path: path.write_bytes(b"7z\xbc\xaf\x27\x1c" + b"x" * 40), "is a 7z archive"),
    "rar": (lambda path: path.write_bytes(b"Rar!\x1a\x07\1\0"), "is a RAR archive"),
    "zip": (cut_short, "is a truncated or corrupted zip"),
    "inner": (zip_in_zip, "holds no images .*there is 1 .zip; unpack the .zip inside"),
    "txt": (lambda path: path.write_text("x"), "is neither a folder nor a zip; give a folder"),
}


@pytest.mark.parametrize("kind", ARCHIVES)
def test_other_archives_are_named_as_what_they_are(tmp_path, kind):
    make, said = ARCHIVES[kind]
    make(tmp_path / "set")
    with pytest.raises(UserError, match=said):
        sources.folder(tmp_path / "set", 3, None)


def test_an_entry_that_lies_about_its_size_is_not_unpacked(tmp_path):
    """The directory says 1,000 bytes; the data would be 64 MiB."""
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.png", b"\0" * (64 << 20))
    data = path.read_bytes()
    path.write_bytes(data.replace(struct.pack("<I", 64 << 20), struct.pack("<I", 1000)))
    source = sources.folder(path, 3, None)
    tracemalloc.start()
    with pytest.raises(decode.CorruptImage):
        source.load(0)
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most < 4 << 20


def test_other_packings_doubles_and_passwords_are_refused(tmp_path):
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_BZIP2) as archive:
        archive.writestr("a.png", picture())
    with pytest.raises(UserError, match=r"packs a.png by method 12.*pack it again by deflate"):
        sources.folder(path, 3, None)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.png", picture())
        archive.writestr("./a.png", picture())
    with pytest.raises(UserError, match=r"has two entries a.png"):
        sources.folder(path, 3, None)
    zipped(path, ["a.png"])
    data = path.read_bytes()
    at = data.index(b"PK\1\2") + 8
    path.write_bytes(data[:at] + b"\1" + data[at + 1 :])
    with pytest.raises(UserError, match="is encrypted"):
        sources.folder(path, 3, None)


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
