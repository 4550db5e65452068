"""Whatever is given as a set of images, the answer is a set or one clear line.

``EXAMPLES=20000 pytest tests/system/test_any_set.py`` looks further than the suite does.
"""

import contextlib
import io
import json
import os
import shutil
import tarfile
import tempfile
import zipfile
from pathlib import Path

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from pipeline.stages import prepare
from pipeline.stages import source as source_stage
from rfpp_core.config import params, yaml_file
from rfpp_core.errors import UserError
from rfpp_core.images import store as image_store
from tests.helpers import SMOKE

PARAMS = yaml_file.parse(SMOKE, "smoke")
EXAMPLES = int(os.environ.get("EXAMPLES", "60"))


def encoded(image, form, **options):
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


GREY = Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8))
WHOLE = [
    encoded(GREY, "PNG"), encoded(GREY.convert("RGB"), "JPEG"), encoded(GREY.convert("P"), "GIF"),
    encoded(GREY.convert("RGBA"), "WEBP"), encoded(GREY.convert("CMYK"), "TIFF"),
    encoded(GREY.convert("LA"), "PNG"), encoded(GREY.convert("RGB"), "JPEG2000"),
    encoded(Image.fromarray(np.arange(64, dtype=np.uint16).reshape(8, 8)), "PNG"),
    encoded(GREY, "BMP"), encoded(GREY, "PPM"), encoded(GREY, "TGA"),
    encoded(GREY.resize((12, 6)), "PNG"), encoded(GREY, "PCX"), encoded(GREY, "SGI"),
    encoded(GREY.convert("1"), "TIFF"), encoded(GREY, "AVIF"),
    encoded(GREY.convert("RGB"), "QOI"),
    encoded(GREY, "GIF", save_all=True, append_images=[GREY.rotate(90)]),
]  # fmt: skip
ODD = [encoded(GREY.convert("F"), "TIFF"), encoded(GREY.convert("I"), "TIFF"),
       encoded(GREY, "EPS"), b"", b"junk", b"PK\3\4", b"{}"]  # fmt: skip


def harmed(draw, content):
    """Cut short, or some bytes changed."""
    content = bytearray(content)
    for _ in range(draw(st.integers(0, 3))):
        if content:
            content[draw(st.integers(0, len(content) - 1))] = draw(st.integers(0, 255))
    return bytes(content[: draw(st.integers(0, len(content)))] if draw(st.booleans()) else content)


@st.composite
def contents(draw):
    kind = draw(st.sampled_from(["whole"] * 4 + ["odd", "harmed"]))
    content = draw(st.sampled_from(ODD if kind == "odd" else WHOLE))
    return harmed(draw, content) if kind == "harmed" else content


PART = st.one_of(
    st.sampled_from(["cat", "dog", "cow", "train", "Test", "val", "training", "00000", "00001",
                     "train2017", "val2017", "seg_test", "dev"]),
    st.sampled_from([".thumbnails", "__MACOSX", "a b", "ü", "\x1b[31m", "a\nb", "\u202e", "²", "9",
                     "x" * 120, "a.b.", "-", "~", "%00", "{x}"]),
    st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1,
            max_size=6),
)  # fmt: skip
SUFFIX = st.sampled_from([".png", ".png", ".JPG", ".tif", ".gif", ".jp2", ".webp", ".txt", ""])
LEAF = st.tuples(st.sampled_from(["a", "b", "c", "d", "e", "f", "._a", "Thumbs"]), SUFFIX)
CLASSES = st.sampled_from(["cat", "dog", "7", "12"])
SPLITS = st.sampled_from(["train", "Test", "val", "training", "testset", "train_2"])


@st.composite
def names(draw):
    """Those of a set as people make them, some of which go astray."""
    parts = draw(st.sampled_from([(), (CLASSES,), (CLASSES,), (SPLITS, CLASSES), (PART,)]))
    odd = draw(st.lists(st.lists(PART, max_size=2), max_size=draw(st.sampled_from([0, 0, 2]))))
    usual = [[draw(part) for part in parts] for _ in range(draw(st.integers(0, 12)))]
    return ["/".join([*folders, "".join(draw(LEAF))]) for folders in usual + odd]


LABEL = st.one_of(st.sampled_from(["x", "y", "7", "", "a\tb", "\x1b"]), st.text(max_size=4))


@st.composite
def tables(draw, names):
    mark, end = draw(st.sampled_from(",;\t|")), draw(st.sampled_from(["\n", "\r\n", "\r"]))
    rows = [mark.join((name, draw(LABEL))) for name in names if draw(st.integers(0, 9))]
    rows += draw(st.lists(st.text(max_size=8), max_size=2))
    text = draw(st.sampled_from(["", "name,label\n", "\ufeff"])) + end.join(rows)
    return harmed(
        draw, text.encode(draw(st.sampled_from(["utf-8", "utf-8", "utf-16"])), "replace")
    )


@st.composite
def documents(draw, names):
    label = st.one_of(
        st.integers(0, 3), st.integers(), st.none(), st.floats(), st.text(max_size=2)
    )
    rows = draw(st.sampled_from([
        None, [], {}, "x", [[name, draw(label)] for name in names],
        [[name, 1] for name in names], [[1, 2]], [["a"]], {"a": [1]},
    ]))  # fmt: skip
    document = draw(st.sampled_from([{"labels": rows}, {"other": rows}, rows]))
    content = json.dumps(document).encode()
    return harmed(draw, content) if draw(st.integers(0, 3)) == 0 else content


def as_folder(path, files):
    for name, content in files.items():
        try:
            file = path / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content)
        except (OSError, ValueError):  # no such name here, or a file where a folder is to be
            continue
    path.mkdir(exist_ok=True)


def as_zip(path, files):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)


def as_tar(path, files):
    with tarfile.open(path, "w:gz") as archive:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))


KINDS = ["folder"] * 4 + ["zip"] * 4 + ["harmed", "tar"]


@st.composite
def sets(draw, folder):
    """Writes a set below a folder; returns its path and what dataset.labels is to be."""
    whole = st.just(draw(st.sampled_from(WHOLE[:12])))
    content = draw(st.sampled_from([whole, st.sampled_from(WHOLE), contents()]))
    files = {name: draw(content) for name in draw(names())}
    if draw(st.integers(0, 5)) == 0:
        files["dataset.json"] = draw(documents(list(files)))
    path, kind = folder / "set", draw(st.sampled_from(KINDS))
    {"folder": as_folder, "tar": as_tar}.get(kind, as_zip)(path, files)
    if kind == "harmed":
        path.write_bytes(harmed(draw, path.read_bytes()))
    (folder / "labels.csv").write_bytes(draw(tables(list(files))))
    table = folder / "labels.csv"
    odd = [str(folder / "no\nwhere"), str(folder / ("x" * 300)), str(table / "x"), "a\0b",
           "~nosuch/x", "y" * 300, "\ud800", "."]  # fmt: skip
    labels = ["folders"] * 12 + ["none"] * 3 + [str(table)] * 6 + [str(folder), *odd]
    return draw(st.sampled_from([str(path)] * 80 + odd)), draw(st.sampled_from(labels))


@settings(max_examples=EXAMPLES, derandomize=True, database=None, deadline=None,
          suppress_health_check=list(HealthCheck))  # fmt: skip
@given(st.data())
def test_the_answer_is_a_set_or_one_line(drawn):
    folder = Path(tempfile.mkdtemp())
    try:
        path, labels = drawn.draw(sets(folder))
        dataset = {
            "name": "folder", "path": path, "labels": labels, "held_out": 0.5,
            "channels": drawn.draw(st.sampled_from([1, 3])),
            "resolution": drawn.draw(st.sampled_from([None, 4, 8])),
            "skip_corrupt": drawn.draw(st.booleans()),
        }  # fmt: skip
        (folder / "project").mkdir()
        said = ""
        with contextlib.chdir(folder / "project"):
            try:
                read(folder, params.parse(PARAMS | {"dataset": dataset}))
            except UserError as error:
                said = str(error)
        assert said.isprintable()
        assert len(said) < 2000
    finally:
        shutil.rmtree(folder)


def read(folder, config):
    """What the stages do with a set."""
    section = config.dataset
    if source_stage.fingerprint(section) is None:
        source_stage.prepared(section)
    source = prepare.source_of(section)
    assert len(source.keys) == len(source.labels) > 0
    held_out = prepare.held_out_of(section, source)
    store = folder / "images.zarr"
    skipped = image_store.write(store, source, held_out, section.skip_corrupt)
    parts = [image_store.read(store, name) for name in ("train", "held_out")]
    assert sum(len(part.images) for part in parts) == len(source.keys) - len(skipped)
    assert all(part.labels.max() < max(1, len(source.classes)) for part in parts)
    said = [*prepare.problems(config, source, *(part.labels for part in parts))]
    shape = image_store.metadata(store)["shape"]
    facts = prepare.summary(section, source, *(part.labels for part in parts), shape, len(skipped))
    assert json.loads(json.dumps(facts)) == facts
    assert all(line.isprintable() for line in [*said, *skipped, *prepare.lines_of(facts)])
