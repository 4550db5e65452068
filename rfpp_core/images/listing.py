"""The image files of a folder or a zip, and a reader of them.

Nothing of an archive is extracted to disk, and one file at a time is in memory.  Hidden and system
entries and files that are no images are skipped and counted.  What would silently be missing (an
unreadable file, a link to nothing, a link in a circle) is refused by name.
"""

from __future__ import annotations

import errno
import os
import stat
import zipfile
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import takewhile
from pathlib import Path, PurePosixPath

from rfpp_core.errors import UserError, quoted
from rfpp_core.images.decode import CorruptImage, first_line, suffixes

LABELS = "dataset.json"  # of NVlabs' dataset tool
MAX_ENTRY = 64 << 20  # bytes of one file, uncompressed
MAX_RATIO = 200  # uncompressed to compressed size; real images hardly shrink in a zip
HIDDEN = "hidden or system"
SYSTEM = {"__macosx", "thumbs.db", "desktop.ini", "ehthumbs.db", "@eadir", "$recycle.bin"}
PACKED = (".zip", ".tar", ".gz", ".tgz", ".7z", ".rar")
OTHER_SUFFIXES = 20  # that are counted one by one
MAGIC = (  # offset, bytes, what such a file is
    (0, b"\x1f\x8b", "a gzip or tar.gz archive"),
    (0, b"BZh", "a bzip2 or tar.bz2 archive"),
    (0, b"\xfd7zXZ\0", "an xz or tar.xz archive"),
    (0, b"\x28\xb5\x2f\xfd", "a Zstandard archive"),
    (0, b"7z\xbc\xaf\x27\x1c", "a 7z archive"),
    (0, b"Rar!\x1a\x07", "a RAR archive"),
    (257, b"ustar", "a tar archive"),
    (0, b"PAR1", "a Parquet file"),
    (0, b"\x89HDF", "an HDF5 file"),
    (0, b"\x93NUMPY", "a NumPy array"),
)


@dataclass
class Listing:
    """Sorted names of files and their reader, which may raise :class:`CorruptImage`.

    ``ignored`` counts the other files by suffix (``HIDDEN`` for hidden and system entries), and
    ``empty`` names the folders that hold no image at any depth.
    """

    names: list[str]
    read: Callable[[str], bytes]
    ignored: Counter[str] = field(default_factory=Counter)
    empty: list[str] = field(default_factory=list)


def listing(path: Path) -> Listing:
    """The image files of a folder or a zip, and its ``dataset.json`` files.

    Raises:
        UserError: if it is neither, is unsafe, corrupted or unreadable, or holds no images.
    """
    found = unzip(path, {*suffixes(), LABELS}) if is_zip(path) else _folder(path)
    if all(map(_is_table, found.names)):
        raise UserError(f"{quoted(path)} holds no images (of {', '.join(sorted(suffixes()))})"
                        f"{_instead(found.ignored)}")  # fmt: skip
    return found


def is_zip(path: Path) -> bool:
    """Whether a path is a zip, not a folder.

    Raises:
        UserError: if it is missing, unreadable, or neither; the message says what it is.
    """
    try:
        mode = os.stat(path).st_mode
        if stat.S_ISDIR(mode):
            return False
        if not stat.S_ISREG(mode):  # opening a pipe would block
            raise UserError(f"{quoted(path)} is neither a folder nor a file; give one of images")
        with path.open("rb") as file:
            head = file.read(512)
        if zipfile.is_zipfile(path):
            return True
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"{quoted(path)} does not exist; give a folder or a zip of images (in "
                        f"params.yaml by dataset.path)") from None  # fmt: skip
    except (OSError, ValueError) as error:
        raise _unreadable(str(path), error) from None
    if head.startswith(b"PK\3\4"):
        raise UserError(f"{quoted(path)} is a truncated or corrupted zip: its directory, which "
                        f"comes last, is missing; copy or download it again")  # fmt: skip
    kinds = (kind for at, magic, kind in MAGIC if head[at : at + len(magic)] == magic)
    kind = next(kinds, "neither a folder nor a zip")
    raise UserError(f"{quoted(path)} is {kind}; give a folder of image files or a zip of them "
                    f"(unpack an archive of another kind first)")  # fmt: skip


def _instead(ignored: Counter[str]) -> str:
    if not ignored:
        return ""
    inner = [suffix for suffix in PACKED if ignored[suffix]]
    hint = f"; unpack the {inner[0]} inside and give what is in it" if inner else ""
    return f"; there is {counted(ignored)}{hint}"


def counted(ignored: Mapping[str, int]) -> str:
    """Counts by suffix as text, the largest first."""
    most = sorted(ignored.items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(f"{n} {suffix}" for suffix, n in most)


def _unreadable(name: str, error: BaseException) -> UserError:
    return UserError(f"{quoted(name)} cannot be read: {first_line(error)}; fix or remove it")


def is_hidden(name: str) -> bool:
    """Whether an entry of a folder is hidden, or one that systems leave behind."""
    return name.startswith(".") or name.lower() in SYSTEM


class _Sieve:
    """Selects names by their suffix, or by the complete name, and counts the others; a hidden
    folder counts once, whatever is in it."""

    def __init__(self, wanted: Collection[str]) -> None:
        self.wanted, self.others = wanted, Counter[str]()
        self.hidden: set[tuple[str, ...]] = set()
        self.folders: set[PurePosixPath] = set()

    def hides(self, name: PurePosixPath) -> bool:
        for depth, part in enumerate(name.parts, 1):
            if is_hidden(part):
                self.hidden.add(name.parts[:depth])
                return True
        return False

    def takes(self, name: PurePosixPath) -> bool:
        if self.hides(name):
            return False
        suffix = name.suffix.lower()
        if suffix in self.wanted or name.name in self.wanted:
            return True
        suffix = quoted(suffix) or "without suffix"
        full = len(self.others) >= OTHER_SUFFIXES and suffix not in self.others
        self.others["others" if full else suffix] += 1
        return False

    @property
    def ignored(self) -> Counter[str]:
        return self.others + Counter({HIDDEN: len(self.hidden)})

    def empty(self, names: Collection[str]) -> list[str]:
        """The topmost folders below which none of the names is an image."""
        folders = self.folders | {parent for folder in self.folders for parent in folder.parents}
        leaves = {name.rpartition("/")[0] for name in names if not _is_table(name)}
        full = {parent for leaf in leaves for parent in (PurePosixPath(leaf) / "x").parents}
        return sorted(str(folder) for folder in folders - full if folder.parent in full)


def _is_table(name: str) -> bool:
    return name.rpartition("/")[2] == LABELS


def _folder(path: Path) -> Listing:
    sieve = _Sieve({*suffixes(), LABELS})
    names = sorted(_walk(path, sieve))
    return Listing(names, reader(path), sieve.ignored, sieve.empty(names))


def reader(folder: Path) -> Callable[[str], bytes]:
    """Reads files of a folder, of at most ``MAX_ENTRY`` bytes; raises :class:`UserError`."""

    def read(name: str) -> bytes:
        try:
            with (folder / name).open("rb") as file:
                data = file.read(MAX_ENTRY + 1)
        except OSError as error:
            raise _unreadable(name, error) from None
        if len(data) > MAX_ENTRY:
            raise CorruptImage(f"more than {MAX_ENTRY >> 20} MiB are too many")
        return data

    return read


def _walk(root: Path, sieve: _Sieve) -> Iterator[str]:
    """The selected files below a folder; links are followed.

    A folder that is reached twice by a link is refused: its images would be in the set twice, or
    the walk would never end.
    """
    seen: dict[tuple[int, int], str] = {}
    queue = [PurePosixPath()]
    while queue:
        folder = queue.pop()
        where = str(root if folder == PurePosixPath() else folder)
        try:
            status = os.stat(root / folder)
            with os.scandir(root / folder) as found:
                entries = list(found)
        except OSError as error:
            raise _unreadable(where, error) from None
        first = seen.setdefault((status.st_dev, status.st_ino), where)
        if first != where:
            raise UserError(f"{quoted(where)} and {quoted(first)} are one folder, by a link; "
                            f"remove the link")  # fmt: skip
        for entry in entries:
            name = folder / entry.name
            if sieve.hides(name):
                continue
            if _is_folder(entry):
                queue.append(name)
                sieve.folders.add(name)
                continue
            if entry.is_symlink():  # a broken one may have led to a folder of images
                _check_file(root, name)
            if sieve.takes(name):
                _check_file(root, name)
                yield str(name)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _check_file(root: Path, name: PurePosixPath) -> None:
    try:
        str(name).encode()
        regular = stat.S_ISREG(os.stat(root / name).st_mode)
    except FileNotFoundError:
        raise UserError(f"{quoted(name)} is a link to nothing; fix or remove it") from None
    except UnicodeEncodeError:
        raise UserError(f"the name of {quoted(name)} is not UTF-8; rename it") from None
    except OSError as error:
        raise _unreadable(str(name), error) from None
    if not regular:
        raise UserError(f"{quoted(name)} is no regular file; remove it")
    if not os.access(root / name, os.R_OK):
        raise _unreadable(str(name), PermissionError(errno.EACCES, os.strerror(errno.EACCES)))


def unzip(path: Path, wanted: Collection[str] | None = None) -> Listing:
    """A zip's files of the wanted suffixes (default: images); nothing is extracted.

    Raises:
        UserError: if it is no zip, or an entry has a path outside it, a name used twice or an
            absurd size, is encrypted, or is compressed by another method than deflate.
    """
    try:
        archive = zipfile.ZipFile(path)
    except Exception as error:  # zipfile may raise anything on a corrupted directory
        raise UserError(f"{quoted(path)} is not a readable zip: {first_line(error)}") from None
    sieve, entries = _Sieve(suffixes() if wanted is None else wanted), {}
    for entry in archive.infolist():
        name = PurePosixPath(entry.filename)
        folders = name.parts if entry.is_dir() else name.parts[:-1]
        sieve.folders.add(PurePosixPath(*takewhile(lambda part: not is_hidden(part), folders)))
        if entry.is_dir():
            continue
        _check_entry(path, entry)
        if sieve.takes(name):
            if name.as_posix() in entries:
                raise UserError(f"{quoted(path)} has two entries {quoted(name)}; pack it again")
            _check_packing(path, entry)
            entries[name.as_posix()] = entry

    def read(name: str) -> bytes:
        entry = entries[name]
        try:
            with archive.open(entry) as file:
                return file.read(entry.file_size)  # at most, whatever the data would unpack to
        except Exception as error:  # as above
            raise CorruptImage(first_line(error)) from None

    return Listing(sorted(entries), read, sieve.ignored, sieve.empty(entries))


def _check_entry(path: Path, entry: zipfile.ZipInfo) -> None:
    name = PurePosixPath(entry.filename)
    if name.is_absolute() or ".." in name.parts or "\\" in entry.filename:
        raise UserError(f"{quoted(path)} has an entry outside itself: {entry.filename!a}")
    ratio = entry.file_size / max(1, entry.compress_size)
    if entry.file_size > MAX_ENTRY or (entry.file_size > 1 << 20 and ratio > MAX_RATIO):
        raise UserError(f"{quoted(path)} has an entry of absurd size: {entry.filename!a} "
                        f"unpacks to {entry.file_size:,} bytes")  # fmt: skip


def _check_packing(path: Path, entry: zipfile.ZipInfo) -> None:
    if entry.flag_bits & 1:
        raise UserError(f"{quoted(path)} is encrypted ({quoted(entry.filename)}); unpack it and "
                        f"give the folder")  # fmt: skip
    if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise UserError(f"{quoted(path)} packs {quoted(entry.filename)} by method "
                        f"{entry.compress_type}, which can unpack without end; pack it again by "
                        f"deflate")  # fmt: skip
