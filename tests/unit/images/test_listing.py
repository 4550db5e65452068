"""Folders and archives of any origin: the files in them, or one line that says what is wrong."""

import io
import os
import struct
import tarfile
import tracemalloc
import zipfile

import numpy as np
import pytest

from rfpp_core.errors import UserError
from rfpp_core.images import decode, listing, sources
from tests.unit.images.sets import CLASSES, label_names, picture, tree, with_folders, zipped


def test_what_is_not_there(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        sources.folder(tmp_path / "nowhere", 3, None)
    with pytest.raises(UserError, match="holds no images"):
        sources.folder(tmp_path, 3, None)


@pytest.mark.parametrize("name", ["/etc/a.png", "../a.png", "x/../../a.png", "..\\a.png"])
def test_entries_outside_an_archive_are_refused(tmp_path, name):
    with pytest.raises(UserError, match="outside itself"):
        sources.folder(zipped(tmp_path / "a.zip", ["a.png", name]), 3, None)


def test_a_zip_bomb_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.png", b"\0" * (4 << 20))
    with pytest.raises(UserError, match="absurd size"):
        sources.folder(tmp_path / "a.zip", 3, None)


JUNK = [".thumbnails/a.png", ".thumbnails/b.png", "cat/.ipynb_checkpoints/1-checkpoint.png",
        "__MACOSX/cat/._1.png", "cat/._1.png", "cat/Thumbs.db", "@eaDir/x.png"]  # fmt: skip


@pytest.mark.parametrize("make", [tree, zipped])
def test_hidden_and_other_files_are_skipped_and_counted(tmp_path, make):
    others = ["notes.txt", "cat/list.TXT", "dog/model", "cat/movie.mp4"]
    source = sources.folder(make(tmp_path / "set", [*CLASSES, *JUNK, *others]), 3, None)
    assert list(source.keys) == sorted(CLASSES)
    assert list(source.classes) == ["cat", "dog"]
    assert source.ignored == {
        "hidden or system": 6, ".txt": 2, "without suffix": 1, ".mp4": 1,
    }  # fmt: skip


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
