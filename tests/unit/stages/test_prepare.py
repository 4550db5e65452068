"""What ``prepare`` says of a set, and that splits too small for the run are said in one line."""

import json
import sys

import numpy as np
import pytest
import yaml
from PIL import Image

from pipeline import artifacts, console
from pipeline.stages import prepare, source
from rfpp_core.images import store as image_store
from tests.helpers import SMOKE
from tests.unit.images.sets import CLASSES, tree
from tests.unit.stages.test_preflight import check  # noqa: F401 - a fixture

SET = {
    "name": "folder", "path": "set", "resolution": 8, "channels": 3, "held_out": 0.5,
}  # fmt: skip
MANY = [f"{label}/{i:02}.png" for label in ("cat", "dog") for i in range(20)]


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """Runs the stage on a set below the temporary folder: its exit code, output and summary."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["prepare"])
    (tmp_path / ".dvc").mkdir()

    def run(batch=2, **dataset):
        raw = yaml.safe_load(SMOKE)
        raw["dataset"] |= SET | dataset
        raw["recipes"]["pretrain"]["batch"] = batch
        (tmp_path / "params.yaml").write_text(yaml.safe_dump(raw))
        code = 0
        try:
            console.main(lambda: (source.run(), prepare.run()))
        except SystemExit as end:
            code = end.code
        out, err = capsys.readouterr()
        facts = json.loads(artifacts.SUMMARY.read_text()) if artifacts.SUMMARY.exists() else None
        return code, out, err, facts

    return run


def test_the_summary_is_what_was_read(run, tmp_path):
    path = tree(tmp_path / "set", MANY, side=(9, 12))
    Image.new("RGBA", (16, 8)).save(path / "cat/00.png")
    Image.new("L", (10, 40)).save(path / "dog/00.png")
    Image.new("L", (9, 12)).save(
        path / "dog/01.gif", save_all=True, append_images=[Image.new("L", (9, 12), 9)]
    )
    (path / "notes.txt").write_text("x")
    (path / ".hidden").write_text("x")
    code, out, _, facts = run()
    assert code == 0
    gif = {mode: n for mode, n in facts["modes"].items() if mode not in ("RGB", "RGBA")}
    assert sum(gif.values()) == 2
    del facts["modes"]
    assert facts == {
        "name": "folder", "shape": [3, 8, 8], "train": 21, "held_out": 20, "skipped": 0,
        "split": "seeded", "grey": 3, "transparent": 1, "background": "white", "animated": 1,
        "classes": [{"name": "cat", "train": 10, "held_out": 10},
                    {"name": "dog", "train": 11, "held_out": 10}],
        "sizes": {"least": [9, 8], "most": [16, 40],
                  "common": {"size": [9, 12], "count": 39}},
        "ignored": {".txt": 1, "hidden or system": 1},
        "empty_folders": {"count": 0, "names": []},
    }  # fmt: skip
    for part in ("21 train, 20 held-out, 0 skipped, 2 classes", "classes: cat 20, dog 21",
                 "38 RGB", "9x8 to 16x40, most often 9x12 (39)", "composited on white",
                 "1 have several frames", "1 .txt, 1 hidden or system"):  # fmt: skip
        assert part in out
    assert "hint" not in out
    assert str(tmp_path) not in artifacts.SUMMARY.read_text()


def test_a_class_folder_without_images_is_said(run, tmp_path):
    path = tree(tmp_path / "set", MANY)
    (path / "cow").mkdir()
    (path / "e\x1b[1m").mkdir()
    (path / "hen").mkdir()
    (path / "hen/notes.txt").write_text("x")
    code, out, _, facts = run()
    assert code == 0
    assert facts["empty_folders"] == {"count": 3, "names": ["cow", "e\x1b[1m", "hen"]}
    assert r"3 folder(s) without images, which are no classes: cow, e\x1b[1m, hen" in out
    for i in range(30):
        (path / f"{i:02}").mkdir()
    _, out, _, facts = run()
    assert (facts["empty_folders"]["count"], len(facts["empty_folders"]["names"])) == (33, 20)
    assert ", 19 and 13 more" in out


def test_what_is_skipped_counts_for_no_split(run, tmp_path):
    path = tree(tmp_path / "set", MANY)
    for i in range(5):
        (path / f"cat/{i:02}.png").write_bytes(b"junk")
    code, _, err, facts = run()
    assert (code, facts) == (2, None)
    assert "set dataset.skip_corrupt: true" in err
    code, out, _, facts = run(skip_corrupt=True)
    assert code == 0
    assert facts["train"] + facts["held_out"] == 35
    assert (facts["train"], facts["held_out"]) == tuple(
        image_store.count(artifacts.IMAGES, part) for part in ("train", "held_out")
    )
    assert facts["skipped"] == 5
    assert sum(c["train"] + c["held_out"] for c in facts["classes"]) == 35
    assert f"{facts['train']} train, {facts['held_out']} held-out, 5 skipped" in out


def test_the_advice_is_not_what_is_set_already(run, tmp_path):
    path = tree(
        tmp_path / "set", [f"{part}/{i}.png" for part in ("train", "test") for i in "1234"]
    )
    for i in "1234":
        (path / f"test/{i}.png").write_bytes(b"junk")
    code, _, err, _ = run(skip_corrupt=True, labels="none")
    assert code == 2
    assert "4 corrupt image(s)" in err
    assert "leave a split empty" in err
    assert "skip_corrupt" not in err


@pytest.mark.parametrize(("channels", "hinted"), [(3, True), (1, False)])
def test_grey_images_with_three_channels_get_a_hint(run, tmp_path, channels, hinted):
    tree(tmp_path / "set", MANY, mode="L")
    _, out, _, _ = run(channels=channels)
    assert ("hint: all images are grey; dataset.channels: 1" in out) is hinted


INVERTED = {
    "pairs__inverted": {"teacher": "flow1", "source": "images"},
    "flows__flow3": {"recipe": "finetune", "data": "inverted", "mix": "pairs2", "start": "flow2"},
}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"dataset__limit": 3}, ["train split has 2 images", "held-out split has 1 images",
                                 "evaluate.neighbours (3) needs at least 4"]),
        ({"dataset__limit": 10}, None),
        ({"dataset__held_out": 0.2, "dataset__limit": 10}, ["held-out split has 2 images"]),
        ({"evaluate__neighbours": 9}, None),
        ({"evaluate__neighbours": 20}, ["train split has 20 images", "needs at least 21"]),
        ({"recipes__pretrain__batch": 20}, None),
        ({"recipes__pretrain__batch": 21},
         ["recipes.pretrain.batch is 21 but there are only 20 images to train"]),
        ({**INVERTED, "recipes__finetune": {"batch": 30}}, ["recipes.finetune.batch is 30 but"]),
        ({**INVERTED, "recipes__finetune": {"batch": 30, "steps": 0}}, None),
    ],
)  # fmt: skip
def test_preflight_knows_of_splits_too_small(check, tmp_path, changes, said):  # noqa: F811
    tree(tmp_path / "set", MANY)
    dataset = {f"dataset__{name}": value for name, value in SET.items()}
    line = check(**{**dataset, "recipes__pretrain__batch": 4, **changes})
    assert said or line == ""
    for part in said or ():
        assert part in line


def test_prepare_counts_again_what_is_left(run, tmp_path):
    path = tree(tmp_path / "set", MANY)
    for name in MANY[:14]:
        (path / name).write_bytes(b"junk")
    code, _, err, facts = run(batch=20, skip_corrupt=True)
    assert (code, facts, artifacts.IMAGES.exists()) == (2, None, False)
    assert err.startswith("rfpp: recipes.pretrain.batch is 20 but there are only 1")


@pytest.mark.parametrize("split", ["given", "seeded"])
def test_a_class_that_is_only_held_out_is_refused(check, tmp_path, split):  # noqa: F811
    names = [f"{part}/{name}" for part in ("train", "test") for name in CLASSES]
    changes = {f"dataset__{name}": value for name, value in SET.items()}
    if split == "given":
        tree(tmp_path / "set", [*names, "test/cow/1.png"])
    else:
        tree(tmp_path / "set", [*MANY, "cow/1.png"])
        changes["dataset__held_out"] = 0.6
    line = check(**changes, recipes__pretrain__batch=2)
    assert "1 of the classes are only in the held-out split, the first is cow; give train" in line
    assert line.count("\n") == 1


def test_one_class_teaches_no_classifier(check, tmp_path):  # noqa: F811
    path = tree(tmp_path / "set", [f"{i}.png" for i in range(20)])
    (tmp_path / "labels.csv").write_text("".join(f"{i}.png,x\n" for i in range(20)))
    changes = {f"dataset__{name}": value for name, value in SET.items()}
    changes |= {"dataset__labels": "labels.csv", "recipes__pretrain__batch": 2}
    assert path.exists()
    assert "all images have one label" in check(**changes)
    assert check(**changes, features__nets=["pixels"]) == ""


def test_digits_are_bit_for_bit_what_they_were(run, tmp_path):
    code, *_ = run(name="digits", resolution=None, channels=1, held_out=0.2)
    assert code == 0
    digest = "a12338ddd144746d420ccbb09d147300ab18ebda5edea9a7f3387404d5f38873"
    assert image_store.metadata(artifacts.IMAGES)["digest"] == digest
    assert np.unique(image_store.labels(artifacts.IMAGES, "train")).tolist() == list(range(10))
