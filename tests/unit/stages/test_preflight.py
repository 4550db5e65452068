"""What a run lacks is said before any compute, all at once."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from pipeline import artifacts, console
from pipeline.stages import preflight
from pipeline.work import feature_nets
from rfpp_core.config import params, yaml_file
from rfpp_core.pairs.spec import Pairs
from rfpp_core.pairs.store import PairStore
from rfpp_core.storage import checkpoint
from tests.helpers import SMOKE, spec_for
from tests.unit.images.sets import CLASSES, tree, zipped


@pytest.fixture
def check(tmp_path, monkeypatch, capsys):
    """Runs the stage on the smoke preset with changes; returns what it says if all is not well."""

    def offline(url, path, *args, **kwargs):
        raise OSError("no network")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["preflight"])
    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    (tmp_path / ".dvc").mkdir()
    (tmp_path / "data").mkdir()

    def run(**changes):
        raw = yaml.safe_load(SMOKE)
        for name, value in changes.items():
            *sections, last = name.split("__")
            at = raw
            for section in sections:
                at = at[section]
            at[last] = value
        Path("params.yaml").write_text(yaml.safe_dump(raw))
        code = 0
        try:
            console.main(preflight.run)
        except SystemExit as end:
            code = end.code
        assert (code, artifacts.PREFLIGHT.exists()) in ((0, True), (2, False))
        artifacts.PREFLIGHT.unlink(missing_ok=True)
        return capsys.readouterr().err.removeprefix("rfpp: ")

    return run


FOLDER = {"dataset__name": "folder", "dataset__resolution": 8, "dataset__held_out": 0.5,
          "recipes__pretrain__batch": 2, "evaluate__neighbours": 1}  # fmt: skip
VGG = ("vgg16-397923af.pth", "download.pytorch.org", "loss.vgg_path", "no network")
INCEPTION = ("inception-2015-12-05.pt", "nvlabs", "features.inception_path", "no network")


def test_all_is_there(check, tmp_path):
    assert check() == ""
    assert check(**FOLDER, dataset__path=str(tree(tmp_path / "set", CLASSES))) == ""
    assert check(recipes__reflow__loss__perceptual="classifier") == ""


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({**FOLDER, "dataset__path": "gone"}, ["gone does not exist", "dataset.path"]),
        ({**FOLDER, "dataset__path": "empty"}, ["empty holds no images", ".png"]),
        ({**FOLDER, "dataset__path": "bad"}, ["a/0.png is not a readable image", "skip_corrupt"]),
        ({**FOLDER, "dataset__path": "evil.zip"}, ["../x.png"]),
        ({**FOLDER, "dataset__path": "flat"}, ["no labels, needed by features.nets with clas"]),
        (
            {**FOLDER, "dataset__path": "flat", "features__nets": ["pixels"],
             "networks__unet__conditional": True},
            ["no labels, needed by networks.unet with conditional: true;"],
        ),
        (
            {**FOLDER, "dataset__path": "flat", "dataset__labels": "labels.csv"},
            ["labels.csv has no label for 3 of 4 images", "b.png"],
        ),
        ({**FOLDER, "dataset__path": "wide", "dataset__resolution": None}, ["14x12 pixels"]),
        ({**FOLDER, "dataset__path": "set", "dataset__resolution": 9}, ["a multiple of 2", "9x9"]),
        ({"recipes__reflow__loss__perceptual": "lpips"}, VGG),
        ({"recipes__pretrain__loss": {"perceptual": "lpips", "vgg_path": "vgg.pth"}},
         ["vgg.pth is missing", "vgg16-397923af.pth comes from"]),
        ({"features__nets": ["inception", "inception_clean"]}, INCEPTION),
        ({"pairs__pairs2__n": 10**14}, ["the pairs take up to 6400000.0 GB"]),
        ({"pairs__pairs2__shard": 2 * 10**8, "pairs__pairs2__n": 2 * 10**8},
         ["pairs.pairs2: ", "shard"]),
        ({**FOLDER, "dataset__path": "flat", "features__nets": ["pixels"],
          "recipes__reflow__loss__perceptual": "classifier"},
         ["no labels, needed by recipes.reflow with loss.perceptual: classifier;"]),
    ],
)  # fmt: skip
def test_one_thing_is_one_line(check, tmp_path, changes, said):
    tree(tmp_path / "set", CLASSES)
    tree(tmp_path / "flat", ["a.png", "b.png", "c.png", "d.png"])
    tree(tmp_path / "wide", ["a/0.png", "b/0.png", "a/1.png", "b/1.png"], side=(14, 12))
    tree(tmp_path / "bad", ["a/0.png", "b/0.png", "a/1.png", "b/1.png"])
    (tmp_path / "bad/a/0.png").write_bytes(b"no image")
    (tmp_path / "empty").mkdir()
    (tmp_path / "labels.csv").write_text("a.png,cat\n")
    zipped(tmp_path / "evil.zip", ["../x.png"])
    line = check(**changes)
    assert line.count("\n") == 1
    for part in said:
        assert part in line


ALONE = {"flows__flow2__recipe": "pretrain"}  # one recipe is used


@pytest.mark.parametrize(
    ("processes", "recipe", "said"),
    [
        (2, {"batch": 64, "accumulate": 4}, ""),
        (3, {"batch": 64},
         "recipes.pretrain.batch is 64, which RFPP_PROCESSES (3) processes do not share evenly\n"),
        (8, {"batch": 64, "accumulate": 16},
         "recipes.pretrain: batch (64) is 8 images for each of 8 processes, which is not a "
         "multiple of accumulate (16); change one of the three\n"),
        (16, {"batch": 64, "accumulate": 8}, "recipes.pretrain: batch (64) is 4 images for each"),
    ],
)  # fmt: skip
def test_a_batch_is_shared_evenly_by_processes_and_parts(
    check, monkeypatch, processes, recipe, said
):
    monkeypatch.setenv("RFPP_PROCESSES", str(processes))
    changes = {f"recipes__pretrain__{name}": value for name, value in recipe.items()}
    line = check(**ALONE, **changes)
    assert line.startswith(said)
    assert line.count("\n") == bool(said)


def test_recipes_that_nothing_trains_by_are_not_checked(check, monkeypatch):
    monkeypatch.setenv("RFPP_PROCESSES", "2")
    odd = {"batch": 63, "accumulate": 7, "loss": {"perceptual": "lpips"}}
    assert check(recipes__spare=odd) == ""
    assert check(recipes__spare={**odd, "steps": 0}, flows__flow2__recipe="spare") == ""
    assert check(recipes__spare=odd, flows__flow2__recipe="spare").startswith("2 things are miss")


def imported(path, n, shape=(1, 8, 8)):
    """A row of ``pairs`` of a store, and the store."""
    store = PairStore.create(path, spec_for(shape=shape), n)
    images = np.zeros((20, *shape), np.uint8)
    for k in range(n // 20):
        store.commit(k, Pairs(images, np.full(20, -1, np.int16), None), device="cpu")
    return {"teacher": "flow1", "source": "import", "path": str(path),
            "digest": store.digest(decode=False)}  # fmt: skip


@pytest.mark.parametrize(
    ("n", "recipe", "fits"),
    [(80, {}, True), (60, {}, False), (60, {"steps": 0}, True), (60, {"batch": 60}, True)],
)  # fmt: skip
def test_imported_pairs_are_at_least_a_batch(check, tmp_path, n, recipe, fits):
    row = imported(tmp_path / "other.zarr", n)
    changes = {f"recipes__reflow__{name}": value for name, value in recipe.items()}
    third = {"recipe": "reflow", "data": "pairs2", "mix": "images", "start": "flow1"}
    said = "recipes.reflow.batch (64) is larger than the set of pairs (pairs.pairs2 has 60)\n"
    assert check(pairs__pairs2=row, flows__flow3=third, **changes) == ("" if fits else said)


def test_imported_pairs_are_of_the_images_shape_and_of_their_digest(check, tmp_path):
    row = imported(tmp_path / "other.zarr", 80, (3, 4, 4))
    assert check(pairs__pairs2=row) == (
        "pairs.pairs2 holds images of 3x4x4, and those of dataset are 1x8x8; import others, or "
        "change dataset\n"
    )
    line = check(pairs__pairs2={**row, "digest": "0" * 64}, dataset__name="folder",
                 dataset__path="gone")  # fmt: skip
    assert line.startswith("2 things are missing for this run:\n")
    assert "gone does not exist" in line
    assert f"has digest {row['digest']}, not 000" in line


ODD = ["~nosuch/x", "x" * 300, "a\x1b[31mb", "no\nwhere", "/dev/null/x", "loop"]


@pytest.mark.parametrize("name", ODD, ids=ascii)
@pytest.mark.parametrize(
    "option",
    ["networks__unet__checkpoint", "pairs__pairs2__path", "features__inception_path",
     "recipes__reflow__loss__vgg_path"],
)  # fmt: skip
def test_files_that_are_not_there_are_one_line(check, tmp_path, option, name):
    (tmp_path / "loop").symlink_to("loop")
    line = check(**{
        "networks__unet": {"precond": "edm", "sha256": "0" * 64},
        "pairs__pairs2": {"teacher": "flow1", "source": "import", "path": "no",
                          "digest": "0" * 64} if "pairs" in option else
                         {"teacher": "flow1", "n": 1200, "shard": 100, "micro_batch": 50},
        "features__nets": ["inception" if "inception" in option else "pixels"],
        "recipes__reflow__loss__perceptual": "lpips" if "vgg" in option else "none",
        option: name,
    })  # fmt: skip
    assert line.count("\n") == 1
    assert line[:-1].isprintable()


@pytest.mark.parametrize(
    ("option", "reason"),
    [("features__inception_path", "w.pth has sha256"),
     ("recipes__reflow__loss__vgg_path", "w.pth is not torchvision's VGG16")],
)  # fmt: skip
def test_weights_are_found_at_home_and_in_the_main_tree(
    check, tmp_path, monkeypatch, option, reason
):
    """``dvc exp run --temp`` runs in a copy of the tree, below the main one."""
    main = tmp_path / "main"
    for folder in (main / "copy" / "data", main / ".dvc", tmp_path / "home"):
        folder.mkdir(parents=True)
    for folder in (main, tmp_path / "home"):
        (folder / "w.pth").write_bytes(b"no weights")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("DVC_ROOT", str(main))
    monkeypatch.chdir(main / "copy")
    nets = {"features__nets": ["inception"]} if "inception" in option else {
        "recipes__reflow__loss__perceptual": "lpips"}  # fmt: skip
    for path in ("~/w.pth", "w.pth"):
        assert reason in check(**nets, **{option: path})


def test_everything_at_once(check):
    lines = check(
        **FOLDER, dataset__path="gone", features__nets=["inception"],
        recipes__reflow__loss__perceptual="lpips",
    ).splitlines()  # fmt: skip
    assert lines[0] == "3 things are missing for this run:"
    for line, part in zip(
        lines[1:], ("gone does not exist", *INCEPTION[:1], *VGG[:1]), strict=True
    ):
        assert part in line


def test_features_of_another_extractor_are_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models").mkdir()
    config = params.parse(yaml_file.parse(SMOKE, "smoke"))
    other = config.features.model_copy(update={"nets": ("pixels",)})
    checkpoint.save(artifacts.FEATURES, {}, {"features": feature_nets.described(other)})
    monkeypatch.setattr(sys, "argv", ["evaluate"])
    with pytest.raises(SystemExit) as end:
        console.main(lambda: feature_nets.Reference(config.features))
    assert end.value.code == 2
    assert capsys.readouterr().err == (
        "rfpp: models/features.safetensors is of pixels, made with other features params than now "
        "(classifier); run `dvc repro reference`\n"
    )
