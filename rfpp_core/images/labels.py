"""Labels and the split of a set of image files, from their names or from a table.

The names of a set's top folders say what they are: all of them names of parts (``train`` beside
``test``, ``val``, ...) give the split, and everything but ``train`` is held out; others are
classes.  What could be read both ways is refused: test images are never trained on by mistake.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rfpp_core.errors import UserError, quoted
from rfpp_core.images.decode import first_line

TRAIN = {"train", "training", "train_set", "training_set", "trainset"}
HELD_OUT = {
    "test", "testing", "test_set", "testing_set", "testset", "val", "valid", "validation",
    "val_set", "validation_set", "valset", "dev", "dev_set", "devset", "eval", "evaluation",
    "held_out", "heldout",
}  # fmt: skip
_TRAIN, _HELD_OUT = r"train(ing)?", r"(test(ing)?|val(id(ation)?)?|dev|eval(uation)?)"
MOST_CLASSES = 2**15 - 1

Labels = tuple[NDArray[np.int64], list[str]]  # (N,), -1 for none, and the names of the classes
Names = Sequence[PurePosixPath]


def below_common(names: Sequence[str]) -> list[PurePosixPath]:
    """Names without the folders that all of them share (an archive's wrapper)."""
    parts = [PurePosixPath(name).parts for name in names]
    while all(len(part) > 1 for part in parts) and len({part[0] for part in parts}) == 1:
        parts = [part[1:] for part in parts]
    return [PurePosixPath(*part) for part in parts]


def split_of(names: Names) -> tuple[Names, NDArray[np.bool_] | None]:
    """Names below the folders of the parts, and which are held out; as given where there are none.

    Raises:
        UserError: if only some of the top folders are parts, none of them is to be trained on, or
            folders look like parts and are not named as such.
    """
    tops = sorted({name.parts[0] for name in names if len(name.parts) > 1})
    train = [top for top in tops if _plain(top) in TRAIN]
    held = [top for top in tops if _plain(top) in HELD_OUT]
    others = [top for top in tops if top not in train + held]
    if not (train and held):
        _refuse_likely_parts(tops, others)
    if not held or (others and not train):  # a class may be called train, or test
        _refuse_parts_of_classes(names)
        return names, None
    if others or any(len(name.parts) == 1 for name in names):
        other = others[0] if others else next(str(n) for n in names if len(n.parts) == 1)
        raise UserError(f"{_listed(train + held)} look like a split, but {quoted(other)} lies "
                        f"beside them; keep train and held-out folders only, or set "
                        f"dataset.path to one of them")  # fmt: skip
    if not train:
        raise UserError(f"{_listed(held)} look like a split without its training part; add a "
                        f"folder train, or set dataset.path to one of them")  # fmt: skip
    mask = np.array([name.parts[0] in held for name in names])
    return below_common([PurePosixPath(*name.parts[1:]).as_posix() for name in names]), mask


def _plain(name: str) -> str:
    """A folder's name in one spelling: ``Test-Set`` and ``TestSet`` are ``test_set``."""
    return re.sub(r"[-\s]|(?<=[a-z])(?=[A-Z])", "_", name).casefold()


def _refuse_likely_parts(tops: Sequence[str], others: Sequence[str]) -> None:
    """Refuses ``train2017`` beside ``val2017``: as classes, both would be trained on.

    The words must stand apart (``seg_train``, ``trainA``), unless every folder begins or ends with
    one (``trainimages``): a class ``valley`` is no part.
    """
    train = [top for top in tops if _has_word(_TRAIN, top)]
    held = [top for top in tops if _has_word(_HELD_OUT, top)]
    found = {*train, *held} if train and held else set()
    words = ("train", "test", "val")
    if all(_plain(top).startswith(words) or _plain(top).endswith(words) for top in tops):
        found = set(tops) if len(tops) > 1 else set()
    if others and found:
        raise UserError(f"{_listed(sorted(found))} look like parts of a split, but are not named "
                        f"so; name them train and test, or set dataset.path to one of them; "
                        f"classes need other names")  # fmt: skip


def _has_word(word: str, name: str) -> bool:
    """Whether a name begins or ends with a word; a letter more makes it another word."""
    return bool(re.search(rf"^{word}(_?set)?(?![a-z])|(?<![a-z]){word}(_?set)?$", _plain(name)))


def _refuse_parts_of_classes(names: Names) -> None:
    """Refuses ``cat/train`` beside ``cat/test``, where both would be trained on."""
    inner: dict[str, dict[str, str]] = {}  # of each top folder
    for top, folder in sorted({name.parts[:2] for name in names if len(name.parts) > 2}):
        inner.setdefault(top, {})[_plain(folder)] = folder
    for top, folders in inner.items():
        held = [name for plain, name in folders.items() if plain in HELD_OUT]
        if held and folders.keys() & TRAIN:
            part = PurePosixPath(top, held[0])
            raise UserError(f"{quoted(part)} looks like the held-out images of one class; put the "
                            f"parts above the classes (train/{quoted(top)}, test/{quoted(top)}), "
                            f"or give the folders other names")  # fmt: skip


def of_folders(names: Names) -> Labels:
    """The top folder of each name; no labels where there is none, or only one.

    Raises:
        UserError: if some images lie beside the folders.
    """
    beside = [name for name in names if len(name.parts) < 2]
    tops = sorted({name.parts[0] for name in names if len(name.parts) > 1})
    if beside and tops:
        raise UserError(f"{quoted(beside[0])} lies beside the class folders {_listed(tops)} (of "
                        f"such images there are {len(beside)}); move it into one of them, or set "
                        f"dataset.labels: none")  # fmt: skip
    if not tops:
        return none(len(names))
    return _numbered([name.parts[0] for name in names])


def none(n: int) -> Labels:
    """No labels."""
    return np.full(n, -1, dtype=np.int64), []


def of_dataset_json(
    files: Mapping[str, bytes], names: Sequence[str]
) -> tuple[Labels | None, list[str]]:
    """The labels of NVlabs' ``dataset.json`` files (None if no file has any), and the files used.

    ``labels`` in a file is a list of [name relative to the file, class number], or null.

    Raises:
        UserError: if labels are no class numbers, disagree, or one of the images has none.
    """
    used = {where: _json(data, where) for where, data in files.items()}
    used = {where: found for where, found in used.items() if found and "labels" in found}
    found: dict[str, str] = {}
    for where, document in used.items():
        rows = document["labels"]
        for row in rows if isinstance(rows, list) else [] if rows is None else [rows]:
            if not _is_row(row):
                raise UserError(f"{quoted(where)} has the label {quoted(json.dumps(row))}; a row "
                                f"must be [name, class number from 0]")  # fmt: skip
            name = PurePosixPath(where).parent / row[0].replace("\\", "/")
            _enter(found, name.as_posix(), str(row[1]), where)
    if not used:
        return None, []
    if not found:
        return none(len(names)), list(used)
    return _looked_up(found, names, next(iter(used))), list(used)


def _json(data: bytes, where: str) -> dict[str, Any]:
    try:
        document = json.loads(data.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{quoted(where)} is not readable JSON: {first_line(error)}; fix it, or "
                        f"set dataset.labels: none") from None  # fmt: skip
    return document if isinstance(document, dict) else {}


def _is_row(row: Any) -> bool:
    pair = isinstance(row, list) and len(row) == 2 and isinstance(row[0], str)
    return pair and type(row[1]) is int and row[1] >= 0


def of_table(path: Path, names: Sequence[str]) -> Labels:
    """The labels of a CSV of name,label rows (UTF-8; comma, semicolon or tab; with or without a
    header).

    Raises:
        UserError: if it cannot be read, lacks an image, has an empty label, or two that disagree.
    """
    rows = _rows(path, set(names))
    found: dict[str, str] = {}
    for name, label in rows:
        if not label:
            raise UserError(f"{quoted(path)} has an empty label for {quoted(name)}; give it one, "
                            f"or take the image out of the set")  # fmt: skip
        _enter(found, name, label, str(path))
    return _looked_up(found, names, str(path))


def _enter(found: dict[str, str], name: str, label: str, where: str) -> None:
    if found.setdefault(name, label) != label:
        raise UserError(f"{quoted(where)} gives {quoted(name)} the labels {quoted(found[name])} "
                        f"and {quoted(label)}; keep one")  # fmt: skip


def _looked_up(found: dict[str, str], names: Sequence[str], where: str) -> Labels:
    lost = [name for name in names if name not in found]
    if lost:
        raise UserError(f"{quoted(where)} has no label for {len(lost)} of {len(names)} images of "
                        f"the set, the first is {quoted(lost[0])}")  # fmt: skip
    return _numbered([found[name] for name in names])


def _rows(path: Path, names: set[str]) -> list[tuple[str, str]]:
    """The rows of images of the set, by the delimiter that finds most of them."""
    try:
        text = path.read_bytes().decode("utf-8-sig")
        tables = [list(csv.reader(io.StringIO(text, newline=""), delimiter=d)) for d in ",;\t"]
    except UnicodeDecodeError:
        raise UserError(f"dataset.labels {quoted(path)} is not UTF-8 text; save it as CSV "
                        f"UTF-8") from None  # fmt: skip
    except (OSError, ValueError, csv.Error) as error:
        raise UserError(f"dataset.labels {quoted(path)} cannot be read: "
                        f"{first_line(error)}") from None  # fmt: skip
    found = [[_row(row) for row in table if row and _row(row)[0] in names] for table in tables]
    best = max(found, key=lambda rows: (len(rows), sum(bool(label) for _, label in rows)))
    if not best:
        line = next((line for line in text.splitlines() if line.strip()), "")
        raise UserError(f"no row of {quoted(path)} names an image of the set; a row must be "
                        f"name,label with names such as {quoted(min(names))}, its first is "
                        f"{quoted(line) or 'missing'}")  # fmt: skip
    return best


def _row(row: list[str]) -> tuple[str, str]:
    name = row[0].strip().replace("\\", "/")
    return PurePosixPath(name).as_posix(), row[1].strip() if len(row) > 1 else ""


def _numbered(given: Sequence[str]) -> Labels:
    """Numbers the classes in order; names that are numbers are ordered as numbers."""
    classes = sorted(set(given), key=_order)
    if len(classes) > MOST_CLASSES:
        raise UserError(f"the images have {len(classes):,} classes; at most {MOST_CLASSES:,}")
    number = {name: i for i, name in enumerate(classes)}
    return np.array([number[name] for name in given], dtype=np.int64), classes


def _order(name: str) -> tuple[bool, int, str]:
    digits = name.isascii() and name.isdigit() and len(name) <= 18
    return not digits, int(name) if digits else 0, name


def _listed(names: Sequence[str]) -> str:
    some = ", ".join(quoted(name) for name in names[:5])
    return some + (f" and {len(names) - 5} more" if len(names) > 5 else "")
