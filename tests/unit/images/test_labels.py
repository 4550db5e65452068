"""Labels and splits of folders and archives of any origin: as meant, or refused in one line."""

import json
import zipfile

import pytest

from rfpp_core.errors import UserError
from rfpp_core.images import sources
from tests.unit.images.sets import CLASSES, label_names, tree, zipped


@pytest.mark.parametrize("make", [tree, zipped])
@pytest.mark.parametrize("wrapper", ["", "set/", "set/test/"])
def test_class_folders_are_labels(tmp_path, make, wrapper):
    path = make(tmp_path / "images", [wrapper + name for name in CLASSES])
    source = sources.folder(path, 3, None)
    assert list(source.classes) == ["cat", "dog"]
    assert source.labels.tolist() == [0] * 5 + [1] * 5
    assert source.held_out is None
    assert source.load(0).shape == (3, 12, 12)


@pytest.mark.parametrize("wrapper", ["train", "test", "pictures"])
def test_a_single_folder_is_no_class(tmp_path, wrapper):
    path = tree(tmp_path / "set", [f"{wrapper}/{i}.png" for i in range(3)])
    assert list(sources.folder(path, 3, None).classes) == []


def test_flat_folders_have_no_labels(tmp_path):
    source = sources.folder(tree(tmp_path / "images", ["a.png", "b.png"]), 3, None)
    assert (list(source.classes), source.labels.tolist()) == ([], [-1, -1])


def test_numbers_sort_as_numbers(tmp_path):
    path = tree(tmp_path / "images", [f"{label}/x.png" for label in (10, 9, 1)])
    assert list(sources.folder(path, 3, None).classes) == ["1", "9", "10"]


def test_a_given_split_is_taken(tmp_path):
    names = [f"{part}/{name}" for part in ("train", "test") for name in CLASSES]
    source = sources.folder(tree(tmp_path / "images", names), 3, None)
    assert [key.startswith("test") for key in source.keys] == source.held_out.tolist()
    assert list(source.classes) == ["cat", "dog"]


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


def test_a_train_may_be_a_class(tmp_path):
    path = tree(tmp_path / "set", ["bus/1.png", "train/1.png"])
    assert list(sources.folder(path, 3, None).classes) == ["bus", "train"]


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
